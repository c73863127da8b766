"""Trace and verify the graph of every architecture in the zoo; write the table.

    python -m benchmarks graphs [NAME ...]     trace and verify all (or those of some names or libraries)
    python -m benchmarks graphs --render       write docs/graphs.md and its pictures from the last results again

For each: the graph is traced, f(P theta) = f(theta) is checked in float64 with every parameter randomised, every
axis is uncoupled alone to see that the check notices, and parameters go to torch_geometric data and back in every
style. The model must come out of it unchanged. `benchmarks/graphs_env.sh` makes the environment that this needs
(timm, torchvision and transformers are no dependencies of lopt). One architecture runs at a time, in a process that
is replaced if it dies or takes too long. Each row is stored, with its commit, as soon as it is there.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.zoo import ARCHITECTURES
from benchmarks.zoo.from_transformers import gpt2_of_full_size
from lopt.cli.arguments import Parser
from lopt.comparison.report import write_results
from lopt.errors import ConfigError
from lopt.files import write_atomically
from lopt.graph import ParameterGraph
from lopt.graph.draw import draw
from lopt.graph.pyg import from_pyg, to_pyg
from lopt.graph.pyg_styles import STYLES
from lopt.runs.provenance import provenance

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "graphs.json"
PAGE = HERE.parent / "docs" / "graphs.md"

PICTURES = {"GPT-2": "graph-gpt2.png", "resnet18": "graph-resnet18.png", "U-Net": "graph-unet.png"}
"""Architectures that are drawn, and the files in docs/images/."""

TOLERANCE = 1e-9
CONTROLS = 100
"""At most so many axes are permuted alone for one architecture, drawn at random where it has more."""

TIMEOUT = 600.0
"""Seconds for one architecture."""

LIBRARIES = ("torch", "torch_geometric", "torchvision", "timm", "transformers")


# -- one architecture -----------------------------------------------------------------------------------------------


def measure(name: str) -> dict[str, Any]:
    """Trace, verify and round-trip one architecture."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, args = ARCHITECTURES[name].build()
    before = _snapshot(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        graph = ParameterGraph.trace(model, args)
        seconds = time.perf_counter() - start
    report = graph.verify(model, args, max_controls=CONTROLS)
    permutable = [group for group in graph.groups if group.permutable]
    return {
        "parameters": graph.numel,
        "tensors": len(graph.parameters),
        "groups": len(permutable),
        "neurons": sum(group.size for group in permutable),
        "rung": graph.rung,
        "max_error": report.max_error,
        "controls": report.controls,
        "controls_detected": report.controls_detected,
        "inert": len(report.inert),
        "trace_seconds": round(seconds, 3),
        "round_trip": all(_round_trips(graph, model, style) for style in STYLES),
        "unchanged": _same(before, _snapshot(model)),
        "warnings": [str(w.message) for w in caught if w.category.__name__ == "GraphWarning"],
    }


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about the model that tracing and verifying must leave as it is."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: (id(t), t.detach().clone()) for name, t in tensors.items()},
        "training": [module.training for module in model.modules()],
        "rng": torch.get_rng_state(),
    }


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    tensors = a["tensors"].keys() == b["tensors"].keys() and all(
        x[0] == y[0] and torch.equal(x[1], y[1])
        for x, y in zip(a["tensors"].values(), b["tensors"].values(), strict=True)
    )
    return tensors and a["training"] == b["training"] and torch.equal(a["rng"], b["rng"])


def _round_trips(graph: ParameterGraph, model: nn.Module, style: str) -> bool:
    values: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    back = from_pyg(to_pyg(graph, values, style), graph)
    return all(torch.equal(back[name], values[name]) for name in graph.parameters)


def measure_meta() -> dict[str, Any]:
    """GPT-2 of 124 million parameters on the meta device: seconds to trace it."""
    model, args = gpt2_of_full_size()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        graph = ParameterGraph.trace(model, args)
        seconds.append(round(time.perf_counter() - start, 3))
    return {
        "parameters": graph.numel,
        "rung": graph.rung,
        "groups": len(graph.groups),
        "trace_seconds": seconds,
    }


# -- all of them -----------------------------------------------------------------------------------------------


class Worker:
    """One process that measures architectures in turn, and is replaced when it dies or hangs."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def __call__(self, name: str) -> dict[str, Any]:
        self.pool = self.pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self.pool.submit(measure, name).result(timeout=TIMEOUT)
        except (TimeoutError, BrokenProcessPool) as error:
            self.close()
            return {"error": f"{type(error).__name__} after at most {TIMEOUT:.0f} s"}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        if self.pool is not None:
            for process in list(self.pool._processes.values()):
                process.kill()
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def run(names: list[str]) -> None:
    """Measure the named architectures and put their rows into the results, in the order of the zoo."""
    commit, worker = provenance()["commit"], Worker()
    try:
        for name in tqdm(names, disable=not sys.stderr.isatty()):
            row = {"name": name, "library": ARCHITECTURES[name].library, "commit": commit, **worker(name)}
            print(_line(row), flush=True)
            rows = {old["name"]: old for old in _stored().get("rows", [])} | {name: row}
            _store({"rows": [rows[known] for known in ARCHITECTURES if known in rows]})
    finally:
        worker.close()


def _stored() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _store(changes: dict[str, Any]) -> None:
    write_results({**_stored(), **changes}, RESULTS)


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    done = [row for row in rows if "error" not in row]
    return {
        "architectures": len(rows),
        "raised": len(rows) - len(done),
        "traced": sum(row["rung"] == "traced" for row in done),
        "traced_without_warning": sum(row["rung"] == "traced" and not row["warnings"] for row in done),
        "largest_error": max(row["max_error"] for row in done),
        "errors_below_tolerance": sum(row["max_error"] < TOLERANCE for row in done),
        "controls": sum(row["controls"] for row in done),
        "controls_detected": sum(row["controls_detected"] for row in done),
        "round_trips": sum(row["round_trip"] for row in done),
        "unchanged": sum(row["unchanged"] for row in done),
        "median_trace_seconds": sorted(row["trace_seconds"] for row in done)[len(done) // 2],
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


# -- the page -----------------------------------------------------------------------------------------------


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']}: {row['error'].splitlines()[0]}"
    remark = f"; {row['warnings'][0]}" if row["warnings"] else ""
    return (
        f"{row['name']}: {row['rung']}, {row['groups']} groups, error {row['max_error']:.1e}, "
        f"controls {row['controls_detected']}/{row['controls']}, {row['trace_seconds']:.2f} s, "
        f"round trip {row['round_trip']}, unchanged {row['unchanged']}{remark}"
    )


def render(results: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    s, meta = results["summary"], results["gpt2_on_meta"]
    inert = sum(row.get("inert", 0) for row in results["rows"])
    head = f"""# Graphs of {s["architectures"]} architectures

Written by `{results["command"]}` from `benchmarks/results/graphs.json`. Every network is built from a config with
random weights, at the smallest size that keeps its structure. Each row there names its commit; seconds are of one
thread on a machine shared with other work.

- {s["traced"]} of {s["architectures"]} at rung `traced`, {s["traced_without_warning"]} of them with a rule for every
  operation that touches a parameter; {s["raised"]} raised.
- Largest relative |f(P theta) - f(theta)| in float64, all parameters randomised: {s["largest_error"]:.1e}.
- Negative controls: {s["controls_detected"]} of {s["controls"]} axes that were permuted alone changed an output;
  {inert} more belong to tensors that no output depends on here (a bias before a norm, say) and were not counted.
- Exact round trip through torch_geometric in all styles: {s["round_trips"]}; model left unchanged: {s["unchanged"]}.
- Seconds to trace: median {s["median_trace_seconds"]:.2f}; GPT-2 of {meta["parameters"]:,} parameters on the meta
  device: {min(meta["trace_seconds"]):.2f} (rung `{meta["rung"]}`).

*Groups* counts the permutable ones. *Error* is the largest relative one of the architecture. *Controls*: how many of
the axes permuted alone were noticed (all axes, or {CONTROLS} drawn at random where there are more).

| architecture | library | parameters | groups | rung | error | controls | trace, s | round trip |
|---|---|---:|---:|---|---:|---:|---:|---|
"""
    remarks = [f"- {row['name']}: {w}" for row in results["rows"] for w in row.get("warnings", [])]
    tail = "\n\n## Remarks of the tracer\n\n" + "\n".join(remarks) if remarks else ""
    pictures = "".join(f"\n\n![Parameter graph of {name}](images/{file})" for name, file in PICTURES.items())
    legend = "Depth runs to the right. Bars: groups of neurons; arrows: weights; dots: biases and scales."
    table = "\n".join(map(_markdown, results["rows"]))
    return f"{head}{table}\n\n## Pictures\n\n{legend}{pictures}{tail}\n"


def draw_pictures(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, file in PICTURES.items():
        model, args = ARCHITECTURES[name].build()
        draw(ParameterGraph.trace(model, args), folder / file, name)


def _markdown(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['name']} | {row['library']} | | | {row['error'].splitlines()[0]} | | | | |"
    cells = (
        row["name"], row["library"], f"{row['parameters']:,}", row["groups"], row["rung"], f"{row['max_error']:.0e}",
        f"{row['controls_detected']}/{row['controls']}", f"{row['trace_seconds']:.2f}",
        "exact" if row["round_trip"] else "NOT exact",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="an architecture or a library; default: all")
    parser.add_argument("--render", action="store_true", help="only write the page from the stored results")
    options = parser.parse_args()
    libraries = {a.library for a in ARCHITECTURES.values()}
    chosen = set() if options.render else {*options.names} or libraries
    unknown = sorted(chosen - libraries - ARCHITECTURES.keys())
    if unknown:
        raise ConfigError(f"there is no architecture or library {unknown[0]!r}; docs/graphs.md lists them")
    names = [name for name, a in ARCHITECTURES.items() if chosen & {name, a.library}]
    # Before any work: each row that failed would be stored in the place of one that did not.
    needed = {ARCHITECTURES[name].library.partition(".")[0] for name in (*names, *PICTURES)}
    missing = sorted(library for library in needed if find_spec(library) is None)
    if missing:
        raise ConfigError(
            f"expected {', '.join(sorted(needed))}, found no {missing[0]}: benchmarks/graphs_env.sh makes an"
            " environment that has them"
        )
    if not options.render:
        run(names)
        origin = {**provenance(), "command": "python -m benchmarks graphs"}
        summary = summarise(_stored()["rows"])
        _store(
            {**origin, "seed": 0, "versions": _versions(), "summary": summary, "gpt2_on_meta": measure_meta()}
        )
    write_atomically(PAGE, render(_stored()).encode())
    draw_pictures(PAGE.parent / "images")


if __name__ == "__main__":
    main()
