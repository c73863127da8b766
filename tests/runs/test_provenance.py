"""How a result says it was made."""

from __future__ import annotations

import sys

import pytest

from lopt.runs.provenance import provenance


def test_the_command_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark's first word is all of `python -m benchmarks NAME`; other words are quoted where they must be."""
    monkeypatch.setattr(
        sys, "argv", ["python -m benchmarks demo", "--kinds", "two words", "--out=/home/me/runs"]
    )
    assert provenance()["command"] == "python -m benchmarks demo --kinds 'two words' --out=runs"
