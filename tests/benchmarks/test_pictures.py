"""What can be read off a picture of a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.runner.pictures import COLOURS, plot_styles, plot_tasks, set_log_scale

STRONG = COLOURS[::2]


def test_baselines_and_the_rules_that_ship_have_the_strong_colours_however_many_rules_there_are() -> None:
    main = {"adam": "baseline", "muon": "baseline", "lopt-base": "rule", "lopt-small": "rule"}
    others = {f"a-rule-{k}": "rule" for k in range(14)}
    styles = plot_styles({**others, **main})
    assert all(styles[name]["color"] in STRONG for name in main)
    assert len({style["color"] for style in styles.values()}) == len(styles)


def test_no_two_of_many_curves_look_alike() -> None:
    kinds = {f"baseline-{k}": "baseline" for k in range(8)} | {f"rule-{k}": "rule" for k in range(30)}
    styles = plot_styles(kinds)
    assert len({tuple(style.values()) for style in styles.values()}) == len(kinds)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((0.3, 2.5), {"0.3", "0.4", "0.6", "1", "2"}), ((1e-3, 20.0), {"0.001", "0.01", "0.1", "1", "10"})],
)
def test_logarithmic_axes_have_plain_numbers_and_few_of_them(
    limits: tuple[float, float], expected: set[str]
) -> None:
    figure = Figure()
    axes = figure.subplots()
    set_log_scale(axes)
    axes.set_ylim(*limits)
    FigureCanvasAgg(figure).draw()
    low, high = limits
    shown = {
        label.get_text()
        for label in axes.get_yticklabels(which="both")
        if label.get_text() and low <= float(label.get_text()) <= high
    }
    assert shown == expected


@pytest.mark.parametrize("count", [3, 20, 45])
def test_the_legend_is_inside_the_picture(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    curve = {"steps": [1.0, 2.0], "train_loss": [[2.0, 1.0], [2.0, 0.5]]}
    entries = {f"metanets-of-some-kind-{k}": {"kind": "rule", "curve": curve} for k in range(count)}
    tasks = {task: {"entries": entries, "steps": 2} for task in ("one", "two")}
    plot_tasks({"tasks": tasks}, tmp_path / "unused.png")
    (figure,) = figures
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert box.x0 >= max(axes.get_window_extent().x1 for axes in figure.get_axes())
