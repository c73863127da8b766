"""A GraphSpec as a table that people read."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from lopt.graph.spec import AxisGroup, GraphSpec, ParameterSpec, Segment

_SHORT = {"hidden": "h", "input": "in", "output": "out", "vocabulary": "vocab", "position": "pos"}

_SHOWN_MEMBERS = 3


def summary(graph: GraphSpec) -> str:
    """Parameters with their axes written as groups, then the groups, then totals.

    `[h1, in1 x 9]` reads: axis 0 is group h1, axis 1 is the product of group in1 and 9 taps; `h1|h2` is a
    concatenation; `emb.weight = head.weight` is one tied tensor. Groups marked * may be permuted.
    """
    names = group_names(graph)
    parameters = [
        (
            " = ".join([spec.name, *spec.aliases]),
            " x ".join(map(str, spec.shape)) or "scalar",
            axes_text(graph, spec, names),
            "|".join(dict.fromkeys(spec.block_kinds)) or spec.kind,
            f"{spec.depth:.2f}",
        )
        for spec in graph.parameters.values()
    ]
    groups = [
        (names[g.id] + "*" * g.permutable, str(g.size), g.kind, g.activation or "", _members(g))
        for g in graph.groups
        if g.kind != "tap"
    ]
    return "\n".join(
        [
            *_table(("parameter", "shape", "axes", "kind", "depth"), parameters),
            "",
            *_table(("group", "size", "kind", "activation", "members"), groups),
            "",
            totals(graph),
        ]
    )


def totals(graph: GraphSpec) -> str:
    """One line: how many scalars, parameters and groups there are, and how the graph was derived."""
    permutable = [g for g in graph.groups if g.permutable]
    return (
        f"{graph.numel:,} scalars in {len(graph.parameters)} parameters; {len(graph.groups)} groups, "
        f"{len(permutable)} of them permutable ({sum(g.size for g in permutable):,} neurons); rung: {graph.rung}"
    )


def group_names(graph: GraphSpec) -> dict[int, str]:
    """A short name for each group: h1, h2... for hidden ones, in1, out1...; a tap is written as its size."""
    counts: Counter[str] = Counter()
    names = {}
    for group in graph.groups:
        counts[group.kind] += 1
        short = _SHORT.get(group.kind, group.kind)
        names[group.id] = str(group.size) if group.kind == "tap" else f"{short}{counts[group.kind]}"
    return names


def axes_text(graph: GraphSpec, spec: ParameterSpec, names: dict[int, str]) -> str:
    """The axes of a parameter in the notation of `summary`; equal neighbouring segments are counted: `3(h1 x h2)`."""
    return "[" + ", ".join("|".join(_segments(axis, names)) for axis in spec.axes) + "]"


def _segments(axis: Sequence[Segment], names: dict[int, str]) -> Iterator[str]:
    for text, equal in itertools.groupby(" x ".join(names[g] for g in segment) or "1" for segment in axis):
        count = len(list(equal))
        yield text if count == 1 else f"{count}({text})"


def _members(group: AxisGroup) -> str:
    shown = [f"{name}[{axis}]" for name, axis in group.members[:_SHOWN_MEMBERS]]
    more = len(group.members) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    for row in (header, rule, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
