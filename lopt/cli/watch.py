"""`lopt watch`: how a training run stands, in plain text."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from lopt.cli.arguments import positive
from lopt.progress import SECONDS_BETWEEN_LINES

if TYPE_CHECKING:
    from pathlib import Path

    from lopt.runs.history import History
    from lopt.training.run_config import RunConfig

DESCRIPTION = """Print how a training run stands: progress, outer loss of each family, validation scores, step
sizes by class of tensor, what went wrong so far, throughput and memory. Reads the run folder only, so
it can look at a run on a shared disk, and at one that has ended.

examples:
  lopt watch runs/demo
  lopt watch runs/demo --live         redrawn in place until the run is over
  lopt watch runs/demo --every 10     printed again every 10 seconds until the run is over"""

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Characters of a curve."""
LIVE_SECONDS = 1.0
"""Between two looks at a run that is watched live."""
RECENT = 25
"""Outer steps that "now" is a mean over."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--every", type=positive, metavar="SECONDS", help="repeat until the run is over")
    live = "redraw in place until the run is over; where that is no terminal, a line now and then"
    parser.add_argument("--live", action="store_true", help=live)


def run(args: argparse.Namespace) -> int:
    from lopt import config as configs
    from lopt.runs.history import CONFIG_FILE, History, run_folder
    from lopt.training.run_config import RunConfig

    folder = run_folder(args.run)
    config = configs.load(RunConfig, folder / CONFIG_FILE, {})
    if args.live:
        follow(folder, config, args.every)
        return 0
    while True:
        history = History.read(folder)
        print(summary(config, history), flush=True)
        if args.every is None or is_over(config, history):
            return 0
        time.sleep(args.every)
        print()


def is_over(config: RunConfig, history: History) -> bool:
    """Whether the last validation, with which a run ends, is in the log."""
    return max((step for step, _ in history.series("validation")), default=0) >= config.meta.steps


def follow(folder: Path, config: RunConfig, every: float | None) -> None:
    """Show how a run stands until it is over, and then once more, to stay."""
    from lopt.runs.history import History

    on_terminal = sys.stdout.isatty()
    history = History.read(folder)
    with _screen() if on_terminal else nullcontext():
        while not is_over(config, history):
            text = summary(config, history)
            if on_terminal:
                columns, rows = shutil.get_terminal_size()
                _redraw([line[:columns] for line in text.splitlines()[:rows]])
            else:
                print(text.partition("\n")[0], flush=True)
            time.sleep(every or (LIVE_SECONDS if on_terminal else SECONDS_BETWEEN_LINES))
            history = History.read(folder)
    print(summary(config, history), flush=True)


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal's second screen, so that what stood on the first is there again at the end, also after ^C."""
    try:
        print("\x1b[?1049h\x1b[?25l", end="", flush=True)
        yield
    finally:
        print("\x1b[?1049l\x1b[?25h", end="", flush=True)


def _redraw(lines: Sequence[str]) -> None:
    # Each line is cleared behind its text, not the screen before all of it: that would flicker.
    print("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J", end="", flush=True)


def summary(config: RunConfig, history: History) -> str:
    """The whole report."""
    done, total = history.steps, config.meta.steps
    head = f"{config.name}: outer step {done} of {total} ({done / total:.0%}){_remaining(config, history)}"
    if not done:
        return f"{head}\nnothing logged yet"
    sections = [_losses(history), _validation(history), _steps(history), _health(history)]
    return "\n".join([head, *(line for section in sections for line in section)])


def _remaining(config: RunConfig, history: History) -> str:
    rates = history.values("inner_steps_per_second")[-RECENT:]
    left = config.meta.steps - history.steps
    if not rates or not left:
        return ""
    meta = config.meta
    each = (
        meta.cohorts_per_step * meta.truncation * meta.networks * sum(1 / rate for rate in rates) / len(rates)
    )
    return f", about {_duration(left * each)} left and time for validation"


def _losses(history: History) -> list[str]:
    lines = ["", f"{'outer loss':24}{'first':>9}{'now':>9}"]
    for name in ["outer_loss", *history.names("outer_loss/")]:
        values = history.values(name)
        label = "all" if name == "outer_loss" else name.removeprefix("outer_loss/")
        first, now = mean(values[:RECENT]), mean(values[-RECENT:])
        lines.append(f"  {label:22}{first:9.4f}{now:9.4f}  {sparkline(values)}")
    return lines


def _validation(history: History) -> list[str]:
    scores = {name: history.values(name) for name in ("validation", *history.names("validation/"))}
    if not scores["validation"]:
        return []
    lines = ["", f"{'validation':24}{'best':>9}{'now':>9}   (mean log relative loss)"]
    for name, values in scores.items():
        label = "all" if name == "validation" else name.removeprefix("validation/")
        lines.append(f"  {label:22}{min(values):9.4f}{values[-1]:9.4f}  {sparkline(values)}")
    return lines


def _steps(history: History) -> list[str]:
    lines = ["", f"{'steps of the rule':24}{'rms':>9}{'/ weights':>11}"]
    for name in history.names("step_rms/"):
        of_class = name.removeprefix("step_rms/")
        size, ratio = (mean(history.values(n)[-RECENT:]) for n in (name, f"update_ratio/{of_class}"))
        lines.append(f"  {of_class:22}{size:9.2g}{ratio:11.2g}")
    return lines


def _health(history: History) -> list[str]:
    counts = ", ".join(
        f"{history.last(name) or 0:.0f} {name}" for name in ("diverged", "skipped", "restarts")
    )
    shares = ", ".join(
        f"{mean(history.values(f'{name}_share')[-RECENT:]):.0%} {name}" for name in ("clipped", "dropped")
    )
    rates = history.values("inner_steps_per_second")[-RECENT:]
    speed = f"{mean(rates):.0f} inner steps per second, {history.last('memory_mib') or 0:.0f} MiB at most"
    gradient = mean(history.values("gradient_norm")[-RECENT:])
    return [
        "",
        counts,
        f"meta-gradients of single networks: {shares}",
        speed,
        f"norm of the meta-gradient {gradient:.3g}, now at rate {history.last('learning_rate'):.2g}",
    ]


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """A curve in one line of text: means over stretches, from the lowest to the highest."""
    count = min(width, len(values))
    stretches = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    points = [mean(stretch) for stretch in stretches]
    finite = [point for point in points if math.isfinite(point)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((p - low) * scale)] if math.isfinite(p) else "×" for p in points)


def mean(values: Sequence[float]) -> float:
    """Mean of the finite values; nan without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
