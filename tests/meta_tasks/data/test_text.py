from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from lopt.errors import DataError
from meta_tasks.data import load_text
from meta_tasks.data.text import generate_sentences


def test_splits_are_consecutive_parts_of_the_text(fabricated: str) -> None:
    data = load_text("tinyshakespeare", fabricated)
    codes = [code for split in ("train", "validation", "test") for code in data.codes[split].tolist()]
    text = (Path(fabricated) / "tinyshakespeare" / "input.txt").read_text()
    assert "".join(data.characters[code] for code in codes) == text
    assert len(data.codes["train"]) == int(0.9 * len(text))


def test_generated_text_never_changes() -> None:
    # Recorded figures on "sentences" hold only for this very text.
    digest = hashlib.sha256(generate_sentences().encode()).hexdigest()
    assert digest == "9bb06c003d6f3b405b20d24b8320406d7c4542cc40425513d80c411071ef0fe5"


def test_generated_sums_are_right() -> None:
    sums = re.findall(r"(\d+) and (\d+) make (\d+)\.", generate_sentences())
    assert len(sums) > 1000
    assert all(int(left) + int(right) == int(total) for left, right, total in sums)


def test_too_short(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("404: not found")
    with pytest.raises(DataError, match="expected at least 10000 characters, found 14"):
        load_text("tinyshakespeare", tmp_path)
