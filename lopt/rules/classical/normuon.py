"""NorMuon: the rows of Muon's orthogonal step evened by second moments of their own."""

from __future__ import annotations

from torch import Tensor

from lopt.config import Decay, Pair
from lopt.numerics.newton_schulz import newton_schulz
from lopt.registry import checked
from lopt.rules.classical.base import Amount, safe_sqrt, zeros
from lopt.rules.classical.muon import RMS, Muon

EPS = 1e-10


class NorMuon(Muon):
    """v <- b2 v + (1 - b2) mean_columns(O^2);  p <- p - lr (0.2 sqrt(rows columns) N / |N| + weight_decay p)

    with N = O / sqrt(v), row by row, and O the orthogonalised momentum of `Muon`, which has everything else. Equals
    `pytorch_optimizer.NorMuon` with update_scale="match_rms", but for the precision of the iteration.

    Raises: ConfigError for a value out of range.
    Source: Li et al. 2025 (arXiv 2510.05491), algorithm 1.
    """

    @checked
    def __init__(
        self,
        lr: Amount = 1e-3,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        weight_decay: Amount = 0.1,
        betas: Pair[Decay] = (0.9, 0.999),
        row_decay: Decay = 0.95,
    ) -> None:
        super().__init__(lr, momentum, nesterov, weight_decay, betas)
        self.row_decay = row_decay

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return {**super().start(param), "rows": zeros(param, param.shape[:1])}

    def direction(
        self, update: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        orthogonal = newton_schulz(update)
        rows = state["rows"].lerp(orthogonal.square().mean(1), 1 - self.row_decay)
        evened = orthogonal / (safe_sqrt(rows) + EPS)[:, None]
        norm = safe_sqrt(evened.square().sum()) + EPS
        return RMS * update.numel() ** 0.5 / norm * evened, {"rows": rows}
