"""Orthogonalisation of many matrices by Newton-Schulz steps, those of one shape together.

Shapes: r rows and c columns of a matrix, r <= c; L matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5: after five steps singular values from 0.01 to 1 end between 0.7 and 1.2."""

EPS = 1e-7
"""Norm below which a matrix is not scaled up to one."""

GRAM_FROM = 1.5
"""Columns per row from which five steps on the Gram matrix take fewer multiplications than on the matrix itself."""

SMALL = 32
"""Rows up to which a product costs little more than its call: such Gram matrices are padded to one size."""


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """(rows, columns) -> the same with all singular values near one: about U V^T of U S V^T (Jordan et al. 2024)."""
    return orthogonalised([matrix], steps)[0]


def orthogonalised(matrices: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
    """`newton_schulz` of each matrix.

    Each step is X <- (a + b G + c G^2) X with the Gram matrix G = X X^T of the shorter side. All these polynomials
    of the first G commute, so for long matrices they are multiplied up and X itself is touched twice in all: what it
    is first divided by, its norm, is the root of G's trace, and G and the last factor are divided in its place.
    Matrices that share r (if long) or r and c are stacked: many small products cost what their number does. So are all
    with few rows, as zeros around a Gram matrix change nothing within it.
    """
    wide = [m.mT if m.shape[0] > m.shape[1] else m for m in matrices]
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, x in enumerate(wide):
        rows, columns = x.shape
        alike = (0,) if rows <= SMALL else (rows,) if columns > GRAM_FROM * rows else (rows, columns)
        groups.setdefault(alike, []).append(index)
    results = list(wide)
    for shape, members in groups.items():
        if len(shape) == 1:
            gram = _stack(_padded([wide[i] @ wide[i].mT for i in members]))
            square = _at_least(gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)[..., None])
            factors = _unstack(polynomial(gram / square, steps) / torch.sqrt(square))
            steps_of = [_cut(f, wide[i].shape[0]) @ wide[i] for f, i in zip(factors, members, strict=True)]
        else:
            x = _stack([wide[i] for i in members])
            square = _at_least((x * x).sum((-2, -1), keepdim=True))
            steps_of = _unstack(iterated(x / torch.sqrt(square), steps))
        for index, x in zip(members, steps_of, strict=True):
            results[index] = x.mT if matrices[index].shape[0] > matrices[index].shape[1] else x
    return results


def iterated(x: Tensor, steps: int) -> Tensor:
    """(..., r, c) -> (..., r, c): the steps as they are written."""
    (a, b, c), added = COEFFICIENTS, _added(x)
    for _ in range(steps):
        gram = x @ x.mT
        x = added(x, added(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def polynomial(gram: Tensor, steps: int) -> Tensor:
    """(..., r, r) -> (..., r, r): the product of the steps' factors a + H_k, where H_k = b G_k + c G_k^2 and
    G_k+1 = (a + H_k)^2 G_k."""
    (a, b, c), added = COEFFICIENTS, _added(gram)
    rest = added(gram, gram, gram, beta=b, alpha=c)
    product = rest.add(torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device), alpha=a)
    for _ in range(steps - 1):
        half = added(gram, gram, rest, beta=a)
        gram = added(half, half, rest, beta=a)
        rest = added(gram, gram, gram, beta=b, alpha=c)
        product = added(product, product, rest, beta=a)
    return product


def _added(like: Tensor) -> Callable[..., Tensor]:
    """beta x + alpha y z, in one pass over matrices (r, c) or stacks of them (L, r, c)."""
    return torch.addmm if like.dim() == 2 else torch.baddbmm


def _at_least(square: Tensor) -> Tensor:
    """Clamped under the root that follows: the derivative of the root at zero is infinite."""
    return square.clamp_min(EPS * EPS)


def _padded(grams: list[Tensor]) -> list[Tensor]:
    most = max(gram.shape[0] for gram in grams)
    return [pad(gram, [0, most - gram.shape[0]] * 2) if gram.shape[0] < most else gram for gram in grams]


def _cut(factor: Tensor, rows: int) -> Tensor:
    return factor if factor.shape[0] == rows else factor[:rows, :rows]


def _stack(matrices: list[Tensor]) -> Tensor:
    # A stack of one would only make a plain product a batched one.
    return matrices[0] if len(matrices) == 1 else torch.stack(matrices)


def _unstack(stacked: Tensor) -> list[Tensor]:
    return [stacked] if stacked.dim() == 2 else list(stacked.unbind())
