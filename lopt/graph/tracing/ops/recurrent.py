"""Recurrent layers and cells, each as one operation: gates are segments of the weights' first axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lopt.graph.tracing.axes import Axis, cut, join, unify
from lopt.graph.tracing.ops.shape import segmented
from lopt.graph.tracing.ops.table import rule
from lopt.graph.tracing.speech import Speech
from lopt.graph.tracing.values import Dim, Origin, Value

GATES = {
    "lstm": ("input_gate", "forget_gate", "cell_gate", "output_gate"),
    "gru": ("reset_gate", "update_gate", "new_gate"),
    "rnn": ("weight",),
}
"""The order of the gates in the weights of `torch.nn`."""

ACTIVATION = {"lstm": "tanh", "gru": "tanh", "rnn": None}


def cell(s: Speech, kind: str, x: Dim, weights: Sequence[Value | None]) -> tuple[Axis, Axis]:
    """Tie one layer and direction: (output axis, hidden axis); they differ in an LSTM with a projection.

    weights: w_ih (gates x H, in), w_hh (gates x H, out), b_ih, b_hh, w_hr (out, H).
    """
    padded: list[Value | None] = [*weights, *[None] * (5 - len(weights))]
    w_ih, w_hh, b_ih, b_hh, w_hr = padded
    assert w_ih is not None
    assert w_hh is not None
    gates = GATES[kind]
    hidden = Axis(w_ih.dims[0].size // len(gates))
    hidden.activation = ACTIVATION[kind]
    out = hidden if w_hr is None else Axis(w_hr.dims[0].size)
    for w, read in ((w_ih, x), (w_hh, Dim(out.size, out))):
        _gates(s, w.dims[0], hidden, len(gates))
        s.tie(w.dims[1], read)
        _name_gates(s, w, gates)
    for b in (b_ih, b_hh):
        if b is not None:
            _gates(s, b.dims[0], hidden, len(gates))
            s.kind(b, "bias")
            s.role(b.dims[0], "out")
    if w_hr is not None:
        s.tie(w_hr.dims[0], Dim(out.size, out))
        s.tie(w_hr.dims[1], Dim(hidden.size, hidden))
        s.kind(w_hr, "output")
        s.role(w_hr.dims[0], "out")
        s.role(w_hr.dims[1], "in")
    return out, hidden


def _gates(s: Speech, dim: Dim, hidden: Axis, count: int) -> None:
    assert dim.axis is not None
    segments = cut(dim.axis, [hidden.size] * count)
    if segments is None:
        s.fix(dim)
        s.fix(Dim(hidden.size, hidden))
        return
    for segment in segments:
        unify(segment, hidden)


def _name_gates(s: Speech, w: Value, gates: Sequence[str]) -> None:
    s.kind(w, "weight")
    s.role(w.dims[0], "out")
    s.role(w.dims[1], "in")
    size = w.dims[0].size // len(gates)
    for k, gate in enumerate(gates):
        parts = frozenset(Origin(o.tensor, o.axis, k * size, (k + 1) * size) for o in w.dims[0].origin)
        if gate != "weight":
            s.refine(parts, gate)


def _layers(s: Speech, kind: str, x: Dim, states: Sequence[Value], flat: Sequence[Value], biased: bool,
            layers: int, directions: int) -> tuple[Dim, list[list[Axis]]]:  # fmt: skip
    """All layers on top of each other; the last output and, for each state, its axis per layer and direction."""
    per = len(flat) // (layers * directions)
    axes: list[list[Axis]] = [[] for _ in states]
    for layer in range(layers):
        outs = []
        for direction in range(directions):
            start = (layer * directions + direction) * per
            weights = list(flat[start : start + per])
            if not biased:  # else a projection would stand where a bias is looked for
                weights[2:2] = [None, None]  # type: ignore[list-item]
            out, hidden = cell(s, kind, x, weights)
            outs.append(out)
            for state, axis in zip(axes, (out, hidden), strict=False):
                state.append(axis)
        joined = join(outs)
        x = Dim(joined.size, joined)
    return x, axes


class Arguments(NamedTuple):
    """Of a recurrent layer, in ATen's order but for the batch sizes of packed sequences."""

    data: Value
    states: Any
    weights: Sequence[Value]
    biased: bool
    layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool | None = None


@rule("lstm", "gru", "rnn")
def layers(s: Speech, *args: Any) -> list[Any]:
    """All layers of a network: output, last hidden states and, of an LSTM, last cell states."""
    # Behind the data come the batch sizes of packed sequences, or the states; then states, or weights.
    packed = isinstance(args[1], Value) and isinstance(args[3], list | tuple)
    given = Arguments(args[0], *args[1 + packed :])
    x, feature = given.data, 1 if packed else 2
    states = [given.states] if isinstance(given.states, Value) else list(given.states)
    directions = 2 if given.bidirectional else 1
    out, axes = _layers(
        s, s.call.name, x.dims[feature], states, given.weights, given.biased, given.layers, directions
    )
    for state, own in zip(states, axes, strict=True):
        s.fix(state.dims[0])  # layers and directions
        for axis in own:
            s.tie(state.dims[-1], Dim(axis.size, axis))
    s.mark = None
    s.fix(*x.dims[:feature])
    finals = []
    for own, shape in zip(axes, s.shapes[1:], strict=True):
        parts = [Value((Dim(1, None), s.fixed(shape[1]), Dim(a.size, a)), pure=False) for a in own]
        finals.append(segmented(parts, 0))
    return [(*x.dims[:feature], Dim(out.size, out.axis)), *finals]


@rule("lstm_cell", "gru_cell", "rnn_cell")
def cell_step(s: Speech, x: Value, states: Any, *weights: Value | None) -> list[Any]:
    """One step of a cell."""
    _, hidden = cell(s, s.call.name.removesuffix("_cell"), x.dims[-1], weights)
    for state in [states] if isinstance(states, Value) else states:
        s.tie(state.dims[-1], Dim(hidden.size, hidden))
    s.mark = None
    return [(*x.dims[:-1], Dim(hidden.size, hidden))] * len(s.shapes)


@rule("_pack_padded_sequence")
def pack(s: Speech, x: Value, lengths: Value, batch_first: bool) -> list[Any]:
    """(batch, time, *features) or (time, batch, *features) -> (steps of all sequences, *features)."""
    s.fix(*x.dims[:2])
    return [(s.fixed(s.shapes[0][0]), *x.dims[2:]), None]


@rule("_pad_packed_sequence")
def unpack(s: Speech, x: Value, *args: Any) -> list[Any]:
    """The inverse of `pack`."""
    s.fix(x.dims[0])
    return [(*[s.fixed(n) for n in s.shapes[0][:2]], *x.dims[1:]), None]
