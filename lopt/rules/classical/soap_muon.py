"""SOAP in front of Muon: momentum is whitened in the eigenbases of its second moments, then orthogonalised."""

from __future__ import annotations

import torch
from torch import Tensor

from lopt.config import Count, Decay, Pair
from lopt.numerics.newton_schulz import newton_schulz
from lopt.registry import checked
from lopt.rules.classical.base import Amount, safe_sqrt, zeros
from lopt.rules.classical.muon import RMS, Muon

EPS = 1e-8
SHIFT = 1e-4
"""Of a moment's mean eigenvalue, that is added to all of them."""


class SoapMuon(Muon):
    """L <- b L + (1 - b) g g^T;  R <- b R + (1 - b) g^T g;  v <- b v + (1 - b) (U^T g V)^2

    p <- p - lr (s newton_schulz(U (U^T m V / sqrt(v)) V^T) + weight_decay p), with m and s of `Muon`, which has
    everything else. U and V are the eigenbases of L and R, followed by one step of orthogonal iteration per update
    (`_iterated`); to derivatives they are constants. A side longer than `largest` keeps its own coordinates.

    Raises: ConfigError for a value out of range.
    Source: Vyas et al. 2024 (SOAP, arXiv 2409.11321), algorithm 3; Jordan et al. 2024 (Muon).
    """

    @checked
    def __init__(
        self,
        lr: Amount = 1e-3,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        weight_decay: Amount = 0.1,
        betas: Pair[Decay] = (0.9, 0.999),
        second_decay: Decay = 0.95,
        largest: Count = 256,
    ) -> None:
        super().__init__(lr, momentum, nesterov, weight_decay, betas)
        self.second_decay, self.largest = second_decay, largest

    def start(self, param: Tensor) -> dict[str, Tensor]:
        state = {**super().start(param), "second": zeros(param)}
        rows = param.shape[0]
        for side, size in (("rows", rows), ("columns", param.numel() // rows)):
            if size <= self.largest:
                state[f"{side}_moment"] = zeros(param, torch.Size((size, size)))
                state[f"{side}_basis"] = torch.eye(size, dtype=state["second"].dtype, device=param.device)
        return state

    def direction(
        self, update: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        own: dict[str, Tensor] = {}
        for side, product in (("rows", lambda: grad @ grad.mT), ("columns", lambda: grad.mT @ grad)):
            if f"{side}_moment" in state:
                moment = state[f"{side}_moment"].lerp(product(), 1 - self.second_decay)
                own |= {f"{side}_moment": moment, f"{side}_basis": _iterated(moment, state[f"{side}_basis"])}
        turned = _turned(grad, own.get("rows_basis"), own.get("columns_basis"))
        second = state["second"].flatten(1).lerp(turned.square(), 1 - self.second_decay)
        whitened = _turned(update, own.get("rows_basis"), own.get("columns_basis")) / (
            safe_sqrt(second) + EPS
        )
        back = _turned(whitened, _transposed(own.get("rows_basis")), _transposed(own.get("columns_basis")))
        own["second"] = second.reshape(state["second"].shape)
        return RMS * max(update.shape) ** 0.5 * newton_schulz(back), own


def _iterated(moment: Tensor, basis: Tensor) -> Tensor:
    """qr((L + shift) U): where a moment of low rank says nothing, the basis stays and rounding does not decide."""
    shift = SHIFT * moment.diagonal().mean()
    turned, _ = torch.linalg.qr((moment @ basis + shift * basis).detach())
    return turned


def _turned(matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """U^T X V; without a basis the side stays as it is."""
    matrix = matrix if rows is None else rows.mT @ matrix
    return matrix if columns is None else matrix @ columns


def _transposed(basis: Tensor | None) -> Tensor | None:
    return None if basis is None else basis.mT
