"""A picture of a GraphSpec: groups as bars, parameters as arrows between them.

Time runs to the right: each weight has a column of its own, in order of depth. A group of neurons is a bar from the
first weight that writes it to the last one that reads it, so that a residual stream is a long bar and the blocks
that read and write it stand above it. Atomic axes that only occur inside a product (head size in heads x head size)
share the bar of the outermost one. Parameters of one axis (biases, scales) are dots on the bar of their group.
Blocks that repeat are drawn once, in a frame that says how often.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from lopt.errors import GraphError
from lopt.files import user_path, write_picture
from lopt.graph.folds import Fold, folds, shared_name
from lopt.graph.pyg_styles import neuron
from lopt.graph.spec import GraphSpec, ParameterSpec, Segment
from lopt.graph.summary import group_names, totals

_SUFFIXES = (".png", ".svg", ".pdf")

_COLOURS = {
    "weight": "#4c72b0", "depthwise": "#64b5cd", "embedding": "#8172b3", "position": "#937860", "query": "#c44e52",
    "key": "#dd8452", "value": "#55a868", "output": "#2f6b3c", "bias": "#8c8c8c", "scale": "#ccb974",
    "shift": "#b5a642", "input_gate": "#c44e52", "forget_gate": "#dd8452", "cell_gate": "#55a868",
    "output_gate": "#8172b3", "reset_gate": "#c44e52", "update_gate": "#dd8452", "new_gate": "#55a868",
    "gate": "#da8bc3", "other": "#000000",
}  # fmt: skip

_READ, _WRITE = 0.3, 0.7
"""Where in its column a weight leaves the neurons it reads and meets those it feeds."""

_HALO = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}


@dataclass(frozen=True)
class _Arrow:
    """One block of a parameter with an in- and an out-axis."""

    parameter: str
    kind: str
    column: int
    source: Segment
    target: Segment


@dataclass
class _Bar:
    """One neuron axis and the columns over which it lives."""

    start: float = float("inf")
    end: float = float("-inf")
    lane: int = 0
    inner: dict[int, None] = field(default_factory=dict)
    """Further atomic axes of the neurons, in order of appearance."""
    dots: list[tuple[float, str]] = field(default_factory=list)

    def reach(self, neurons: Segment, position: float) -> None:
        self.start, self.end = min(self.start, position), max(self.end, position)
        self.inner.update(dict.fromkeys(neurons[1:]))


def draw(graph: GraphSpec, path: str | Path, title: str = "") -> None:
    """Write a picture of `graph` to `path`, in the format of its suffix: .png, .svg or .pdf.

    Raises `GraphError` for another suffix.
    """
    place = user_path(path)
    if place.suffix.lower() not in _SUFFIXES:
        raise GraphError(f"expected a picture named {', '.join(_SUFFIXES)}, found {str(path)!r}")
    write_picture(place, figure(graph, title), bbox_inches="tight", dpi=120)


def figure(graph: GraphSpec, title: str = "") -> Figure:
    """The picture as a matplotlib figure."""
    repeated = folds(graph)
    specs = _folded(graph, repeated)
    arrows = _arrows(graph, specs)
    bars = _bars(graph, specs, arrows)
    columns = 1 + max((arrow.column for arrow in arrows), default=0)
    lanes = 1 + max((bar.lane for bar in bars.values()), default=0)
    headroom = 0.4 if repeated else 0.0
    # A Figure of its own, not pyplot's: those register themselves for good, and choose a window system.
    fig = Figure(figsize=(min(max(1.1 * columns, 7), 80), 1.6 + lanes + headroom))
    ax = fig.add_subplot()
    for group, bar in bars.items():
        _draw_bar(ax, graph, group, bar)
    for _, parallel in itertools.groupby(
        arrows, key=lambda arrow: (arrow.parameter, arrow.source[0], arrow.target[0])
    ):
        for number, arrow in enumerate(parallel):
            _draw_arrow(ax, arrow, bars, shift=0.09 * number)
    for fold in repeated:
        _draw_frame(ax, graph, fold, arrows, lanes)
    shared = {
        same[0].name: shared_name([spec.name for spec in same])
        for fold in repeated
        for same in zip(*fold.blocks, strict=True)
    }
    for name, column in {arrow.parameter: arrow.column for arrow in arrows}.items():
        text = shared.get(name, name)
        ax.text(column + 0.5, -0.25, text, rotation=35, ha="right", va="top", fontsize=6.5, color="#444444")
    _draw_legend(ax, graph)
    ax.set_title("\n".join(filter(None, [title, totals(graph)])), fontsize=10, loc="left")
    ax.set_xlim(-0.3, columns + 0.3)
    ax.set_ylim(-0.9, lanes - 0.3 + headroom)
    ax.axis("off")
    return fig


# -- layout ---------------------------------------------------------------------------------------------------------


def _folded(graph: GraphSpec, repeated: Sequence[Fold]) -> list[ParameterSpec]:
    """The parameters that are drawn: of blocks that repeat the first one, of which what follows the last reads."""
    left_out = {spec.name for fold in repeated for block in fold.blocks[1:] for spec in block}
    specs = [spec for spec in graph.parameters.values() if spec.name not in left_out]
    for fold in repeated:
        drawn = {spec.name for spec in fold.blocks[0]}
        moved = dict(zip(fold.groups(len(fold.blocks) - 1), fold.groups(0), strict=True))
        specs = [spec if spec.name in drawn else spec.with_groups(moved) for spec in specs]
    return specs


def _arrows(graph: GraphSpec, specs: Sequence[ParameterSpec]) -> list[_Arrow]:
    """Every pair of neuron axes that a parameter connects; columns count the parameters by depth."""
    weights = [spec for spec in specs if {"in", "out"} <= set(spec.roles)]
    columns = {spec.name: column for column, spec in enumerate(sorted(weights, key=lambda spec: spec.depth))}
    arrows = []
    for spec in weights:
        kinds = spec.block_kinds or itertools.repeat(spec.kind)
        for kind, segments in zip(kinds, itertools.product(*spec.axes), strict=False):
            source, target = (_end(graph, spec, segments, role) for role in ("in", "out"))
            if target:
                arrows.append(_Arrow(spec.name, kind, columns[spec.name], source or target, target))
    return list(dict.fromkeys(arrows))


def _end(graph: GraphSpec, spec: ParameterSpec, segments: tuple[Segment, ...], role: str) -> Segment:
    """The neurons on the axis of a role; none where it is an empty axis, as that of a depthwise filter."""
    seen = [(r, neuron(graph, s)) for s, r in zip(segments, spec.roles, strict=True) if s]
    groups = graph.groups
    own = [
        neurons
        for r, neurons in seen
        if r == role and any(groups[g].size > 1 or groups[g].kind != "tap" for g in neurons)
    ]
    # The width of a class token (1, 1, width) is a tap to it, while the neurons that it feeds are those.
    instead = [neurons for r, neurons in seen if (role, r) == ("out", "tap")] if own else []
    permutable = (neurons for neurons in own + instead if any(groups[g].permutable for g in neurons))
    return next(permutable, next(iter(own), ()))


def _bars(graph: GraphSpec, specs: Sequence[ParameterSpec], arrows: list[_Arrow]) -> dict[int, _Bar]:
    bars: dict[int, _Bar] = {}
    for arrow in arrows:
        bars.setdefault(arrow.source[0], _Bar()).reach(arrow.source, arrow.column + _READ)
        bars.setdefault(arrow.target[0], _Bar()).reach(arrow.target, arrow.column + _WRITE)
    for neurons, position, kind in _dots(graph, specs, arrows):
        if bar := bars.get(next(iter(neurons), -1)):
            bar.dots.append((min(max(position, bar.start), bar.end), kind))
    _assign_lanes(bars)
    return bars


def _dots(
    graph: GraphSpec, specs: Sequence[ParameterSpec], arrows: list[_Arrow]
) -> Iterator[tuple[Segment, float, str]]:
    """(neuron axis, column, kind) of every segment of every parameter that is not an arrow."""
    columns = {arrow.parameter: arrow.column for arrow in arrows}
    depths = [(graph.parameters[name].depth, column) for name, column in columns.items()]
    for spec in specs:
        if spec.name in columns or "out" not in spec.roles:
            continue
        nearest = min(depths, key=lambda pair: abs(pair[0] - spec.depth), default=(0.0, 0))[1]
        axis = spec.axes[spec.roles.index("out")]
        kinds = spec.block_kinds or (spec.kind,) * len(axis)
        for segment, kind in dict.fromkeys(zip(axis, kinds, strict=False)):
            yield neuron(graph, segment), nearest + _WRITE, kind


def _assign_lanes(bars: dict[int, _Bar]) -> None:
    """Long bars at the bottom, each other one in the lowest lane where nothing is in its way."""
    taken: list[list[_Bar]] = []
    for bar in sorted(bars.values(), key=lambda bar: (bar.start - bar.end, bar.start)):
        free = (
            n for n, lane in enumerate(taken) if all(bar.end < b.start or b.end < bar.start for b in lane)
        )
        bar.lane = next(free, len(taken))
        if bar.lane == len(taken):
            taken.append([])
        taken[bar.lane].append(bar)


# -- drawing --------------------------------------------------------------------------------------------------------


def _draw_bar(ax: Axes, graph: GraphSpec, outer: int, bar: _Bar) -> None:
    hidden = graph.groups[outer].permutable
    ax.add_patch(
        FancyBboxPatch(
            (bar.start - 0.12, bar.lane - 0.11), bar.end - bar.start + 0.24, 0.22,
            boxstyle="round,pad=0,rounding_size=0.08", linewidth=1,
            facecolor="#dbe7f5" if hidden else "#eeeeee", edgecolor="#38506b" if hidden else "#999999",
        )
    )  # fmt: skip
    middle = min((bar.start + bar.end) / 2, bar.start + 1.2)
    text = _label(graph, outer, bar)
    ax.text(middle, bar.lane + 0.14, text, ha="center", va="bottom", fontsize=6.5, zorder=4, bbox=_HALO)
    for position, same in itertools.groupby(sorted(set(bar.dots)), key=lambda dot: dot[0]):
        for number, (_, kind) in enumerate(same):
            ax.plot(position + 0.07 * number, bar.lane, "o", color=_COLOURS[kind], markersize=3.5)


def _label(graph: GraphSpec, outer: int, bar: _Bar) -> str:
    """Names and sizes of the atomic axes, and what the neurons pass through."""
    names = group_names(graph)
    atoms = [f"{names[g]} ({graph.groups[g].size})" for g in (outer, *bar.inner)]
    activations = (graph.groups[g].activation for g in (outer, *bar.inner))
    activation = next((f"\n{name}" for name in activations if name), "")
    return " x ".join(filter(None, [atoms[0], ", ".join(atoms[1:])])) + activation


def _draw_arrow(ax: Axes, arrow: _Arrow, bars: dict[int, _Bar], shift: float) -> None:
    start = (arrow.column + _READ + shift, bars[arrow.source[0]].lane)
    end = (arrow.column + _WRITE + shift, bars[arrow.target[0]].lane)
    loop = arrow.source[0] == arrow.target[0]
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=8, linewidth=1.4, color=_COLOURS[arrow.kind], zorder=3,
            connectionstyle=f"arc3,rad={-0.9 if loop else 0}", shrinkA=0 if loop else 4, shrinkB=0 if loop else 4,
        )
    )  # fmt: skip


def _draw_frame(ax: Axes, graph: GraphSpec, fold: Fold, arrows: list[_Arrow], lanes: int) -> None:
    """A frame around the block that stands for all of a fold, with their number and what differs between them."""
    names = {spec.name for spec in fold.blocks[0]}
    columns = [arrow.column for arrow in arrows if arrow.parameter in names]
    left, right, top = min(columns) + 0.08, max(columns) + 0.92, lanes - 0.45
    ax.add_patch(
        FancyBboxPatch(
            (left, -0.2), right - left, top + 0.2, boxstyle="round,pad=0,rounding_size=0.1", linewidth=1,
            linestyle=(0, (4, 3)), facecolor="none", edgecolor="#8a5a00", zorder=1,
        )
    )  # fmt: skip
    number = f"$\\mathbf{{\\times\\,{len(fold.blocks)}}}$"
    text = "\n".join(filter(None, [f"{number}  {_varies(fold)}", _own(graph, fold)]))
    ax.text(left, top + 0.03, text, ha="left", va="bottom", fontsize=7.5, color="#8a5a00")


def _varies(fold: Fold) -> str:
    """What * stands for in the names of a fold: "* = 0 ... 11"."""
    rows = [block[0].name.split(".") for block in fold.blocks]
    differing = [column for column in zip(*rows, strict=False) if len(set(column)) > 1]
    return f"* = {differing[0][0]} ... {differing[0][-1]}" if differing else ""


def _own(graph: GraphSpec, fold: Fold) -> str:
    """The neurons that each block has for itself, by the names that those of the first one have."""
    names = group_names(graph)
    others = set(fold.groups(1))
    own = [names[g] for g in dict.fromkeys(fold.groups(0)) if g not in others and graph.groups[g].permutable]
    return f"each its own {', '.join(own)}" if own else ""


def _draw_legend(ax: Axes, graph: GraphSpec) -> None:
    kinds = dict.fromkeys(
        kind for spec in graph.parameters.values() for kind in spec.block_kinds or (spec.kind,)
    )
    handles = [Line2D([], [], color=_COLOURS[kind], marker="o", markersize=4, label=kind) for kind in kinds]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
