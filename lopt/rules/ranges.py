"""A step's arithmetic on a range of one tensor: pure functions that may be compiled, once for all lengths.

Shapes: n scalars of the range, K decays, R raw outputs; what is the same for all scalars is (1,) or ().
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.features import per_scalar
from lopt.numerics.moments import LIMIT, TINY, Moments
from lopt.numerics.rounding import rounded
from lopt.rules.directions import EPS, History
from lopt.rules.forms import FORMS


class Range(NamedTuple):
    """What a step is given of the range."""

    params: Tensor
    """(n,)"""
    grads: Tensor
    """(n,)"""
    momenta: Sequence[Tensor]
    """K rows (n,): of a stack of them the compiler would see one more size, the distance of rows."""
    second: Tensor
    """(n,)"""
    weights: Tensor
    """(2 K + 2,): those of what is new in the momenta and the second moment, and corrections of their bias; of the
    dtype that is computed in."""
    salt: Tensor | None = None
    """(1,) of `rounding`, where momenta and second moment are kept in fewer bits."""


class Seen(NamedTuple):
    """The scalars of a piece after the gradient has entered their history."""

    params: Tensor
    """(n,)"""
    grads: Tensor
    """(n,)"""
    rows: Tensor | Sequence[Tensor]
    """(K, n) running means, to be the next state."""
    second: Tensor
    """(n,) the same."""
    moments: Moments
    """The history without bias."""
    inverse: Tensor
    """(n,) 1 / (sqrt(v) + eps)."""
    before: Tensor
    """(n,) the fastest running mean without this gradient, until the next state is written over it."""

    @property
    def momenta(self) -> Tensor:
        """The rows as one tensor."""
        return self.rows if isinstance(self.rows, Tensor) else torch.stack(list(self.rows))


def after(given: Range) -> Seen:
    """The range with its new history."""
    kinds = len(given.momenta) + 1
    # Not in halves: in a kernel for all sizes that would be a division for every few scalars.
    new, factors = given.weights[:kinds].unbind(), given.weights[kinds:].unbind()
    dtype = given.weights.dtype
    p, g = (x.to(dtype).clamp(-LIMIT, LIMIT) for x in (given.params, given.grads))
    before = [m.to(dtype) for m in given.momenta]
    momenta = [m.lerp(g, weight) for m, weight in zip(before, new, strict=False)]
    second = given.second.to(dtype).lerp(g * g, new[-1])
    unbiased = [m * factor for m, factor in zip(momenta, factors, strict=False)]
    root = torch.sqrt(second * factors[-1] + TINY)
    return Seen(p, g, momenta, second, Moments(unbiased, root), inverse_of(root), before[0])


def inverse_of(root: Tensor) -> Tensor:
    """1 / (sqrt(v) + eps), Adam's."""
    return (root + EPS).reciprocal()


def pairs(seen: Seen, paced: bool) -> list[tuple[Tensor, Tensor]]:
    """Five pairs of rows (n,), or seven, the means of whose products `Statistics` are made of: squares at first.

    A pace asks how the gradient agrees with where the steps before it went, the momentum over the root.
    """
    p, g, m, root = seen.params, seen.grads, seen.moments.momenta[0], seen.moments.root
    squares, others = [p, g, m, root], [m]
    if paced:
        way = seen.before * seen.inverse
        squares.append(way)
        others.append(way)
    return [*((x, x) for x in squares), *((g, x) for x in others)]


def noise(seen: Seen) -> Iterator[tuple[Tensor, Tensor]]:
    """K + 1 pairs of rows (n,), whose products are the squares of squashed momenta and gradient over the root of the
    second moment."""
    unit = per_scalar.unit_of_squares(seen.moments.root)
    return (per_scalar.squashed_square(row, unit) for row in (*seen.moments.momenta, seen.grads))


def products(factors: Sequence[tuple[Tensor, Tensor]], more: int = 0) -> Tensor:
    """Of S pairs of rows (n,) -> their products (S + more, n), made where they will be; the last rows are left open."""
    rows = factors[0][0].new_empty(len(factors) + more, *factors[0][0].shape)
    for row, (a, b) in zip(rows.unbind(), factors, strict=False):
        torch.mul(a, b, out=row)
    return rows


def summands(seen: Seen, paced: bool, with_noise: bool) -> Tensor:
    """(S, n) what `sums` are sums of, of tensors gathered with their momenta (K, n) as one tensor."""
    momenta = seen.moments.momenta
    kinds = len(momenta) + 1 if with_noise else 0
    rows = products(pairs(seen, paced), kinds)
    if with_noise:
        assert isinstance(momenta, Tensor)
        unit = per_scalar.unit_of_squares(seen.moments.root)
        torch.mul(*per_scalar.squashed_square(momenta, unit), out=rows[-kinds:-1])
        torch.mul(*per_scalar.squashed_square(seen.grads, unit), out=rows[-1])
    return rows


def sums(given: Range, seen: Seen | None, paced: bool, with_noise: bool) -> tuple[Tensor, ...]:
    """Those of the products of `pairs` and of `noise`, each (); what is seen follows from what is given."""
    seen = seen or after(given)
    return tuple(inner(a, b) for a, b in chain(pairs(seen, paced), noise(seen) if with_noise else ()))


def features(given: Range, seen: Seen | None, relations: Tensor) -> Tensor:
    """(F, n), with the two numbers (2,) of the tensor that scalars are compared with."""
    seen = seen or after(given)
    return per_scalar.per_scalar_features(seen.params, seen.grads, seen.moments, None, *relations.unbind())


class Draft(NamedTuple):
    """A step before hidden matrices are orthogonalised, still to be decayed and bounded."""

    row: Tensor
    """(n,) the step, or of a hidden matrix what is to be orthogonalised."""
    squares: Tensor
    """() the sum of squares of the step; of a hidden matrix of what gives it its rms."""
    products: Tensor | None = None
    """() the sum of the step's products with the parameters."""
    length: Tensor | None = None
    """(n,) or (1,) of a hidden matrix what its direction will be multiplied by."""
    conditioner: Tensor | None = None
    """(n,) what its update form multiplies it by, before and after."""


def draft(
    given: Range,
    seen: Seen | None,
    rms: tuple[Tensor, Tensor],
    said: Tensor,
    log_rate: Tensor,
    gate: Tensor | None,
    how: tuple[str, Sequence[tuple[str, float]]],
    by_tensor: bool,
    hidden: bool,
    evened: bool,
) -> Draft:
    """The step by raw outputs (R, n), or by tensor by what is said (Q, 1); the new history is written over the old one.

    `rms` (1,) are those of the fastest momentum and of the second moment's root over the tensor; `how` is an update
    form with its directions, `evened` whether its conditioner counts. A gate, () bool, leaves the history as it is if
    it is false.
    """
    seen, form = seen or after(given), FORMS[how[0]]
    history = History(
        seen.params, seen.grads, seen.moments, seen.inverse, None, *rms,
        [seen.params.shape[0]], [None], by_tensor,
    )  # fmt: skip
    length, *others = said if by_tensor else form.said(said, log_rate, dict(how[1]))
    aim = form.aim(history, dict(how[1]), others)
    direction = aim.direction
    if hidden:
        conditioner = form.conditioner(history) if form.conditioner and evened else None
        momentum = aim.momentum(history)
        row = momentum if conditioner is None else conditioner * momentum
        drafted = Draft(row, inner(direction, direction), None, length, conditioner)
    else:
        row = length * direction
        drafted = Draft(row, inner(row, row), inner(row, seen.params))
    kept: Sequence[Tensor] = (*seen.rows, seen.second)
    if given.salt is not None:
        kept = rounded(kept, given.salt)
    for old, new in zip((*given.momenta, given.second), kept, strict=True):
        old.copy_(new if gate is None else torch.where(gate, new, old))
    return drafted


def turned(
    row: Tensor, conditioner: Tensor | None, length: Tensor, params: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """An orthogonalised row o (n,) becomes, in place, length c o, with the conditioner c.

    Gives sums of squares, of c o and of that, and of its products with the parameters (n,).
    """
    own = row if conditioner is None else row.mul_(conditioner)
    before = inner(own, own)
    own = own.mul_(length)
    return before, inner(own, own), inner(own, params.to(own.dtype).clamp(-LIMIT, LIMIT))


def ended(row: Tensor, params: Tensor, scale: Tensor, shrink: Tensor | None) -> None:
    """row <- scale row + shrink params, in place; `scale` and `shrink` are (1,)."""
    row.mul_(scale)
    if shrink is not None:
        row.addcmul_(params.to(row.dtype), shrink)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """(n,) and (n,) -> () sum of products."""
    return torch.dot(a, b)
