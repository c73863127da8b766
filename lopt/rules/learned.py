"""The learned rule: gradient history -> features -> metanet -> a step along strong base directions.

Shapes: P scalars of one network, B parameters (tensors), K decays, R raw outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lopt.config import from_mapping, to_mapping
from lopt.features import per_scalar, per_tensor
from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.tensor_classes import (
    Matrices,
    classes,
    is_hidden_matrix,
    matrices_of,
    relative_rates,
    scales_of,
    usual_rms,
)
from lopt.metanets import METANETS
from lopt.numerics import moments
from lopt.numerics.moments import Moments
from lopt.numerics.schedules import annealing, decay_share
from lopt.numerics.segments import LONG, segment_expand, segment_mean, segment_means
from lopt.rules.base import BoundRule, Rule, State, Tensors, working_dtype
from lopt.rules.config import LearnedRuleConfig
from lopt.rules.constants import SPEED, Constants, Moved
from lopt.rules.directions import EPS, History
from lopt.rules.forms import FORMS

LIMIT = 1e15
"""Larger gradients and parameters are read as this, so that their squares stay finite in float32."""


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
        self.metanet = METANETS.make(
            config.metanet,
            features=per_scalar.count(kinds, config.factored),
            context=per_tensor.count(kinds),
            outputs=FORMS[config.update_form].outputs(len(config.directions)),
        )
        self.log_rate = nn.Parameter(torch.tensor(config.rate).log() / SPEED)
        learns = FORMS[config.update_form].learns_decay
        self.decay_shift = nn.Parameter(torch.zeros(())) if learns else None
        self.constants = Constants(config.constants)

    def on(self, graph: ParameterGraph, meta_parameters: Tensors | None = None) -> BoundRule:
        # Now, because `torch.compile` can use what is derived from a graph, but not trace how.
        _ = graph.shapes, graph.sizes, graph.numel
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
        names, sizes = list(graph.parameters), graph.sizes
        dtype = working_dtype(*params.values())
        p = graph.flatten(params).to(dtype).clamp(-LIMIT, LIMIT)
        g = graph.flatten(grads).to(dtype).clamp(-LIMIT, LIMIT)
        # State may come from a file, or from steps of other parameters, of another precision.
        steps, horizon = (
            torch.stack([state[name][key] for name in names]).to(dtype) for key in ("step", "total_steps")
        )
        steps = steps + 1
        moved = self.constants(steps, horizon)
        new, new_second, corrections = self._decays(steps, moved)
        momenta, second = (
            graph.flatten({n: state[n][key] for n in names}).to(dtype) for key in ("momenta", "second")
        )
        momenta = momenta.lerp(g, _for_scalars(new, sizes))
        second = second.lerp(g * g, _for_scalars(new_second, sizes))
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
            step = step - segment_expand(self._weight_decay(graph, moved, steps, horizon)[None], sizes)[0] * p
        delta = (
            step * segment_expand(self._factor(graph, step, param_rms, moved, steps, horizon)[None], sizes)[0]
        )
        changed = {
            "momenta": graph.unflatten(momenta),
            "second": graph.unflatten(second),
            **({} if memory is None else {"memory": graph.unflatten(memory.to(dtype))}),
        }
        next_state = {
            name: {**state[name], "step": step, **{key: values[name] for key, values in changed.items()}}
            for name, step in zip(names, steps.unbind(), strict=True)
        }
        return graph.unflatten(delta), next_state

    def _decays(self, steps: Tensor, moved: Moved) -> tuple[Tensor, Tensor | float, Tensor]:
        """The weights 1 - decay of what is new, and (K + 1, B) bias corrections, the last one of the second moment.

        The weights are (K, 1) for the momenta and a number for the second moment; as a learned constant, that of the
        fastest momentum makes it (K, B), and that of the second moment (B,).
        """
        config = self.config
        new, new_second = 1 - steps.new_tensor(config.decays)[:, None], 1 - config.second_decay
        corrections = moments.bias_correction(steps, (*config.decays, config.second_decay))
        if self.decay_shift is not None:
            logit = torch.logit(steps.new_tensor(config.decays[0])) + (self.decay_shift * SPEED).to(
                steps.dtype
            )
            new = torch.cat([1 - torch.sigmoid(logit).reshape(1, 1), new[1:]])
            corrected = -1 / torch.expm1(logsigmoid(logit) * steps)
            corrections = torch.cat([corrected[None], corrections[1:]])
        if (log := moved.log_decay("momentum_decay", config.decays[0])) is not None:
            new = torch.cat([-torch.expm1(log)[None], new[1:].expand(-1, len(steps))])
            corrections = torch.cat([(-1 / torch.expm1(log * steps))[None], corrections[1:]])
        if (log := moved.log_decay("second_decay", config.second_decay)) is not None:
            corrections = torch.cat([corrections[:-1], (-1 / torch.expm1(log * steps))[None]])
            return new, -torch.expm1(log), corrections
        return new, new_second, corrections

    def _observe(
        self, graph: ParameterGraph, p: Tensor, g: Tensor, m: Moments, steps: Tensor, horizon: Tensor
    ) -> tuple[History, Tensor, Tensor, Tensor]:
        """The gradient history of all scalars, their features (F, P), the tensors' context (C, B) and rms (B,).

        There are no features, F = 0, where the metanet looks at none.
        """
        sizes = graph.sizes
        fastest = m.momenta[0]
        pairs = (p, p), (g, g), (fastest, fastest), (m.root, m.root), (g, fastest)
        means = segment_means((a * b for a, b in pairs), sizes)
        param_rms, grad_rms, momentum_rms, root_rms = torch.sqrt(means[:4].clamp(min=0) + moments.TINY)
        agreement = means[4] / ((grad_rms + per_scalar.FLOOR) * (momentum_rms + per_scalar.FLOOR))
        sees_scalars = self.metanet.sees_scalars
        wanted = (self.config.factored and sees_scalars) or "factored" in self.config.directions
        factored = moments.factored_root(m.root * m.root, graph.shapes) if wanted else None
        inverse = 1 / (m.root + EPS)
        by_tensor = not sees_scalars and graph.numel >= LONG
        history = History(p, g, m, inverse, factored, momentum_rms, sizes, _hidden(graph), by_tensor)
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
        return FORMS[self.config.update_form].step(history, self.config.directions, raw, log_rate)

    def _log_rate(self) -> Tensor:
        """() the logarithm of the base rate."""
        return self.log_rate * SPEED

    def _weight_decay(self, graph: ParameterGraph, moved: Moved, steps: Tensor, horizon: Tensor) -> Tensor:
        """(B,) how much of each tensor is taken away at the full base rate; nothing of vectors."""
        decayed = steps.new_tensor([found != "vector" for found in classes(graph)])
        rate = self._log_rate().exp().to(steps.dtype)
        share = decay_share(steps, horizon, self.config.decay_horizon)
        rate = rate * moved.factor("weight_decay")
        return decayed * rate * self.config.weight_decay * share

    def _factor(
        self,
        graph: ParameterGraph,
        step: Tensor,
        param_rms: Tensor,
        moved: Moved,
        steps: Tensor,
        horizon: Tensor,
    ) -> Tensor:
        """(B,) what each tensor's step is multiplied by: annealing, its scales, and a bound on its rms.

        The rms stays within `max_step` times the tensor's own.
        """
        factor = torch.ones_like(steps)
        if self.config.anneal:
            warm_up = moved.share("warm_up", self.config.warm_up)
            power = moved.factor("cool_down")
            factor = annealing(steps, horizon, warm_up, self.config.fade, power)
        if self.config.scales or self.config.widest:
            factor = factor * steps.new_tensor(scales_of(graph, self.config.scales, self.config.widest))
        if self.config.relative:
            exponent = moved.factor("relative")
            factor = factor * relative_rates(graph, param_rms) ** exponent
        factor = factor * moved.rates(classes(graph))
        rms = torch.sqrt(segment_mean((step * step)[None], graph.sizes)[0] + moments.TINY)
        return torch.minimum(factor, self.config.max_step * param_rms.clamp(min=0.1) / rms)

    def gauges(self) -> dict[str, float]:
        """Figures worth watching in meta-training."""
        found = {"base_rate": self._log_rate().exp().item()}
        if self.decay_shift is not None:
            found["momentum_decay"] = (
                1 - self._decays(self.decay_shift.detach().new_ones(1), Moved({}))[0][0].item()
            )
        names = self.constants.names
        return found | {f"constants/{name}": SPEED * self.constants.of(name)[0].item() for name in names}

    def describe(self) -> dict[str, Any]:
        """The config as JSON-able values, for the rule file."""
        return to_mapping(self.config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> LearnedRule:
        """The inverse of `describe`, with fresh meta-parameters."""
        return cls(from_mapping(LearnedRuleConfig, description, "rule"))


def _for_scalars(weights: Tensor | float, sizes: list[int]) -> Tensor | float:
    """(..., B) for each tensor -> (..., P); what is the same for all tensors as it is."""
    if isinstance(weights, float) or weights.shape[-1] == 1:
        return weights
    return segment_expand(weights, sizes)


@made_once
def _static(graph: ParameterGraph) -> Tensor:
    return per_tensor.static_features(graph, torch.empty(0, dtype=torch.float64))


@made_once
def _hidden(graph: ParameterGraph) -> list[Matrices | None]:
    return [matrices_of(graph, n) if is_hidden_matrix(graph, n) else None for n in graph.parameters]
