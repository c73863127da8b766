"""Character language models: an Elman network, an LSTM and a small transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from meta_tasks.data import TextSet, load_text
from meta_tasks.data.text import Text
from meta_tasks.family import SpecFamily, register_family
from meta_tasks.image_stream import Examples, NetworkSpec
from meta_tasks.module_task import ExamplesTask, Pair, classification
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


class CharLmTask(ExamplesTask):
    """Cross-entropy per character of logits (B, L, characters) on codes (B, L), each with the code that follows."""

    def __init__(self, spec: CharLmSpec, text: TextSet, device: str | torch.device) -> None:
        name = f"char_lm/{spec.dataset}{spec.context}/{spec.network}{spec.width}x{spec.depth}"
        windows = {split: codes.unfold(0, spec.context + 1, 1) for split, codes in text.codes.items()}
        super().__init__(
            name, _network(spec, len(text.characters)), {s: (w[:, :-1], w[:, 1:]) for s, w in windows.items()},
            spec.batch_size, EVALUATION_CHUNK, spec.evaluation_examples, device, spec.init_scale,
        )  # fmt: skip

    def pick(self, split: str, rows: Tensor) -> Pair:
        """As numbers that embeddings and losses take."""
        inputs, targets = super().pick(split, rows)
        return inputs.long(), targets.long()

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
