"""Prove a parameter graph right: permuted parameters must give the same function, uncoupled ones must not.

f(P theta) = f(theta) is checked in float64 on a randomised copy of the parameters (zero biases, unit scales and
fresh statistics would hide wrong ties), then every axis of every group is permuted alone: an axis whose
uncoupling changes nothing is not tied to the others for any reason that the outputs show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lopt.errors import GraphError
from lopt.graph.draws import alike
from lopt.graph.spec import AxisSpec, GraphSpec, Permutation, axis_index
from lopt.graph.trace import check_inputs
from lopt.graph.tracing.isolation import called, input_tensors, output_tensors, plain_kernels, untouched
from lopt.graph.tracing.tape import mutates
from lopt.graph.tracing.world import World
from lopt.numerics.defaults import default_dtype
from lopt.progress import tracked

WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


ROUNDS = 3
"""Draws of parameters after which an axis that was never noticed counts as undetected."""


FLOORS = (0.01, 0.1, 1.0)
"""Least running variance relative to the mean square, tried in turn: low ones magnify differences between inputs,
and in a deep network also rounding errors."""


@dataclass(frozen=True)
class Control:
    """One axis that was permuted without its partners."""

    group: int
    tensor: str
    axis: int


@dataclass(frozen=True)
class VerificationReport:
    """What `verify` found."""

    ok: bool
    """The function is unchanged by a random permutation, and every uncoupled axis was noticed.

    Never where the outputs show nothing: none is finite, or none depends on any of the axes.
    """
    max_error: float
    """Largest |f(P theta) - f(theta)| of any output, relative to that output's largest entry."""
    tolerance: float
    controls: int
    """How many axes were permuted alone."""
    controls_detected: int
    """How many of them changed an output."""
    undetected: tuple[Control, ...]
    """The others: their tie is not needed, or the outputs are too symmetric to show it."""
    inert: tuple[Control, ...]
    """Axes whose entries no output depends on here (a bias in front of a normalisation), or those of all that they are
    tied to (a bias that a distance cancels): not counted."""

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "NOT ok"
        lines = [
            f"{verdict}: |f(P theta) - f(theta)| is {self.max_error:.1e} relative (at most {self.tolerance:.0e}), "
            f"{self.controls_detected} of {self.controls} uncoupled axes noticed"
        ]
        if not self.ok and not self.controls and self.max_error <= self.tolerance:
            lines.append(
                "  the outputs show nothing of the parameters: none is finite, or none depends on them"
            )
        lines += [
            f"  not noticed: axis {c.axis} of {c.tensor} alone (group {c.group})" for c in self.undetected
        ]
        return "\n".join(lines)


@torch.inference_mode(False)  # tensors made in it count no writes
def verify(
    graph: GraphSpec,
    model: nn.Module,
    example_args: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-9,
    max_controls: int | None = None,
    progress: bool = False,
) -> VerificationReport:
    """Check f(P theta) = f(theta) in float64 with randomised parameters, then the negative controls.

    The model runs in evaluation mode, and what it draws is alike for all neurons; neither it nor the example inputs are
    changed. `max_controls` bounds the number of forward passes spent on controls, chosen at random; by default all on
    models of up to a million parameters, 64 above. Axes of groups with a single member have nothing to be uncoupled
    from. `progress` shows on stderr how many controls are done.
    Raises `GraphError` for a graph of another model, parameters without values, or inputs that do not fit.
    """
    _check(graph, model, example_args, example_kwargs)
    generator = generator or torch.Generator().manual_seed(0)
    axes = [(g.id, *m) for g in graph.groups if g.permutable and len(g.members) > 1 for m in g.members]
    limit = max_controls if max_controls is not None else len(axes) if graph.numel <= 10**6 else 64
    left = [
        axes[k] for k in sorted(torch.randperm(len(axes), generator=generator, device="cpu")[:limit].tolist())
    ]
    max_error, total = 0.0, len(left)
    undetected: list[Control] = []
    inert: list[Control] = []
    shown = False
    for _ in range(ROUNDS):  # an unlucky draw (dead or saturated units) hides much: what it hid gets another
        run = _Runner(graph, model, example_args, dict(example_kwargs or {}), generator)
        permutation = {g.id: _moving(g.size, generator) for g in graph.groups if g.permutable}
        reference = run(run.tensors)
        shown |= any(bool(output.isfinite().any()) for output in reference)
        max_error = max(max_error, _difference(reference, run(graph.permute(run.tensors, permutation))))
        undetected, inert = _unnoticed(graph, run, reference, permutation, tolerance, left, progress)
        left = [(c.group, c.tensor, c.axis) for c in (*undetected, *inert)]
        if not left:
            break
    controls = total - len(inert)
    ok = max_error <= tolerance and not undetected and shown and (controls > 0 or total == 0)
    detected = controls - len(undetected)
    return VerificationReport(ok, max_error, tolerance, controls, detected, tuple(undetected), tuple(inert))


def _check(graph: GraphSpec, model: nn.Module, example_args: Any, example_kwargs: Any) -> None:
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    expected = {name: spec.shape for name, spec in graph.parameters.items()}
    if found != expected:
        name = next(n for n in [*expected, *found] if found.get(n) != expected.get(n))
        raise GraphError(
            f"expected the model that the graph was traced from, found {name} with shape {found.get(name)} instead "
            f"of {expected.get(name)}: trace this model again"
        )
    check_inputs(example_args, example_kwargs)
    if any(b.is_meta for b in model.buffers()):
        raise GraphError(
            "expected a model whose buffers have values, found some on the meta device: build it on cpu"
        )


def _moving(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation that is not the identity."""
    p = torch.randperm(size, generator=generator, device="cpu")
    return p.roll(1) if torch.equal(p, torch.arange(size, device="cpu")) else p


def _unnoticed(
    graph: GraphSpec, run: _Runner, reference: list[Tensor], permutation: Permutation, tolerance: float,
    axes: list[tuple[int, str, int]], progress: bool,
) -> tuple[list[Control], list[Control]]:  # fmt: skip
    """Permute axes alone; where nothing changes, ask whether the tensor matters at all, or any of its partners."""
    undetected: list[Control] = []
    inert: list[Control] = []
    for k in tracked(range(len(axes)), "verifying" if progress else "", "control"):
        group, name, dim = axes[k]
        axis = _axis(graph, name, dim)
        index = axis_index(axis, graph.groups, {group: permutation[group]})
        alone = run.tensors[name].index_select(dim, index.to(run.tensors[name].device))
        if _difference(reference, run({**run.tensors, name: alone})) > tolerance:
            continue
        partners = [member for member in graph.groups[group].members if member != (name, dim)]
        matter = (
            _difference(reference, run(_redrawn(graph, run, members, group))) > tolerance
            for members in ([(name, dim)], partners)
        )
        (undetected if all(matter) else inert).append(Control(group, name, dim))
    return undetected, inert


def _axis(graph: GraphSpec, name: str, dim: int) -> AxisSpec:
    return (graph.parameters.get(name) or graph.buffers[name]).axes[dim]


def _redrawn(graph: GraphSpec, run: _Runner, members: list[tuple[str, int]], group: int) -> dict[str, Tensor]:
    """All tensors, those of some members of a group with new entries wherever it runs along their axes."""
    tensors = dict(run.tensors)
    for name, dim in members:
        tensors[name] = _redrawn_along(graph, run, tensors[name], _axis(graph, name, dim), dim, group)
    return tensors


def _redrawn_along(
    graph: GraphSpec, run: _Runner, tensor: Tensor, axis: AxisSpec, dim: int, group: int
) -> Tensor:
    """The tensor with new entries wherever the group runs along the axis."""
    inside = torch.zeros(tensor.shape[dim], dtype=torch.bool, device="cpu")
    start = 0
    for segment in axis:
        size = torch.Size(graph.groups[g].size for g in segment).numel()
        inside[start : start + size] = group in segment
        start += size
    shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
    return torch.where(inside.view(shape).to(tensor.device), run.randomised(tensor), tensor)


def _difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference of any output, relative to that output's largest entry; infinite if not finite."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if not x.numel():
            continue
        if not (x.is_floating_point() or x.is_complex()):
            worst = max(worst, 0.0 if torch.equal(x, y) else float("inf"))
            continue
        same = (x == y) | (x.isnan() & y.isnan())  # masked scores are infinite on both sides
        gap = torch.where(same, 0.0, (x - y).abs()).max().item()
        scale = torch.where(x.isfinite(), x.abs(), 0.0).max().item()
        worst = max(worst, gap / max(scale, 1e-30) if gap == gap else float("inf"))
    return worst


class _Runner:
    """The model as a function of its tensors, in float64 and evaluation mode."""

    def __init__(
        self,
        graph: GraphSpec,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.generator = generator
        self.world = World(model, args, kwargs)
        wide = {id(t): _wide(t) for t in input_tensors((args, kwargs))}
        self.args, self.kwargs = tree_map(
            lambda x: wide.get(id(x), x) if isinstance(x, Tensor) else x, (args, kwargs)
        )
        named = dict(model.named_parameters())
        self.parameters = {
            name: self.randomised(p.detach()) for name, p in named.items() if p.is_floating_point()
        }
        self.constants = {name: _wide(p) for name, p in named.items() if not p.is_floating_point()}
        self.constants |= {n: _wide(b) for n, b in model.named_buffers() if n not in graph.buffers}
        self.statistics = {n: self._positive(b) for n, b in model.named_buffers() if n in graph.buffers}
        self._writes = False
        for floor in FLOORS:
            self._calibrate(floor)
            if not self.statistics or self._rounding() < 1e-11:
                break

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is permuted: parameters and running statistics."""
        return {**self.parameters, **self.statistics}

    def _calibrate(self, floor: float) -> None:
        """Near the statistics of the data, so that signals neither vanish nor saturate; and see who writes."""
        copies = {n: t.clone() for n, t in self.parameters.items()}
        self._forward({**copies, **self.statistics}, _Calibrating(self.generator, floor))
        self._writes = any(t._version for t in copies.values())

    def _rounding(self) -> float:
        """How much of a relative change of 1e-15 in the parameters arrives at the outputs."""
        draw: dict[str, Any] = {"generator": self.generator, "device": "cpu"}
        moved = {
            n: t * (1 + 1e-15 * torch.randn(t.shape, dtype=t.dtype, **draw).to(t.device))
            for n, t in self.parameters.items()
        }
        return _difference(self(self.tensors), self({**moved, **self.statistics}))

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """All output tensors."""
        # Copies only where they are needed: a control would otherwise cost as much as all parameters.
        given = {n: t.clone() for n, t in tensors.items()} if self._writes else dict(tensors)
        return output_tensors(self._forward(given, _Widening()))

    def _forward(self, given: dict[str, Tensor], mode: TorchDispatchMode) -> Any:
        given.update({n: b.clone() for n, b in self.constants.items()})
        with (
            untouched(self.model, self.world),
            torch.no_grad(),
            plain_kernels(),
            default_dtype(torch.float64),
            mode,
        ):
            for module in self.model.modules():  # not eval(): models override it, to load or fuse weights
                module.__dict__["training"] = False
            torch.manual_seed(0)  # what the model draws is the same in every run
            inputs = (self.args, self.kwargs)
            args, kwargs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
            try:
                return called(self.model, given, args, kwargs)
            except Exception as error:
                text = str(error).strip().splitlines()
                raise GraphError(
                    f"expected example inputs that {type(self.model).__name__} accepts, but its forward pass in "
                    f"float64 raised {type(error).__name__}: {text[0] if text else ''}: check the example inputs"
                ) from error

    def randomised(self, tensor: Tensor) -> Tensor:
        """The tensor in float64 with noise on top that lets signals pass; one without values gets values."""
        noise = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float64, device="cpu")
        fan_in = max(tensor.shape[1:].numel(), 1) if tensor.dim() > 1 else 10
        if tensor.is_meta:
            return noise / fan_in**0.5 + (tensor.dim() <= 1)
        noise = noise.to(tensor.device)
        spread = tensor.double().std().item() if tensor.numel() > 1 else 0.0
        return tensor.double() + max(spread, fan_in**-0.5) * noise

    def _positive(self, tensor: Tensor) -> Tensor:
        """Running statistics: any positive numbers are means and variances."""
        noise = torch.rand(tensor.shape, generator=self.generator, dtype=torch.float64, device="cpu")
        return (0.5 + noise).to(tensor.device)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(WIDE.get(tensor.dtype, tensor.dtype))


class _Widening(TorchDispatchMode):
    """Computes in float64 where the model asks for less (norms in float32, half-precision constants), and draws alike
    for all neurons."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in WIDE:
            kwargs = {**kwargs, "dtype": WIDE[kwargs["dtype"]]}
        if not mutates(func) and _any_narrow(args):
            args, kwargs = tree_map(lambda x: _wide(x) if _narrow(x) else x, (args, kwargs))
        if str(func) == "aten._grouped_mm.default" and args[0].dim() == 2 and args[1].dim() == 3:
            return _grouped_mm(*args, **kwargs)
        return alike(func, args, func(*args, **kwargs))


def _grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
    """Rows (S, in) up to each end times their own weight (G, in, out): the fused kernel has no float64."""
    starts = torch.cat([ends.new_zeros(1), ends[:-1]]).tolist()
    parts = zip(starts, ends.tolist(), weights, strict=True)
    product = torch.cat([rows[start:end] @ weight for start, end, weight in parts])
    return product if bias is None else product + bias


class _Calibrating(_Widening):
    """Sets running statistics to those of the data that pass, give or take a random bit for each channel."""

    def __init__(self, generator: torch.Generator, floor: float) -> None:
        super().__init__()
        self.generator = generator
        self.floor = floor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Written from inside the pass, layer by layer: what a norm sees depends on the statistics of those before it.
        if "batch_norm" in str(func) and len(args) > 4 and all(isinstance(a, Tensor) for a in args[3:5]):
            x, mean, variance = args[0], args[3], args[4]
            over = [d for d in range(x.dim()) if d != 1]
            spread = x.var(over, correction=0)
            noise = torch.rand(2, len(mean), generator=self.generator, dtype=torch.float64, device="cpu").to(
                x.device
            )
            spread = (spread + self.floor * x.square().mean() + 1e-6) * (0.5 + noise[0])
            variance.copy_(spread)
            mean.copy_(x.mean(over) + spread.sqrt() * (noise[1] - 0.5))
        return super().__torch_dispatch__(func, types, args, kwargs)


def _any_narrow(args: tuple[Any, ...]) -> bool:
    return any(any(map(_narrow, a)) if isinstance(a, list | tuple) else _narrow(a) for a in args)


def _narrow(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in WIDE
