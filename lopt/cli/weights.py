"""`lopt weights`: networks as data."""

from __future__ import annotations

import argparse

from lopt.cli.arguments import positive
from lopt.files import user_path

DESCRIPTION = """Networks as data.

  make    fit thousands of implicit networks (SIREN), one to each image of a data set, and audit them

Stop it whenever you like: the same command goes on, also with a larger --count.

examples:
  lopt weights make inr-mnist --count 8000 --data ~/data --out mnist.safetensors
  lopt weights make inr-digits --count 320 --out digits.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lopt.weight_space.making import IMAGE_SETS
    from lopt.weight_space.sirens import RECIPES

    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = commands.add_parser("make", help="fit networks to images", allow_abbrev=False)
    make.add_argument("name", choices=list(IMAGE_SETS), help="the data set of networks")
    make.add_argument("--recipe", choices=list(RECIPES), default="siren300", help="(default: %(default)s)")
    make.add_argument("--count", type=positive, default=8000, help="networks (default: %(default)s)")
    make.add_argument("--data", metavar="DIR", help="folder of the images (default: $LOPT_DATA)")
    make.add_argument(
        "--out", metavar="FILE", required=True, help="the safetensors file to write or go on with"
    )


def run(args: argparse.Namespace) -> int:
    from lopt.training.runtime import prepare_cpu
    from lopt.weight_space.audit import audit
    from lopt.weight_space.making import images_of, make
    from lopt.weight_space.sirens import grid

    prepare_cpu()
    out = user_path(args.out)
    networks = make(args.name, args.recipe, args.count, out, args.data)
    images = images_of(networks, args.data)
    found = audit(networks, images, grid(*images.shape[2:]))
    found.write(out.with_suffix(".audit.json"))
    print(found)
    print(f"networks: {out}   audit: {out.with_suffix('.audit.json')}")
    return 0
