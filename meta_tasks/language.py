"""Character language models: an Elman network, an LSTM and a small transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from meta_tasks.data import TextSet, load_text
from meta_tasks.data.text import TEXT_SETS
from meta_tasks.family import SpecFamily
from meta_tasks.image_stream import NetworkSpec
from meta_tasks.module_task import ModuleTask, Pair, classification, draw_indices, evenly_spaced
from meta_tasks.networks import TransformerLanguageModel
from meta_tasks.recurrent import LstmLanguageModel, RecurrentLanguageModel
from meta_tasks.spec import choice, number

EVALUATION_CHUNK = 100

RECURRENT: dict[str, type[nn.Module]] = {"rnn": RecurrentLanguageModel, "lstm": LstmLanguageModel}


@dataclass(frozen=True)
class CharLmSpec(NetworkSpec):
    """A model of the next character."""

    family: ClassVar[str] = "char_lm"

    dataset: str = choice(*TEXT_SETS)
    network: str = choice("rnn", "lstm", "transformer")
    context: int = number(16, 2, 1024)
    """L, the characters that the network sees."""
    width: int = number(32, 1, 1024)
    depth: int = number(1, 1, 16)
    heads: int = number(4, 1, 16)
    """Attention heads of the transformer."""
    batch_size: int = number(32, 1, 4096)
    evaluation_examples: int = number(500, 1, 100_000)


class CharLmTask(ModuleTask):
    """Cross-entropy per character of logits (B, L, characters) on codes (B, L) shifted by one."""

    def __init__(self, spec: CharLmSpec, text: TextSet, device: str | torch.device) -> None:
        name = f"char_lm/{spec.dataset}{spec.context}/{spec.network}{spec.width}x{spec.depth}"
        super().__init__(name, _network(spec, len(text.characters)), device, spec.init_scale)
        self.batch_size = spec.batch_size
        self.limit = spec.evaluation_examples
        self._windows = {split: codes.unfold(0, spec.context + 1, 1) for split, codes in text.codes.items()}

    def sample(self, split: str, count: int, generator: Generator) -> Pair:
        """Codes (count, B, L), and the codes that follow each."""
        windows = self._windows[split]
        rows = draw_indices(len(windows), (count, self.batch_size), generator, self.device)
        return _shifted(windows[rows])

    def evaluation(self, split: str) -> Iterable[Pair]:
        """Evenly spaced windows."""
        windows = self._windows[split]
        for rows in evenly_spaced(len(windows), self.limit, self.device).split(EVALUATION_CHUNK):
            yield _shifted(windows[rows])

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy (nats per character) and accuracy."""
        return classification(outputs, targets)


class CharLmFamily(SpecFamily[CharLmSpec]):
    """Character language models of varied widths, depths and contexts."""

    spec_class = CharLmSpec

    def task(self, spec: CharLmSpec) -> CharLmTask:
        """The language model of one spec."""
        return CharLmTask(spec, load_text(spec.dataset, self.data_root, self.device), self.device)


def _network(spec: CharLmSpec, characters: int) -> Callable[[], nn.Module]:
    if spec.network in RECURRENT:
        return partial(RECURRENT[spec.network], characters, spec.width, spec.depth)
    return partial(TransformerLanguageModel, characters, spec.context, spec.width, spec.depth, spec.heads)


def _shifted(windows: Tensor) -> Pair:
    windows = windows.long()
    return windows[..., :-1], windows[..., 1:]
