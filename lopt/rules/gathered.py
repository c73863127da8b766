"""The end of a step on small tensors that are gathered in one piece: as in `parted`, but in few calls for all of them.

Shapes: n scalars of the piece, b tensors in it, M members of theirs, B parameters (tensors).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lopt.numerics.segments import segment_expand, segment_sum
from lopt.rules.directions import History
from lopt.rules.ends import Ends, Limits, scales_of
from lopt.rules.forms import Aim, Form
from lopt.rules.observing import View
from lopt.rules.ranges import products
from lopt.rules.whitening import orthogonalised_members


def finished(
    view: View,
    ends: Ends,
    form: Form,
    history: History,
    length: Tensor,
    aim: Aim,
    limits: Limits,
) -> list[Tensor]:
    """(N,) deltas of the piece's tensors, within limits.

    The step is a length, (n,) or by tensor (b,), and an aim, as an update form has them.
    """
    direction = aim.direction
    turned = _turned(form, history, aim) if ends.hidden else direction
    rows = turned if history.by_tensor else length * turned
    pairs = [(rows, rows), (rows, history.params)]
    if ends.hidden:
        pairs = [(direction, direction), *([] if history.by_tensor else [(turned, turned)]), *pairs]
    sums = view.held.summed(segment_sum(products(pairs), ends.sizes))
    lengths = length if history.by_tensor else None
    scales, shrinks = scales_of(sums, ends, view, limits, lengths)
    deltas = rows * segment_expand(scales, ends.sizes, ends.member.to(rows.device))
    if shrinks is not None:
        deltas.addcmul_(history.params, history.expanded(shrinks))
    return [*deltas.split(history.sizes)]


def _turned(form: Form, history: History, aim: Aim) -> Tensor:
    """(n,) the direction d, of hidden matrices c O(c sqrt(v) d), with a conditioner c where nothing whitens them."""
    hidden = {i: read for i, read in enumerate(history.hidden) if read is not None}
    evened = [i for i in hidden if history.around[i] is None]
    momenta = aim.momentum(history).split(history.sizes)
    turned = list(aim.direction.split(history.sizes))
    conditioners: list[Tensor] = []
    if form.conditioner and evened:
        each = form.conditioner(history).split(history.sizes)
        conditioners = [each[i] for i in evened]
        torch._foreach_mul_([momenta[i] for i in evened], conditioners)
    given = [momenta[i].reshape(read).unbind() for i, read in hidden.items()]
    found = orthogonalised_members(given, [history.around[i] for i in hidden])
    for i, members in zip(hidden, found, strict=True):
        rows = [member.reshape(-1) for member in members]
        turned[i] = rows[0] if len(rows) == 1 else torch.cat(rows)
    if conditioners:
        torch._foreach_mul_([turned[i] for i in evened], conditioners)
    return torch.cat(turned)
