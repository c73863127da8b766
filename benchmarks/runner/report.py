"""From a summary to its section of the report: tables, pictures and what they were made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lopt.comparison.figures import Statistic
from lopt.files import write_atomically
from lopt.tables import aligned

TUNING = """Each baseline is tuned on its own on one validation seed, by the validation split (accuracy where
there is one, else loss): nine learning rates half a decade apart around its usual one with a cosine schedule,
up to two more beyond an end where the best one lies, then a constant and a one-cycle schedule at the best
rate and its two neighbours; schedule-free AdamW nine constant rates. The three best settings are tried on two
further validation seeds, and the best mean of the three meets the test seeds once. Figures are means ± standard
deviations over the test seeds; steps to a loss are those of the median over the seeds of curves averaged over
three fiftieths of the run; ms/step is processor time of the optimizer's step alone; "(edge)" marks a best rate
at the end of those tried; "failed" counts networks that were not finite, ended above three times their first
loss, or learned nothing (ended within 5 % of it)."""

HEADER = """# Benchmarks
Each section is made by `lopt benchmark NAME` from a log of runs (`results/NAME/log.jsonl`), in which every trained
network has a line with its seed, commit, machine and date. `lopt benchmark NAME` does only what the log does not
hold yet, so a benchmark can be stopped, continued and shared out among processes (`--only OPTIMIZER ...`);
`--report` makes the section anew from the log; `--quick` shows in minutes that it all runs. Losses stand in the
tables as plainly as wins.
"""


def write_section(path: Path, name: str, section: str) -> None:
    """Put a section between its markers into the report, in place of an older one or at the end."""
    text = path.read_text() if path.exists() else HEADER
    write_atomically(path, with_section(text, name, section).encode())


def with_section(text: str, name: str, section: str) -> str:
    """The report's text with a section in it."""
    start, end = f"<!-- {name}: made by lopt benchmark {name} -->", f"<!-- end of {name} -->"
    block = f"{start}\n{section.strip()}\n{end}\n"
    before, found, rest = text.partition(start + "\n")
    if not found:
        return f"{text.rstrip()}\n\n{block}"
    return before + block + rest.partition(end + "\n")[2]


def section(summary: Mapping[str, Any], pictures: Sequence[str], extra: str = "") -> str:
    """Heading, protocol, what the benchmark adds, a table for each task, pictures and provenance."""
    return "\n\n".join(
        [
            f"## {summary['title']}",
            f"`lopt benchmark {summary['benchmark']}`. {summary['protocol']}",
            " ".join(TUNING.split()),
            *([extra] if extra else []),
            *(task_table(name, task) for name, task in summary["tasks"].items()),
            *(f"![{summary['title']}]({path})" for path in pictures),
            _origin(summary["provenance"]),
        ]
    )


def task_table(name: str, task: Mapping[str, Any]) -> str:
    """One table, best optimizer first."""
    entries = task["entries"]
    accuracy = any("test_accuracy" in entry for entry in entries.values())
    header = [
        "optimizer", "lr, schedule", *(["test accuracy, %"] if accuracy else []), "test loss", "mean train loss",
        "final train loss", f"steps to {task['target']['of']}'s final loss",
        "ms/step" + (" (compiled)" if any(e["compiled_ms_per_step"] for e in entries.values()) else ""), "failed",
    ]  # fmt: skip
    rows = [_row(optimizer, entry, accuracy) for optimizer, entry in entries.items()]
    lines = [f"### {name}, {task['steps']:,} steps", aligned(header, rows)]
    if task["unfinished"]:
        lines.append(f"Not finished: {', '.join(task['unfinished'])}.")
    return "\n\n".join(lines)


def _row(name: str, entry: Mapping[str, Any], accuracy: bool) -> list[str]:
    reached, compiled = entry["steps_to_target"], entry["compiled_ms_per_step"]
    return [
        f"**{name}**" if entry["kind"] == "rule" else name,
        "its own" if entry["kind"] == "rule" else _setting(entry),
        *([percent(entry.get("test_accuracy"))] if accuracy else []),
        *(str(Statistic.read(entry[key])) for key in ("test_loss", "mean_train_loss", "final_train_loss")),
        "-" if reached is None else str(reached),
        f"{entry['ms_per_step']:.1f}" + (f" ({compiled:.1f})" if compiled else ""),
        f"{entry['failed']} of {len(entry['test_loss']['values'])}",
    ]


def _setting(entry: Mapping[str, Any]) -> str:
    return f"{entry['lr']:g}, {entry['schedule']}" + (" (edge)" if entry["at_edge"] else "")


def percent(share: Mapping[str, Any] | None) -> str:
    """A share in percent, mean ± deviation."""
    if share is None or share["mean"] is None:
        return "-" if share is None else "diverged"
    return f"{100 * share['mean']:.2f}" + ("" if share["std"] is None else f" ± {100 * share['std']:.2f}")


def _origin(provenance: Mapping[str, Any]) -> str:
    commits = ", ".join(commit[:8] + "+" * commit.endswith("+") for commit in provenance["commit"])
    return (
        f"{provenance['runs']} runs, {provenance['hours']} hours of {', '.join(provenance['cpu'])},"
        f" {', '.join(provenance['threads'])} thread(s), torch {', '.join(provenance['torch'])};"
        f" {provenance['first']} to {provenance['last']}; commit {commits}."
    )
