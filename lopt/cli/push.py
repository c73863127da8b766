"""`lopt push`: share a rule on the Hugging Face Hub."""

from __future__ import annotations

import argparse

from lopt.errors import ConfigError
from lopt.files import user_path

DESCRIPTION = """Put a rule on the Hugging Face Hub, with a model card made from what its file says of its making.
Others then load it as hf:OWNER/NAME. Needs `pip install "lopt[hub]"` and `hf auth login`.

examples:
  lopt push runs/demo me/my-rule --dry-run      the card; nothing is sent
  lopt push runs/demo me/my-rule --private"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rule", metavar="RULE", help="a run folder, a rule file or a rule that ships with lopt"
    )
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--card", metavar="FILE", help="a Markdown file to send as the card instead")
    parser.add_argument("--dry-run", action="store_true", help="print the card and send nothing")


def run(args: argparse.Namespace) -> int:
    from lopt.rules.card import model_card, push_rule

    card = _text(args.card) if args.card else model_card(args.rule, args.repo)
    if args.dry_run:
        print(card)
        return 0
    print(push_rule(args.rule, args.repo, private=args.private, card=card))
    return 0


def _text(path: str) -> str:
    try:
        return user_path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected a card as text in UTF-8, found other bytes") from None
