"""Messages along paths: what a scalar hears from all of its block, those too that share no neuron with it.

Shapes: F features, K channels, n scalars of one block, r rows and c columns of a block read as a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lopt.numerics.newton_schulz import orthogonalised


class Paths(nn.Module):
    """o = sqrt(max(r, c)) O(W e), for each of K channels of a block's scalars e read as a matrix (r, c).

    With x = W e, (x x^T x)_ij = sum over k and l of x_ik x_lk x_lj is what comes to a scalar along all paths of three
    scalars: neuron i hears what neuron l sends to j as much as their scalars agree. Orthogonalisation
    O(x) = (x x^T)^(-1/2) x, here by Newton-Schulz steps (Jordan et al. 2024), weighs the paths of all odd lengths so
    that what many neurons share counts once. Means over rows and columns cannot tell any of it. At rms near one.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        # The first features of a rule are its momenta, fastest first.
        self.mix = nn.Parameter(torch.eye(channels, features))

    def forward(self, shapes: Sequence[tuple[int, int] | None], parts: Sequence[Tensor]) -> list[Tensor]:
        """(F, n) of each part -> (K, n) of each; zeros where a part has no shape (r, c): nothing goes through it."""
        matrices = [
            channel.reshape(shape)
            for shape, part in zip(shapes, parts, strict=True)
            if shape
            for channel in (self.mix @ part).unbind()
        ]
        heard = iter(orthogonalised(matrices))
        channels = range(len(self.mix))
        return [
            max(shape) ** 0.5 * torch.stack([next(heard).reshape(-1) for _ in channels])
            if shape
            else part.new_zeros(len(channels), part.shape[1])
            for shape, part in zip(shapes, parts, strict=True)
        ]
