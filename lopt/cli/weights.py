"""`lopt weights`: networks as data."""

from __future__ import annotations

import argparse
from pathlib import Path

from lopt.cli.arguments import positive
from lopt.errors import ConfigError
from lopt.files import output_path

DESCRIPTION = """Networks as data.

  make    fit thousands of implicit networks (SIREN), one to each image of a data set, and audit them;
          or to sines; prune perceptrons, for the masks of their winning tickets; or train small
          convolutional classifiers, of one architecture (cnn-zoo) or of many (wild-park), with their
          accuracy at several checkpoints.
          Stop it whenever you like: the same command goes on, also with a larger --count
  train   a reader that tells a number known of each network of a set or park, one that was made here or
          by `collect` or `collect_park` of `lopt.weight_space`, of your own; or, of SIRENs, an editor
          A reader that grades (--reader graded) runs each network on given images, without labels
  predict what the weights of a network tell of it, with an interval: no data are needed. A reader trained
          on a park tells it of each network of a park
  edit    change the weights of a SIREN so that the image that it shows is edited

examples:
  lopt weights make inr-mnist --count 8000 --data ~/data --out mnist.safetensors
  lopt weights make inr-digits --count 320 --out digits.safetensors
  lopt weights make sines --count 2000 --out sines.safetensors
  lopt weights make tickets --count 256 --data ~/data --out tickets.safetensors
  lopt weights make cnn-zoo --count 2000 --data ~/data --out zoo.safetensors
  lopt weights make wild-park --count 1536 --data ~/data --out park.safetensors
  lopt weights train zoo.safetensors --tell accuracy --out accuracy.safetensors
  lopt weights predict mine.safetensors --reader accuracy.safetensors
  lopt weights train zoo.safetensors --reader graded --data ~/data --out graded.safetensors
  lopt weights train park.safetensors --reader ng_gnn --probes 64 --out any.safetensors
  lopt weights train mnist.safetensors --edit dilate --reader mlp --steps 8 --data ~/data --out dilate.safetensors
  lopt weights edit mine.safetensors --editor dilate.safetensors --out thick.safetensors"""


SETS = [
    *("inr-mnist", "inr-fashion", "inr-cifar10", "inr-digits", "sines", "tickets", "tickets-digits"),
    *("cnn-zoo", "cnn-zoo-tanh", "cnn-zoo-digits", "wild-park", "wild-park-digits"),
]
RECIPES = ["siren300", "siren1000", "dws"]
"""What `lopt.weight_space`, which needs torch, knows how to make."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = commands.add_parser("make", help="train networks", allow_abbrev=False)
    make.add_argument("name", choices=SETS, help="the data set of networks")
    make.add_argument("--recipe", choices=RECIPES, help="of networks of images (default: siren300)")
    make.add_argument(
        "--count",
        type=positive,
        help="networks (default: 8000 of images, 2000 of sines and of a zoo, 1536 of a park, 256 tickets)",
    )
    make.add_argument("--data", metavar="DIR", help="folder of the images (default: $LOPT_DATA)")
    make.add_argument(
        "--out", metavar="FILE", required=True, help="the safetensors file to write or go on with"
    )
    train = commands.add_parser("train", help="train a reader or an editor", allow_abbrev=False)
    train.add_argument("networks", metavar="NETWORKS", help="a set or a park of networks")
    what = train.add_mutually_exclusive_group()
    what.add_argument("--tell", metavar="COLUMN", default="accuracy", help="(default: %(default)s)")
    what.add_argument(
        "--edit", metavar="NAME", help="of the images of SIRENs that lopt made: dilate or contrast"
    )
    train.add_argument(
        "--reader",
        metavar="NAME",
        default="nfn_np",
        help="a metanet, statnn, graded... (default: %(default)s)",
    )
    train.add_argument(
        "--probes",
        type=positive,
        help="inputs whose answers it reads, too, of lopt's networks (editors: ng_gnn, ng_t)",
    )
    train.add_argument(
        "--steps", type=positive,
        help="of an editor: learned steps in place of one look (reader adam, mlp or a metanet; 8 are a good number)",
    )  # fmt: skip
    train.add_argument(
        "--images", metavar="FILE",
        help="of a reader that grades: a tensor of images as networks see them (default: some that lopt's own learned)",
    )  # fmt: skip
    train.add_argument(
        "--passes", type=positive,
        help="networks to see in training (default: 12000, of editors 50000, of graders 120000)",
    )  # fmt: skip
    train.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    train.add_argument("--data", metavar="DIR", help="folder of the images (default: $LOPT_DATA)")
    train.add_argument("--out", metavar="FILE", required=True, help="the safetensors file to write")
    tell = commands.add_parser("predict", help="a number that weights tell", allow_abbrev=False)
    tell.add_argument(
        "networks", metavar="MODEL", nargs="+", help="a safetensors or torch file of tensors; or a park"
    )
    tell.add_argument(
        "--reader", metavar="FILE", default="cnn-zoo",
        help="what `lopt weights train` wrote, or one that ships with lopt (default: %(default)s)",
    )  # fmt: skip
    tell.add_argument("--coverage", type=float, default=0.9, help="of the interval (default: %(default)s)")
    edit = commands.add_parser("edit", help="change what a SIREN shows", allow_abbrev=False)
    edit.add_argument("network", metavar="MODEL", help="a safetensors or torch file of tensors")
    edit.add_argument("--editor", metavar="FILE", required=True, help="what `lopt weights train` wrote")
    edit.add_argument("--out", metavar="FILE", required=True, help="the safetensors file to write")


def run(args: argparse.Namespace) -> int:
    from lopt.training.runtime import prepare_cpu

    prepare_cpu()
    return {"make": _make, "train": _train, "predict": _predict, "edit": _edit}[args.action](args)


def _train(args: argparse.Namespace) -> int:
    from lopt.weight_space.editing import EDITING, train_editor
    from lopt.weight_space.given_images import images_in, training_images
    from lopt.weight_space.grading import GRADED
    from lopt.weight_space.making import images_of
    from lopt.weight_space.network_park import load_any
    from lopt.weight_space.network_set import load
    from lopt.weight_space.predictor import GRADING, OPTIONS, train_predictor
    from lopt.weight_space.stepping import STEPPING

    out = output_path(args.out, args.networks, *([args.images] if args.images else []))
    chosen = {"seed": args.seed, **({"passes": args.passes} if args.passes else {})}
    graded = args.reader == GRADED and args.edit is None
    if args.images and not graded:
        raise ConfigError(f"--images: expected it beside --reader {GRADED} alone, found {args.images}")
    if args.steps and args.edit is None:
        raise ConfigError(f"--steps: expected it beside --edit alone, found {args.steps}")
    if args.edit is None:
        networks, given, options = load_any(args.networks), None, OPTIONS
        if graded:
            given = images_in(args.images) if args.images else training_images(networks, args.data)
            options = GRADING
        predictor = train_predictor(
            networks, args.tell, args.reader, args.probes or 0, options.but(**chosen), given
        )
        try:
            predictor.save(out)
        finally:  # a full disk must not cost what was measured, too
            print(predictor)
    else:
        sirens = load(args.networks)
        images, options = images_of(sirens, args.data), (STEPPING if args.steps else EDITING).but(**chosen)
        editor = train_editor(
            sirens, images, args.edit, args.reader, options, probes=args.probes or 0, steps=args.steps or 0
        )
        editor.save(out, args.edit)
    print(f"trained: {out}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from lopt.weight_space.network_park import load_park
    from lopt.weight_space.predictor import load_predictor

    predictor = load_predictor(args.reader)
    target, names = predictor.description.target, args.networks
    if predictor.description.many:
        parks = [load_park(path) for path in args.networks]
        names = [
            f"{path}[{n}]" for path, park in zip(args.networks, parks, strict=True) for n in range(len(park))
        ]
        found = [one for park in parks for one in predictor.predict(park, args.coverage)]
    else:
        found = predictor.predict(args.networks, args.coverage)
    for name, (value, low, high) in zip(names, found, strict=True):
        print(f"{name}: {target} {value:.3f}, {100 * args.coverage:g}% within {low:.3f} to {high:.3f}")
    return 0


def _edit(args: argparse.Namespace) -> int:
    from safetensors.torch import save

    from lopt.files import write_atomically
    from lopt.weight_space.editing import load_editor

    out = output_path(args.out, args.network, args.editor)
    edited = load_editor(args.editor).edit(args.network)
    for number, state in enumerate(edited):
        path = out if len(edited) == 1 else out.with_stem(f"{out.stem}-{number}")
        write_atomically(path, save({name: value.contiguous() for name, value in state.items()}))
        print(f"edited: {path}")
    return 0


def _make(args: argparse.Namespace) -> int:
    from lopt.weight_space.making import IMAGE_SETS
    from lopt.weight_space.park import PARKS
    from lopt.weight_space.sines import make_sines
    from lopt.weight_space.tickets import TICKETS, make_tickets, said_of_tickets
    from lopt.weight_space.zoo import make_zoo, said_of_zoo

    out = output_path(args.out)
    if args.name in IMAGE_SETS:
        return _images(args, out)
    if args.recipe is not None:
        raise ConfigError(f"--recipe: expected it with networks of images alone, found it with {args.name}")
    if args.name == "sines":
        psnr = make_sines(args.count or 2000, out).columns["psnr"]
        print(
            f"{len(psnr)} networks, PSNR {psnr.median():.1f} dB (worst twentieth {psnr.quantile(0.05):.1f})"
        )
    elif args.name in TICKETS:
        print(said_of_tickets(make_tickets(args.name, args.count or 256, out, args.data)))
    elif args.name in PARKS:
        return _park(args, out)
    else:
        print(said_of_zoo(make_zoo(args.name, args.count or 2000, out, args.data)))
    print(f"networks: {out}")
    return 0


def _park(args: argparse.Namespace, out: Path) -> int:
    """Make networks of many architectures and audit them."""
    from lopt.weight_space.park import PARKS, make_park
    from lopt.weight_space.park_audit import audit_park

    park = make_park(args.name, args.count or 1536, out, args.data)
    report = audit_park(park, PARKS[args.name].measured)
    report.write(out.with_suffix(".audit.json"))
    print(report)
    print(f"networks: {out}   audit: {out.with_suffix('.audit.json')}")
    return 0


def _images(args: argparse.Namespace, out: Path) -> int:
    """Make networks of images and audit them."""
    from lopt.weight_space.audit import audit
    from lopt.weight_space.making import images_of, make
    from lopt.weight_space.sirens import grid

    networks = make(args.name, args.recipe or "siren300", args.count or 8000, out, args.data)
    images = images_of(networks, args.data)
    report = audit(networks, images, grid(*images.shape[2:]))
    report.write(out.with_suffix(".audit.json"))
    print(report)
    print(f"networks: {out}   audit: {out.with_suffix('.audit.json')}")
    return 0
