"""Networks as data: what metanets read off the weights of implicit networks, beside what they must beat.

    python -m benchmarks weight_space --quick                              minutes; digits, writes runs/benchmarks/quick
    python -m benchmarks weight_space --data ~/data --networks ~/networks --only ng_t+64 probes
    python -m benchmarks weight_space --report                             the summary from the log alone

The class of the image that a SIREN shows (2-32-32-1, of CIFAR-10 2-32-32-3, each from its own random initial weights,
300 steps of Adam). All readers see as many networks, in the same order, each through a random view of its image
(turned, stretched, sheared and shifted, of CIFAR-10 by half as much again and also mirrored: an exact change of the
first layer); AdamW at one rate for all; the weights that are best on the validation networks are tested once. Of
metanets with probes (+64) the part that reads functions alone is trained first, by itself, on ten times as many, which
takes it less time than the rest then does; the whole starts as that, and stays so if it never gets better. In the task
"dilation" metanets change the weights of the same networks until the image that they show is the dilated original (3 x
3), without views, 16 in a batch at rate 8e-3 where others have 64 at 2e-3; those with +64 are told what every neuron
says at 64 learned points, from the start; *4 is the mean of four edited networks, no_edit the error of networks as they
are, own_error that to their own images. With @4 or @8 they take so many learned steps down the gradient of the error to
an image that convolutions imagine (rate 4e-3; those learn first, in five times as many passes), adam with a learned
rate alone. "contrast" is the same with networks of CIFAR-10 and every pixel half as far again from the image's mean. In
"sines" readers tell amplitude, frequency and phase of the sines that small networks show: r2 is the share of variance
that they tell, the mean of the three. In "tickets" they say which twentieth of a fresh perceptron's weights to keep
(196-128-64-10, MNIST at 14 x 14), having seen others with the masks that magnitude pruning found: accuracy after
training, beside that with no mask (dense), the mask found for the very network (imp), and with as many weights of each
matrix chosen by chance or by size (random, magnitude); @inputs: of the first matrix also as many for each pixel.
Metanets see a fifth as many networks there. In "cnn-zoo" they tell the test accuracy of small convolutional classifiers
of CIFAR-10: Kendall's tau-b and r2 over checkpoints of networks never seen; tau_strata of pairs with one step, share of
data and third of the rates. In "cnn-zoo-fresh" the same readers are tested on networks made after all was chosen.
"wild-park" is of classifiers of many architectures, tested on architectures never seen: tau_architecture of pairs of
one, tau_activation of pairs with one activation and step; +64 as above, the functions first on twice as many;
"activation" is the mean of these alone. Every finished run is a line in benchmarks/results/weight_space/log.jsonl, and
no run is done twice: stop it whenever you like. The data sets of networks are made on the way, or gone on with.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.runner.log import Log, Record, canonical
from benchmarks.weight_space_tasks import cnn_zoo, cnn_zoo_fresh, sines, tickets, wild_park
from lopt.cli.arguments import Parser, positive
from lopt.comparison.report import write_results
from lopt.files import user_path
from lopt.runs.provenance import provenance
from lopt.tables import aligned
from lopt.training.runtime import prepare_cpu
from lopt.weight_space.editing import EDITING, edited_images, error_of, fit_editor, make_editor
from lopt.weight_space.fitting import FitOptions, Fitted, fit, mean_loss, predict
from lopt.weight_space.making import IMAGE_SETS, images_of, make
from lopt.weight_space.network_set import SPLITS, NetworkSet, Tensors
from lopt.weight_space.readers import PROBED, MetanetReader, Reader
from lopt.weight_space.sirens import SirenShape, grid, render
from lopt.weight_space.stepping import STEPPERS, STEPPING
from lopt.weight_space.symmetries import Views
from lopt.weight_space.systems import METANET_READERS, NAMES, make_reader
from meta_tasks.data.images import PUBLISHED_SIZES

RESULTS = Path(__file__).parent / "results"
QUICK = Path("runs/benchmarks/quick")
METHODS = (
    "pixels", "pixels_cnn", "probes", "probegen", "flat_mlp", "statnn", "ng_gnn+64", "ng_t+64", "nfn_np", "ng_gnn",
    "dwsnet", "nfn_hnp", "deepsets", "gmn", "ng_t", "scale_gmn", "signals",
)  # fmt: skip
"""In the order in which they are run: one seed of all before the next."""
EDITS = ("no_edit", "own_error", "nfn_np", "dwsnet", "nfn_np*4", "ng_gnn", "ng_t", "ng_t+64", "mlp@8")
READING = (*NAMES, *(f"{name}+64" for name in PROBED))
FORMS = (*METANET_READERS, *(f"{name}+64" for name in PROBED))
EDITORS = (
    *("no_edit", "own_error", *FORMS, *(f"{name}*4" for name in FORMS)),
    *(f"{name}@{steps}" for name in STEPPERS for steps in (4, 8)),
)
DILATION = "dilation"
EDITED = {DILATION: "dilate", "contrast": "contrast"}
"""Tasks of editors, and what the edit is called."""
FIRST = 10
"""Passes that the part of a metanet which reads functions alone has to itself, for each of the whole's."""
VIEWS = {"inr-cifar10": Views(degrees=18, stretch=0.18, shear=0.18, shift=0.15, mirror=True)}
"""Of tasks that have others than the rest, chosen on validation networks."""
TEST_VIEWS = 16
OWN = {
    "sines": sines,
    "tickets": tickets,
    "cnn-zoo": cnn_zoo,
    "cnn-zoo-fresh": cnn_zoo_fresh,
    "wild-park": wild_park,
}
"""Tasks with networks and budgets of their own."""


class Protocol(NamedTuple):
    """What every run of a task has in common."""

    tasks: tuple[str, ...]
    recipe: str
    networks: int
    passes: int
    seeds: int
    edited: dict[str, str]
    """Data sets of the networks of the tasks in `EDITED`."""
    rate: float = 2e-3


CPU = Protocol(
    ("inr-mnist", DILATION, *OWN),
    "siren300",
    8000,
    30_000,
    1,
    {DILATION: "inr-mnist", "contrast": "inr-cifar10"},
)
SMALL = Protocol(
    ("inr-digits", DILATION, *OWN), "siren300", 320, 1_500, 1, dict.fromkeys(EDITED, "inr-digits")
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m benchmarks weight_space",
        description=__doc__,
    )
    parser.add_argument("--quick", action="store_true", help="few networks of digits, few passes")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--tasks", nargs="+", choices=[*IMAGE_SETS, *EDITED, *OWN])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=sorted({*READING, *EDITORS, *(name for module in OWN.values() for name in module.METHODS)}),
    )
    parser.add_argument("--seeds", type=positive)
    parser.add_argument("--passes", type=positive, help="networks that each reader sees in training")
    parser.add_argument("--count", type=positive, help="networks in all")
    parser.add_argument("--data", metavar="DIR", help="folder of the images (default: $LOPT_DATA)")
    parser.add_argument("--networks", metavar="DIR", default="runs/networks", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    prepare_cpu()
    torch.set_num_threads(1)
    protocol = SMALL if args.quick else CPU
    chosen = {
        "tasks": args.tasks and tuple(args.tasks), "seeds": args.seeds, "passes": args.passes,
        "networks": args.count,
    }  # fmt: skip
    protocol = protocol._replace(**{key: value for key, value in chosen.items() if value})
    home = QUICK if args.quick else RESULTS
    log = Log(home / "weight_space")
    if not args.report:
        for task in protocol.tasks:
            if task in OWN:
                _run_own(task, args, protocol.seeds, log)
                continue
            known, usual = (EDITORS, EDITS) if task in EDITED else (READING, METHODS)
            methods = [name for name in args.only or usual if name in known]
            _run(task, protocol, user_path(args.networks), args.data, methods, log)
    found = summarise(log.records())
    write_results(found, home / "weight_space.json")
    print(report(found))


def _run(
    task: str, protocol: Protocol, folder: Path, data: str | None, methods: Sequence[str], log: Log
) -> None:
    name = protocol.edited.get(task, task)
    path = folder / f"{name}-{protocol.recipe}.safetensors"
    networks = make(name, protocol.recipe, protocol.networks, path, data)
    networks = networks.select(torch.arange(protocol.networks))
    for seed in range(protocol.seeds):
        for method in methods:
            key = {
                "task": task, "method": method, "seed": seed, "recipe": protocol.recipe,
                "networks": protocol.networks, "passes": protocol.passes, "rate": protocol.rate,
                **_further(task, method, protocol),
            }  # fmt: skip
            if not _is_done(key, log):
                if task in EDITED:
                    found = _edited(EDITED[task], method, networks, images_of(networks, data), protocol, seed)
                else:
                    found = _one(task, method, networks, protocol, seed)
                log.add({**key, **found, "provenance": provenance()})


def _further(task: str, method: str, protocol: Protocol) -> Record:
    """What is not alike for all methods."""
    if task in EDITED:
        options = STEPPING if "@" in method else EDITING
        return {} if method in ("no_edit", "own_error") else {"batch": options.batch, "rate": options.lr}
    views = VIEWS[task].model_dump(exclude_defaults=True) if task in VIEWS else {}
    return {**views, **({"first": FIRST * protocol.passes} if "+" in method else {})}


def _run_own(task: str, args: argparse.Namespace, seeds: int, log: Log) -> None:
    module = OWN[task]
    budget = {**(module.QUICK if args.quick else module.BUDGET)}
    budget |= {"passes": args.passes} if args.passes else {}
    budget |= {"networks": args.count} if args.count else {}
    for seed in range(seeds):
        for method in [name for name in args.only or module.METHODS if name in module.METHODS]:
            key = {"task": task, "method": method, "seed": seed, **budget}
            if not _is_done(key, log):
                found = module.run(method, budget, seed, user_path(args.networks), args.data)
                log.add({**key, **found, "provenance": provenance()})


def _is_done(key: Record, log: Log) -> bool:
    done = [canonical({name: record.get(name) for name in key}) for record in log.records()]
    return canonical(key) in done


def _one(task: str, method: str, networks: NetworkSet, protocol: Protocol, seed: int) -> Record:
    """Train and test one reader with one seed."""
    torch.manual_seed(seed)
    train, validation, test = (networks.split(name) for name in ("train", "validation", "test"))
    name, _, probes = method.partition("+")
    reader = make_reader(name, train, 10, int(probes or 0), PUBLISHED_SIZES[IMAGE_SETS[task]])
    shape, views = SirenShape(**networks.header["architecture"]), VIEWS.get(task, Views())

    def seen(params: Tensors, generator: torch.Generator) -> Tensors:
        return views(shape, params, generator)

    def fitted(part: Reader, passes: int) -> Fitted:
        return fit(
            part, train, train.columns["label"], FitOptions(passes=passes, lr=protocol.rate, seed=seed),
            (validation, validation.columns["label"]), seen, desc=f"{method} {seed}",
        )  # fmt: skip

    functions = reader.functions if isinstance(reader, MetanetReader) else None
    before = None if functions is None else fitted(functions, FIRST * protocol.passes)
    found = fitted(reader, protocol.passes)
    some = train.select(torch.arange(min(len(train), len(test))))
    return {
        "accuracy": _accuracy(predict(reader, test.params), test.columns["label"]),
        "accuracy_views": _accuracy(_of_views(reader, shape, views, test.params), test.columns["label"]),
        "train_accuracy": _accuracy(predict(reader, some.params), some.columns["label"]),
        **vars(found),
        **({} if before is None else {"before": vars(before)}),
        "meta_parameters": sum(parameter.numel() for parameter in reader.parameters()),
    }


def _edited(
    edit: str, method: str, networks: NetworkSet, images: Tensor, protocol: Protocol, seed: int
) -> Record:
    """Train and test one editor with one seed, or measure what it is held against."""
    test, wanted = networks.split("test"), edited_images(networks, images, edit, "test")
    if method in ("no_edit", "own_error"):
        points, low = grid(*images.shape[2:]), networks.header["recipe"]["low"]
        own = images[networks.splits == SPLITS.index("test")].flatten(2)
        shown = render(SirenShape(**networks.header["architecture"]), test.params, points)
        target = wanted if method == "no_edit" else own
        error = ((shown - low) / (1 - low) - target).square().mean().item()
        return {"mse_x100": 100 * error, "ms": 0.0, "seconds": 0.0, "meta_parameters": 0}
    form, _, copies = method.partition("*")
    form, _, steps = form.partition("@")
    name, _, probes = form.partition("+")
    torch.manual_seed(seed)
    editor = make_editor(
        networks.split("train"), name, int(copies or 1), int(probes or 0), int(steps or 0), images.shape[2:]
    )
    fitted = fit_editor(editor, networks, images, edit, editor.usual.but(passes=protocol.passes, seed=seed))
    return {
        "mse_x100": 100 * mean_loss(editor, test, wanted, error_of(networks, images)),
        **vars(fitted),
        "meta_parameters": sum(each.numel() for each in editor.parameters() if each.requires_grad),
    }


def _of_views(reader: Reader, shape: SirenShape, views: Views, params: Tensors) -> Tensor:
    """(N, 10): the mean logarithm of a class's chance over views of each network's image."""
    generator = torch.Generator().manual_seed(0)
    seen = [predict(reader, views(shape, params, generator)).log_softmax(1) for _ in range(TEST_VIEWS)]
    return torch.stack(seen).mean(0)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """task -> method -> figures over the seeds, and where they come from.

    Of each method its longest training, with as many networks as there were; the others are under "other_budgets".
    as_it_came: with how many seeds training made a reader no better, so that it is what it was before: a metanet with
    probes its reader of functions alone.
    """
    summary: dict[str, dict[str, Any]] = {}
    others: list[dict[str, Any]] = []
    for task in dict.fromkeys(record["task"] for record in records):
        own = [record for record in records if record["task"] == task]
        longest = {r["method"]: _budget(r) for r in sorted(own, key=lambda r: (r["passes"], r["networks"]))}
        for budget, method in dict.fromkeys((_budget(record), record["method"]) for record in own):
            same = [r for r in own if (_budget(r), r["method"]) == (budget, method)]
            figures = {**_figures(same), **dict(zip(BUDGET, budget, strict=True))}
            if _figure(task) == "tau":
                statnn = [r for r in own if (_budget(r), r["method"]) == (budget, "statnn")]
                figures |= cnn_zoo.beside(same, statnn)
            if budget == longest[method]:
                summary.setdefault(task, {})[method] = figures
            else:
                others.append({"task": task, "method": method, **figures})
    return {
        "benchmark": "weight_space",
        "protocol": " ".join((__doc__ or "").split("\n\n")[-1].split()),
        "summary": summary,
        "other_budgets": others,
        "hours": round(sum(record["seconds"] for record in records) / 3600, 2),
        "provenance": [record["provenance"] for record in records][-1:],
        "commits": sorted({str(record["provenance"]["commit"]) for record in records}),
    }


BUDGET = ("recipe", "networks", "passes", "rate")


def _budget(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in BUDGET)


FURTHER = ("train_accuracy", "overlap", "seen", "r2")


def _figures(records: Sequence[Record]) -> dict[str, Any]:
    figure = _figure(records[0]["task"])
    values = [record[figure] for record in records]
    shared = [name for name in records[0] if all(name in record for record in records)]
    further = [n for n in shared if (n in FURTHER and n != figure) or n.startswith(f"{figure}_")]
    return {
        figure: statistics.mean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
        **{name: statistics.mean(record[name] for record in records) for name in further},
        **({"as_it_came": came} if (came := sum(record.get("best") == -1 for record in records)) else {}),
        "ms": statistics.median(record["ms"] for record in records),
        "meta_parameters": records[-1]["meta_parameters"],
    }


def _figure(task: str) -> str:
    if task.startswith("cnn-zoo") or task == "wild-park":
        return "tau"
    return {**dict.fromkeys(EDITED, "mse_x100"), "sines": "r2"}.get(task, "accuracy")


HEADINGS = {
    "accuracy": ("test, %", 1),
    "mse_x100": ("test, MSE x 100", 2),
    "r2": ("test, R2", 3),
    "tau": ("test, tau-b", 3),
}
"""And decimals."""


def report(found: dict[str, Any]) -> str:
    """A table for each task, best first."""
    parts = []
    for task, methods in found["summary"].items():
        figure, sign = _figure(task), 1 if task in EDITED else -1
        rows = [
            [
                name, _spread(figure, f),
                *(f"{f[key]:.1f}" if key in f else "-" for key in ("accuracy_views", "train_accuracy")),
                f"{f['ms']:.2f}", f"{f['meta_parameters']:,}", f"{f['passes']:,}", str(f["seeds"]),
            ]
            for name, f in sorted(methods.items(), key=lambda item: sign * item[1][figure])
        ]  # fmt: skip
        header = [
            "method",
            HEADINGS[figure][0],
            "of views, %",
            "training, %",
            "ms/network",
            "meta-parameters",
            "passes",
            "seeds",
        ]
        parts.append(f"{task}\n\n{aligned(header, rows)}")
    parts += [
        f"{f['task']}, {f['method']} with {f['passes']:,} passes over {f['networks']:,} networks: "
        f"{_figure(f['task'])} {_spread(_figure(f['task']), f)}"
        for f in found["other_budgets"]
    ]
    return "\n\n".join(parts)


def _spread(figure: str, figures: dict[str, Any]) -> str:
    digits, deviation = HEADINGS[figure][1], figures["deviation"]
    mean = f"{figures[figure]:.{digits}f}"
    return mean if deviation is None else f"{mean} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    main()
