"""The learned rule: gradient history -> features -> metanet -> a step along strong base directions.

Shapes: P scalars of one network, B parameters (tensors), K decays, R raw outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lopt.errors import ConfigError
from lopt.features import moments, per_scalar, per_tensor
from lopt.features.moments import Moments
from lopt.features.segments import LONG, segment_expand, segment_mean, segment_means
from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.metanets import METANETS
from lopt.rules.base import BoundRule, Rule, State, Tensors, working_dtype
from lopt.rules.classical.muon import is_hidden_matrix
from lopt.rules.directions import DIRECTIONS, EPS, History
from lopt.rules.forms import FORMS
from lopt.rules.scales import CLASSES, classes, relative_rates, scales_of, usual_rms

LIMIT = 1e15
"""Larger gradients and parameters are read as this, so that their squares stay finite in float32."""


@dataclass(frozen=True)
class LearnedRuleConfig:
    """Everything that defines a learned rule but for its meta-parameters."""

    metanet: str = "axisnet"
    """Name in `lopt.metanets.METANETS`."""
    metanet_options: dict[str, Any] = field(default_factory=dict)
    """Options of the metanet's constructor."""
    rate: float = 5e-3
    """Learning rate of the base optimizer that the fresh rule is; meta-trained from there."""
    decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta, fastest first."""
    second_decay: float = 0.999
    """Decay of the second moment."""
    directions: tuple[str, ...] = ("adam", "slow", "gradient", "factored", "momentum", "parameter")
    """Base directions by name."""
    weights: tuple[float, ...] = ()
    """Of the directions in the fresh rule; empty: 1 for the first and 0 for the others."""
    update_form: str = "mixture"
    """How raw outputs become a step: a name in `lopt.rules.forms.FORMS`."""
    factored: bool = True
    """Whether scalars see the factored second moments of their tensors (a metanet of the graph can do without)."""
    anneal: bool = True
    """Whether the base learning rate falls: along half a cosine where the horizon is known, else see `fade`."""
    warm_up: float = 0.0
    """Share of a known horizon over which it first rises along half a cosine."""
    fade: float = 0.0
    """Where the horizon is unknown the base learning rate rises for fade / 5 steps and falls as 1 / sqrt(1 + t / fade);
    0: it stays."""
    scales: dict[str, float] = field(default_factory=dict)
    """Factors on the base learning rate by class of tensor (`lopt.rules.scales.CLASSES`); 1 for those not named."""
    widest: float = 0.0
    """Rows or columns of a hidden matrix above which its step shrinks with their root; 0: never."""
    relative: bool = False
    """Whether tensors with smaller weights than PyTorch draws take smaller steps (`scales.relative_rates`)."""
    weight_decay: float = 0.0
    """Decay of all weights but vectors, as a share of the base learning rate; it anneals with the steps."""
    decay_horizon: float = 0.0
    """Horizon at which half of the weight decay acts (`decay_share`); 0: all of it at any."""
    max_step: float = 0.5
    """Bound on the rms of a tensor's step, relative to the rms of the tensor (taken as at least 0.1)."""

    def __post_init__(self) -> None:
        for name in ("decays", "directions", "weights"):
            check(isinstance(getattr(self, name), (list, tuple)), name, "a list", getattr(self, name))
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "weights", self.weights or (1.0, *[0.0] * (len(self.directions) - 1)))
        check(self.metanet in METANETS, "metanet", f"one of {', '.join(METANETS)}", self.metanet)
        unknown = [name for name in self.directions if name not in DIRECTIONS]
        check(
            not unknown and self.directions,
            "directions",
            f"names out of {', '.join(DIRECTIONS)}",
            self.directions,
        )
        count = len(self.directions)
        check(len(set(self.directions)) == count, "directions", "distinct names", self.directions)
        fits = len(self.weights) == count and all(
            is_number(weight) and math.isfinite(weight) for weight in self.weights
        )
        check(fits, "weights", f"as many numbers as directions ({count})", self.weights)
        check(self.update_form in FORMS, "update_form", f"one of {', '.join(FORMS)}", self.update_form)
        check(is_number(self.rate) and 0 < self.rate < math.inf, "rate", "a finite number above 0", self.rate)
        check(is_number(self.max_step) and self.max_step > 0, "max_step", "a number above 0", self.max_step)
        needed = 2 if "slow" in self.directions else 1
        fits = len(self.decays) >= needed and all(is_number(d) and 0 <= d < 1 for d in self.decays)
        check(fits, "decays", f"at least {needed} numbers from 0 up to but not 1", self.decays)
        fits = is_number(self.warm_up) and 0 <= self.warm_up < 1
        check(fits, "warm_up", "a share from 0 up to but not 1", self.warm_up)
        check(
            is_number(self.fade) and 0 <= self.fade < math.inf, "fade", "a number of steps from 0", self.fade
        )
        fits = is_number(self.widest) and 0 <= self.widest < math.inf
        check(fits, "widest", "a number of rows or columns from 0", self.widest)
        check(isinstance(self.relative, bool), "relative", "true or false", self.relative)
        for name in ("weight_decay", "decay_horizon"):
            found = getattr(self, name)
            check(is_number(found) and 0 <= found < math.inf, name, "a finite number from 0", found)
        fits = isinstance(self.scales, dict) and all(
            name in CLASSES and is_number(scale) and 0 < scale < math.inf
            for name, scale in self.scales.items()
        )
        check(fits, "scales", f"finite numbers above 0 for some of {', '.join(CLASSES)}", self.scales)
        fits = is_number(self.second_decay) and 0 <= self.second_decay < 1
        check(fits, "second_decay", "a number from 0 up to but not 1", self.second_decay)

    @property
    def mixture(self) -> dict[str, float]:
        """The directions with their weights in the fresh rule."""
        return dict(zip(self.directions, self.weights, strict=True))


def is_number(value: object) -> bool:
    """Files and the command line may hold anything."""
    return isinstance(value, (int, float))


def check(valid: object, name: str, expected: str, found: object) -> None:
    """Raise a `ConfigError` unless the option is valid."""
    if not valid:
        raise ConfigError(f"learned rule: {name} must be {expected}, found {found!r}")


class LearnedRule(Rule):
    """delta = -a(t / T) rate (exp(s(raw_0)) sum_k (w_k + raw_k) d_k + b(T) p), bounded for each tensor.

    The d_k are base directions with weights w_k, raw (R, P) the metanet's outputs, s keeps within +-2, a is half a
    cosine where the horizon T is known, else 1, and b(T) is the decay of the parameters p, by default 0. With the
    metanet's heads at zero this is the optimizer of the weighted directions, by default Adam, with cosine decay if it
    is told the horizon. Other forms are in `lopt.rules.forms`.
    """

    def __init__(self, config: LearnedRuleConfig) -> None:
        super().__init__()
        self.config = config
        kinds = len(config.decays)
        self.metanet = METANETS[config.metanet](
            features=per_scalar.count(kinds, config.factored),
            context=per_tensor.count(kinds),
            outputs=FORMS[config.update_form].outputs(len(config.directions)),
            **config.metanet_options,
        )
        self.log_rate = nn.Parameter(torch.tensor(config.rate).log() / RATE_SPEED)
        learns = FORMS[config.update_form].learns_decay
        self.decay_shift = nn.Parameter(torch.zeros(())) if learns else None

    def on(self, graph: ParameterGraph, meta_parameters: Tensors | None = None) -> BoundRule:
        # Now, because `torch.compile` can use what is derived from a graph, but not trace how.
        _static(graph)
        _hidden(graph)
        classes(graph)
        usual_rms(graph)
        self.metanet.prepare(graph)
        return super().on(graph, meta_parameters)

    def init(
        self, graph: ParameterGraph, params: Tensors, total_steps: Tensor | float | None = None
    ) -> State:
        like = next(iter(params.values()))
        zeros = like.new_zeros(graph.numel, dtype=working_dtype(*params.values()))
        counter = zeros.new_zeros(())
        total = counter + (0 if total_steps is None else total_steps)
        rows = {"momenta": len(self.config.decays), "memory": self.metanet.memory}
        # Views of flat tensors, as after every step: one memory layout, so that steps are compiled once.
        flat = {key: torch.stack([zeros] * count) for key, count in rows.items() if count}
        parts = {key: graph.unflatten(value) for key, value in {**flat, "second": zeros}.items()}
        return {
            name: {
                "step": counter.clone(),
                "total_steps": total.clone(),
                **{key: part[name] for key, part in parts.items()},
            }
            for name in graph.parameters
        }

    def forward(
        self, graph: ParameterGraph, grads: Tensors, state: State, params: Tensors
    ) -> tuple[Tensors, State]:
        names, sizes = list(graph.parameters), _sizes(graph)
        dtype = working_dtype(*params.values())
        p = graph.flatten(params).to(dtype).clamp(-LIMIT, LIMIT)
        g = graph.flatten(grads).to(dtype).clamp(-LIMIT, LIMIT)
        # State may come from a file, or from steps of other parameters, of another precision.
        steps, horizon = (
            torch.stack([state[name][key] for name in names]).to(dtype) for key in ("step", "total_steps")
        )
        steps = steps + 1
        decays, corrections = self._decays(steps)
        momenta, second = (
            graph.flatten({n: state[n][key] for n in names}).to(dtype) for key in ("momenta", "second")
        )
        momenta = moments.decayed(momenta, g, decays[:, None])
        second = moments.decayed(second, g * g, self.config.second_decay)
        m = moments.corrected(momenta, second, segment_expand(corrections, sizes))
        history, features, context, param_rms = self._observe(graph, p, g, m, steps, horizon)
        memory = graph.flatten({n: state[n]["memory"] for n in names}) if self.metanet.memory else None
        like = self.log_rate.dtype
        if history.by_tensor:
            raw = self.metanet.of_tensors(context.to(like))
        else:
            memory = None if memory is None else memory.to(like)
            raw, memory = self.metanet(graph, features.to(like), context.to(like), memory)
        step = self._step(history, raw.to(dtype))
        if self.config.weight_decay:
            step = step - segment_expand(self._weight_decay(graph, steps, horizon)[None], sizes)[0] * p
        delta = step * segment_expand(self._factor(graph, step, param_rms, steps, horizon)[None], sizes)[0]
        new = {
            "momenta": graph.unflatten(momenta),
            "second": graph.unflatten(second),
            **({} if memory is None else {"memory": graph.unflatten(memory.to(dtype))}),
        }
        next_state = {
            name: {**state[name], "step": step, **{key: values[name] for key, values in new.items()}}
            for name, step in zip(names, steps.unbind(), strict=True)
        }
        return graph.unflatten(delta), next_state

    def _decays(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """(K,) decays of the momenta, and (K + 1, B) bias corrections, the last one of the second moment."""
        decays = steps.new_tensor(self.config.decays)
        corrections = moments.bias_correction(steps, (*self.config.decays, self.config.second_decay))
        if self.decay_shift is None:
            return decays, corrections
        logit = torch.logit(decays[0]) + (self.decay_shift * RATE_SPEED).to(steps.dtype)
        corrected = -1 / torch.expm1(logsigmoid(logit) * steps)
        return (
            torch.cat([torch.sigmoid(logit)[None], decays[1:]]),
            torch.cat([corrected[None], corrections[1:]]),
        )

    def _observe(
        self, graph: ParameterGraph, p: Tensor, g: Tensor, m: Moments, steps: Tensor, horizon: Tensor
    ) -> tuple[History, Tensor, Tensor, Tensor]:
        """The gradient history of all scalars, their features (F, P), the tensors' context (C, B) and rms (B,).

        There are no features, F = 0, where the metanet looks at none.
        """
        shapes, sizes = _shapes(graph), _sizes(graph)
        fastest = m.momenta[0]
        pairs = (p, p), (g, g), (fastest, fastest), (m.root, m.root), (g, fastest)
        means = segment_means((a * b for a, b in pairs), sizes)
        param_rms, grad_rms, momentum_rms, root_rms = torch.sqrt(means[:4].clamp(min=0) + moments.TINY)
        agreement = means[4] / ((grad_rms + per_scalar.FLOOR) * (momentum_rms + per_scalar.FLOOR))
        sees_scalars = self.metanet.sees_scalars
        wanted = (self.config.factored and sees_scalars) or "factored" in self.config.directions
        factored = moments.factored_root(m.root * m.root, shapes) if wanted else None
        inverse = 1 / (m.root + EPS)
        by_tensor = not sees_scalars and graph.numel >= LONG
        history = History(p, g, m, inverse, factored, momentum_rms, shapes, _hidden(graph), by_tensor)
        if sees_scalars:
            spread = segment_expand(torch.stack([param_rms, torch.sqrt(root_rms + per_scalar.FLOOR)]), sizes)
            seen = factored if self.config.factored else None
            features = per_scalar.per_scalar_features(p, g, m, seen, *spread)
            ratios = features[: len(m.momenta) + 1]
            squares = segment_mean(ratios * ratios, sizes)
        else:
            features, reciprocal = m.momenta[:0], per_scalar.reciprocal(m.root)
            rows = (per_scalar.squashed_square(row * reciprocal) for row in (*m.momenta, g))
            squares = segment_means(rows, sizes)
        context = torch.cat(
            [
                per_tensor.time_features(steps, horizon),
                per_tensor.noise_features(squares, param_rms, grad_rms, agreement),
                _static(graph).to(p),
            ]
        )
        return history, features, context, param_rms

    def _step(self, history: History, raw: Tensor) -> Tensor:
        """(P,) the unbounded step out of the raw outputs."""
        log_rate = self._log_rate().to(raw.dtype)
        return FORMS[self.config.update_form].step(history, self.config.mixture, raw, log_rate)

    def _log_rate(self) -> Tensor:
        """() the logarithm of the base rate."""
        return self.log_rate * RATE_SPEED

    def _weight_decay(self, graph: ParameterGraph, steps: Tensor, horizon: Tensor) -> Tensor:
        """(B,) how much of each tensor is taken away at the full base rate; nothing of vectors."""
        decayed = steps.new_tensor([found != "vector" for found in classes(graph)])
        rate = self._log_rate().exp().to(steps.dtype)
        return (
            decayed * rate * self.config.weight_decay * decay_share(steps, horizon, self.config.decay_horizon)
        )

    def _factor(
        self, graph: ParameterGraph, step: Tensor, param_rms: Tensor, steps: Tensor, horizon: Tensor
    ) -> Tensor:
        """(B,) what each tensor's step is multiplied by: annealing, its scales, and a bound on its rms.

        The rms stays within `max_step` times the tensor's own.
        """
        factor = torch.ones_like(steps)
        if self.config.anneal:
            factor = annealing(steps, horizon, self.config.warm_up, self.config.fade)
        if self.config.scales or self.config.widest:
            factor = factor * steps.new_tensor(scales_of(graph, self.config.scales, self.config.widest))
        if self.config.relative:
            factor = factor * relative_rates(graph, param_rms)
        rms = torch.sqrt(segment_mean((step * step)[None], _sizes(graph))[0] + moments.TINY)
        return torch.minimum(factor, self.config.max_step * param_rms.clamp(min=0.1) / rms)

    def gauges(self) -> dict[str, float]:
        """Figures worth watching in meta-training."""
        found = {"base_rate": self._log_rate().exp().item()}
        if self.decay_shift is not None:
            found["momentum_decay"] = self._decays(self.decay_shift.detach().new_ones(1))[0][0].item()
        return found

    def describe(self) -> dict[str, Any]:
        """The config as JSON-able values, for the rule file."""
        return asdict(self.config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> LearnedRule:
        """The inverse of `describe`, with fresh meta-parameters."""
        return cls(LearnedRuleConfig(**description))


def annealing(steps: Tensor, horizon: Tensor, warm_up: float = 0.0, fade: float = 0.0) -> Tensor:
    """(B,) factor on the step.

    Where the horizon is unknown (0): 1, or with `fade` 1 / sqrt(1 + t / fade) after t steps, the first fifth of them
    linearly from 0. Where it is known: half a cosine up from 0.04 over its first `warm_up`, and half a cosine down to
    0.01 at its end (one cycle, Smith & Topin 2019, arXiv 1708.07120).
    """
    fraction = ((steps - 1) / horizon.clamp(min=1)).clamp(max=1)
    factor = _half_cosine(((fraction - warm_up) / (1 - warm_up)).clamp(min=0), 0.01)
    if warm_up > 0:
        factor = factor * _half_cosine((1 - fraction / warm_up).clamp(min=0), 0.04)
    unknown = torch.rsqrt(1 + (steps - 1) / fade) * (5 * steps / fade).clamp(max=1) if fade else 1.0
    return torch.where(horizon > 0, factor, unknown)


def decay_share(steps: Tensor, horizon: Tensor, half: float = 0.0) -> Tensor:
    """(B,) T / (T + half), the share of the weight decay that acts with a horizon T; t steps for T where it is unknown.

    Short runs end before a network knows its data by heart, and decay costs them steps; in long ones it is what holds.
    """
    length = torch.where(horizon > 0, horizon, steps)
    return length / (length + half)


def _half_cosine(done: Tensor, end: float) -> Tensor:
    """From 1 at 0 to `end` at 1."""
    return end + (1 - end) * 0.5 * (1 + torch.cos(math.pi * done))


RATE_SPEED = 10.0
"""The log of the base rate, and the logit of a learned decay, are learned in units of this, so that they move as
fast as the many other weights."""


def _shapes(graph: ParameterGraph) -> list[tuple[int, ...]]:
    return [spec.shape for spec in graph.parameters.values()]


def _sizes(graph: ParameterGraph) -> list[int]:
    return [spec.numel for spec in graph.parameters.values()]


@made_once
def _static(graph: ParameterGraph) -> Tensor:
    return per_tensor.static_features(graph, torch.empty(0, dtype=torch.float64))


@made_once
def _hidden(graph: ParameterGraph) -> list[bool]:
    return [is_hidden_matrix(graph, name) for name in graph.parameters]
