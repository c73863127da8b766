"""A run as one HTML page that needs nothing else: what it learned, where its time went, and how it was made."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lopt.runs import pictures
from lopt.runs.history import History
from lopt.runs.pictures import Drawing

INK = "#010203"
"""The colour of text and axes, of which the page makes the reader's: dark on light, or light on dark."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6775; --paper: #fbfbfa; --card: #ffffff; --line: #dfe3e8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ed; --soft: #9aa6b2; --paper: #14181d; --card: #1b2128; --line: #303842; }
}
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.lead { color: var(--soft); margin: .2rem 0 1rem; }
.figures { display: flex; flex-wrap: wrap; gap: .6rem; }
.figures div, .pictures svg, pre, .wide { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.figures div { padding: .5rem .9rem; } .figures b { display: block; font-size: 1.25rem; }
.figures span, th { color: var(--soft); font-size: .85rem; font-weight: 500; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: .8rem; }
.pictures svg { width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } tr:last-child td { border-bottom: 0; }
pre { padding: .8rem 1rem; overflow-x: auto; font-size: 13px; } summary { cursor: pointer; margin-top: 1.2rem; }
"""

SECTIONS: dict[str, tuple[Drawing, ...]] = {
    "Learning": (pictures.outer_losses, pictures.validation_scores, pictures.validation_curves),
    "Steps of the rule": (pictures.step_sizes, pictures.update_ratios),
    "Health and time": (pictures.meta_gradient, pictures.shares, pictures.where_time_goes),
}


def page(
    name: str, total_steps: int, history: History, config: str, provenance: Mapping[str, Any] | None
) -> str:
    """The page of a run of `total_steps` outer steps.

    config: its text as it is to be shown. provenance: of the rule that the run keeps, if there is one by now.
    """
    done = history.steps
    state = "finished" if done >= total_steps else "not finished"
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="lead">meta-training, {state}: outer step {done} of {total_steps}</p>',
        _figures(history),
        "<h2>Validation by task</h2>",
        _validation(history),
    ]
    for title, drawings in SECTIONS.items():
        parts += [
            f"<h2>{title}</h2>",
            '<div class="pictures">',
            *(_svg(d, history) for d in drawings),
            "</div>",
        ]
    made = {key: value for key, value in (provenance or {}).items() if not isinstance(value, Mapping)}
    if made:
        parts += ["<h2>How the rule was made</h2>", _table(("", ""), [(k, str(v)) for k, v in made.items()])]
    parts.append(f"<details open><summary>config.yaml</summary><pre>{escape(config)}</pre></details>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>{escape(name)}: a run of lopt</title>"
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}{title}<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _figures(history: History) -> str:
    scores, wall = history.values("validation"), sum(history.values("seconds"))
    speeds = history.values("inner_steps_per_second")
    figures = {
        "best validation score": f"{min(scores):.3f}" if scores else "-",
        "of the fresh rule": f"{scores[0]:.3f}" if scores else "-",
        "wall-clock": f"{wall / 60:.1f} min" if wall >= 100 else f"{wall:.0f} s",
        "network steps per second": f"{sum(speeds) / len(speeds):,.0f}" if speeds else "-",
        "memory": f"{history.last('memory_mib') or 0:,.0f} MiB",
        **{
            label: f"{history.last(key) or 0:.0f}"
            for key, label in {
                "diverged": "networks diverged",
                "restarts": "networks restarted",
                "skipped": "cohorts' meta-gradients skipped",
            }.items()
        },
        **{
            f"of networks' meta-gradients {name}": f"{sum(found) / len(found):.0%}"
            for name in ("clipped", "dropped")
            if (found := history.values(f"{name}_share"))
        },
    }
    cards = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for label, value in figures.items())
    return f'<div class="figures">{cards}</div>'


def _validation(history: History) -> str:
    """Each task's score fresh, at its best and now; a score is a logarithm, so differences are shares of the loss."""
    rows = []
    for name in ("validation", *history.names("validation/")):
        series = history.series(name)
        if not series:
            return "<p>No validation so far.</p>"
        fresh, now = series[0][1], series[-1][1]
        step, best = min(series, key=lambda pair: pair[1])
        label = "mean of all" if name == "validation" else name.removeprefix("validation/")
        change = math.expm1(now - fresh)
        rows.append((label, f"{fresh:.3f}", f"{best:.3f}", str(step), f"{now:.3f}", f"{change:+.1%}"))
    header = ("task", "fresh", "best", "at outer step", "now", "loss, now against fresh")
    return _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = line(header, "th") if any(header) else ""
    return f'<div class="wide"><table>{head}{"".join(line(row, "td") for row in rows)}</table></div>'


def _svg(drawing: Drawing, history: History) -> str:
    """A drawing as an SVG element that takes the page's width and ink."""
    # Text stays text, to be searched and copied. Ids are hashes of the salt and of what they name: one salt for each
    # picture, as all of them end up in one document.
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": drawing.__name__, **dict.fromkeys(colours, INK)}
    buffer = io.StringIO()
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4, 3.9), layout="constrained")
        pictures.draw(figure.add_subplot(), history, drawing)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    element = re.search(r"<svg.*</svg>", buffer.getvalue(), re.DOTALL)
    assert element is not None
    svg = re.sub(r"<metadata>.*?</metadata>", "", element[0], flags=re.DOTALL)
    svg = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    return svg.replace(INK, "currentColor")
