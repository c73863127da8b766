"""Character language models: an Elman network, an LSTM and a small transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from meta_tasks.data import TextSet, load_text
from meta_tasks.data.text import Text
from meta_tasks.family import SpecFamily, register_family
from meta_tasks.image_stream import Examples, NetworkSpec
from meta_tasks.module_task import ModuleTask, Pair, classification, draw_indices, evenly_spaced
from meta_tasks.networks import TransformerLanguageModel
from meta_tasks.recurrent import LstmLanguageModel, RecurrentLanguageModel
from meta_tasks.spec import Few, Wide, Width

EVALUATION_CHUNK = 100

RECURRENT: dict[str, type[nn.Module]] = {"rnn": RecurrentLanguageModel, "lstm": LstmLanguageModel}


class CharLmSpec(NetworkSpec):
    """A model of the next character."""

    dataset: Text = "sentences"
    network: Literal["rnn", "lstm", "transformer"] = "rnn"
    context: Annotated[int, Field(ge=2, le=1024)] = 16
    """L, the characters that the network sees."""
    width: Width = 32
    depth: Few = 1
    heads: Few = 4
    """Attention heads of the transformer."""
    batch_size: Wide = 32
    evaluation_examples: Examples = 500


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


@register_family("char_lm")
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
