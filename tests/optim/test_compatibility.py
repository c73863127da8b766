"""Every feature of AdamW's, tried on AdamW and on LearnedOptimizer side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.optim.features import FEATURES, MAKERS, REASONS


@pytest.mark.filterwarnings("ignore:lr. expected about 1")  # rates that suit AdamW, too
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", FEATURES)
def test_feature(name, maker):
    if (name, maker) in REASONS:
        with pytest.raises(Exception):  # noqa: B017, PT011 - what it raises differs, that it fails is the point
            FEATURES[name](MAKERS[maker])
    else:
        FEATURES[name](MAKERS[maker])


def test_published_table_holds_every_feature():
    text = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    expected = [
        [name, *(f"no: {REASONS[name, maker]}" if (name, maker) in REASONS else "yes" for maker in MAKERS)]
        for name in FEATURES
    ]
    assert [row.strip("| ").split(" | ") for row in rows] == expected, "run `python -m tests.optim.features`"
