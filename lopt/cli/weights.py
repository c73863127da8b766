"""`lopt weights`: networks as data."""

from __future__ import annotations

import argparse
from pathlib import Path

from lopt.cli.arguments import positive
from lopt.errors import ConfigError
from lopt.files import user_path

DESCRIPTION = """Networks as data.

  make    fit thousands of implicit networks (SIREN), one to each image of a data set, and audit them;
          or to sines; prune perceptrons, for the masks of their winning tickets; or train small
          convolutional classifiers (cnn-zoo), with their accuracy at several checkpoints

Stop it whenever you like: the same command goes on, also with a larger --count.

examples:
  lopt weights make inr-mnist --count 8000 --data ~/data --out mnist.safetensors
  lopt weights make inr-digits --count 320 --out digits.safetensors
  lopt weights make sines --count 2000 --out sines.safetensors
  lopt weights make tickets --count 256 --data ~/data --out tickets.safetensors
  lopt weights make cnn-zoo --count 2000 --data ~/data --out zoo.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lopt.weight_space.making import IMAGE_SETS
    from lopt.weight_space.sirens import RECIPES
    from lopt.weight_space.tickets import TICKETS
    from lopt.weight_space.zoo import ZOOS

    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = commands.add_parser("make", help="train networks", allow_abbrev=False)
    names = [*IMAGE_SETS, "sines", *TICKETS, *ZOOS]
    make.add_argument("name", choices=names, help="the data set of networks")
    make.add_argument("--recipe", choices=list(RECIPES), help="of networks of images (default: siren300)")
    make.add_argument(
        "--count",
        type=positive,
        help="networks (default: 8000 of images, 2000 of sines and of a zoo, 256 tickets)",
    )
    make.add_argument("--data", metavar="DIR", help="folder of the images (default: $LOPT_DATA)")
    make.add_argument(
        "--out", metavar="FILE", required=True, help="the safetensors file to write or go on with"
    )


def run(args: argparse.Namespace) -> int:
    from lopt.training.runtime import prepare_cpu
    from lopt.weight_space.making import IMAGE_SETS
    from lopt.weight_space.sines import make_sines
    from lopt.weight_space.tickets import TICKETS, make_tickets, said_of_tickets
    from lopt.weight_space.zoo import make_zoo, said_of_zoo

    prepare_cpu()
    out = user_path(args.out)
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
    else:
        print(said_of_zoo(make_zoo(args.name, args.count or 2000, out, args.data)))
    print(f"networks: {out}")
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
