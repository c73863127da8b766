"""Compiled kernels: what is tried, and what is tried next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt.numerics.fused import kernel_of

inductor = pytest.importorskip("torch._inductor")


def compiled_by(monkeypatch: pytest.MonkeyPatch, works: Callable[[bool | None], bool]) -> list[bool | None]:
    """With a compiler that `works` or fails by whether vectors are taken as known: what it is asked."""
    asked: list[bool | None] = []

    def compile_(graph: Any, examples: Any, dynamic_shapes: str) -> Any:
        asked.append(inductor.config.cpp.vec_isa_ok)
        if not works(asked[-1]):
            raise RuntimeError("-mamx: unrecognized option")
        return graph

    monkeypatch.setattr(inductor, "standalone_compile", compile_)
    return asked


def doubled(x: Tensor) -> list[Tensor]:
    return [2 * x]


def test_the_kernel_itself_is_the_trial_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compiled_by(monkeypatch, lambda known: True)
    kernel_of(doubled, [torch.ones(3)], any_sizes=False)
    assert asked == [True]
    assert inductor.config.cpp.vec_isa_ok is None


def test_where_it_fails_each_kind_of_vectors_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compiled_by(monkeypatch, lambda known: not known)
    (found,) = kernel_of(doubled, [torch.ones(3)], any_sizes=False)(torch.ones(3))
    assert asked == [True, None]
    torch.testing.assert_close(found, 2 * torch.ones(3))


def test_what_the_user_says_of_vectors_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compiled_by(monkeypatch, lambda known: True)
    with inductor.config.patch({"cpp.vec_isa_ok": False}):
        kernel_of(doubled, [torch.ones(3)], any_sizes=False)
    assert asked == [False]
