"""Muon: orthogonalised momentum for the matrices inside a network, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lopt.config import Decay, Pair
from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import is_hidden_matrix, matrices_of, stacked_axes
from lopt.numerics.newton_schulz import newton_schulz
from lopt.registry import checked
from lopt.rules.base import Decision, State, Tensors, working_dtype
from lopt.rules.classical.adam import AdamW
from lopt.rules.classical.base import Amount, ClassicalRule, decay, zeros
from lopt.rules.shards import Shards

RMS = 0.2
"""Of a step of AdamW, and so of an orthogonalised one, over the learning rate."""


class Muon(ClassicalRule):
    """m <- b m + (1 - b) g;  p <- p - lr (s O + weight_decay p), O = newton_schulz((1 - b) g + b m).

    Convolution kernels are read as (out, in x taps); s = 0.2 sqrt(max(rows, columns)) gives O the rms of an
    AdamW step, so that both share one learning rate. Vectors, embeddings, depthwise kernels and the output
    layer (which only a traced graph tells) take AdamW. Equals `torch.optim.Muon` with
    adjust_lr_fn="match_rms_adamw", but for the iteration's precision: working dtype here, bfloat16 there.

    Raises: ConfigError for a value out of range.
    Source: Jordan et al. 2024; scale: Liu et al. 2025 (arXiv 2502.16982), equation 4.
    """

    @checked
    def __init__(
        self,
        lr: Amount = 1e-3,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        weight_decay: Amount = 0.1,
        betas: Pair[Decay] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        self.rest = AdamW(lr, betas, weight_decay=weight_decay)
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay

    def part(self, graph: ParameterGraph, name: str) -> ClassicalRule:
        return self if is_hidden_matrix(graph, name) else self.rest

    def stacked(self, graph: ParameterGraph, name: str) -> int:
        return stacked_axes(graph, graph.parameters[name]) if is_hidden_matrix(graph, name) else 0

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return {"momentum": zeros(param)}

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        momentum, update = self.moved(grad, state)
        direction, own = self.direction(update.flatten(1), grad.flatten(1), state)
        delta = decay(param, self.lr * self.weight_decay) - self.lr * direction.reshape(param.shape)
        return delta, {"momentum": momentum, **own}

    def moved(self, grad: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The next momentum, and what is to be orthogonalised."""
        momentum = state["momentum"].lerp(grad, 1 - self.momentum)
        return momentum, grad.lerp(momentum, self.momentum) if self.nesterov else momentum

    def takes_shards(self, graph: ParameterGraph) -> bool:
        return type(self).direction is Muon.direction  # that needs nothing but the update

    def decide(
        self,
        graph: ParameterGraph,
        grads: Tensors,
        state: State,
        params: Tensors,
        shards: Shards | None = None,
    ) -> Decision:
        if shards is None:
            return super().decide(graph, grads, state, params)
        names = list(graph.parameters)
        rest = {name: p for name, p in params.items() if self.part(graph, name) is self.rest}
        deltas, next_state = (dict(part) for part in self.rest(graph, grads, state, rest))
        for wave in shards.waves:
            own = [
                (owner, names[owner])
                for bundle in wave.bundles
                for owner in bundle.owners
                if names[owner] not in rest
            ]
            updates = []
            for _, name in own:
                dtype = working_dtype(params[name])
                old = {key: value.to(dtype) for key, value in state[name].items()}
                momentum, update = self.moved(grads[name].to(dtype), old)
                next_state[name] = {"momentum": momentum}
                updates.append([update.reshape(-1)])
            if own:
                owners = [owner for owner, _ in own]
                directions = shards.of_whole(owners, updates, partial(self._wholes, graph))
                for (_, name), direction in zip(own, directions, strict=True):
                    p = params[name].to(direction.dtype)
                    deltas[name] = decay(p, self.lr * self.weight_decay) - self.lr * direction.reshape(
                        p.shape
                    )
        return Decision(list(deltas.values()), lambda gate: iter([(deltas, next_state)]))

    def _wholes(
        self, graph: ParameterGraph, owners: Sequence[int], updates: Sequence[Tensor]
    ) -> list[Tensor]:
        """`direction` of all members of each tensor: (numel,) -> (numel,)."""
        names = list(graph.parameters)
        given = [
            update.reshape(*matrices_of(graph, names[i])) for i, update in zip(owners, updates, strict=True)
        ]
        return [torch.cat([self.direction(m, m, {})[0].reshape(-1) for m in matrices]) for matrices in given]

    def direction(
        self, update: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """s O of one matrix (rows, columns), and the next state of what it remembers besides the momentum."""
        return RMS * max(update.shape) ** 0.5 * newton_schulz(update), {}
