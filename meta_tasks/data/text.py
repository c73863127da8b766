"""Text as characters in memory, split into train, validation and test."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from lopt.errors import DataError
from meta_tasks.data.formats import read_text
from meta_tasks.data.sources import data_root, locate

T = TypeVar("T")

Text = Literal["sentences", "tinyshakespeare"]
SHARES = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
LEAST_CHARACTERS = 10_000
SENTENCES = 6000

SUBJECTS = (("my two brothers", "the lamps", "we"), ("the gardener", "a grey heron", "she"))
VERBS = (("follow", "paint", "carry", "open"), ("follows", "paints", "carries", "opens"))
OBJECTS = (
    "the river", "an old letter", "every window", "three baskets", "nothing at all", "the long road home",
)  # fmt: skip
ENDINGS = (".", " before noon.", ", and then it rains.", " without a word.", "?", "; nobody asks why.")


@dataclass(frozen=True)
class TextSet:
    """Each split as int16 character codes (N,), and the characters that they stand for."""

    name: str
    characters: str
    codes: Mapping[str, Tensor]


def load_text(name: str, root: str | Path | None = None, device: str | torch.device = "cpu") -> TextSet:
    """A text cut into 90 % train, 5 % validation and 5 % test; kept for the whole process.

    Raises `DataError` if the file is missing, damaged or shorter than 10,000 characters.
    """
    folder = data_root(root)
    return _load(name, None if folder is None else folder.resolve(), str(device))


@cache
def _load(name: str, root: Path | None, device: str) -> TextSet:
    text = generate_sentences() if name == "sentences" else _read(name, root)
    characters = "".join(sorted(set(text)))
    code = {character: number for number, character in enumerate(characters)}
    codes = torch.tensor([code[character] for character in text], dtype=torch.int16, device=device)
    cut = {split: (int(low * len(text)), int(high * len(text))) for split, (low, high) in SHARES.items()}
    return TextSet(name, characters, {split: codes[start:stop] for split, (start, stop) in cut.items()})


def _read(name: str, root: Path | None) -> str:
    (path,) = locate(name, root)
    text = read_text(path)
    if len(text) < LEAST_CHARACTERS:
        raise DataError(
            f"{path} is damaged: expected at least {LEAST_CHARACTERS} characters, found {len(text)}. "
            "Fetch it again."
        )
    return text


def generate_sentences() -> str:
    """Sentences with agreeing verbs and correct sums, the same on every machine: about 220,000 characters."""
    draw = random.Random(0).random  # the one method whose stream Python promises to keep
    return "".join(_sum(draw()) if draw() < 0.2 else _sentence(draw) for _ in range(SENTENCES))


def _sentence(draw: Callable[[], float]) -> str:
    def pick(options: Sequence[T]) -> T:
        return options[int(draw() * len(options))]

    number = pick((0, 1))
    return f"{pick(SUBJECTS[number])} {pick(VERBS[number])} {pick(OBJECTS)}{pick(ENDINGS)}\n"


def _sum(uniform: float) -> str:
    left, right = divmod(int(uniform * 10_000), 100)
    return f"{left} and {right} make {left + right}.\n"
