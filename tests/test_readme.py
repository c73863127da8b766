"""The README is short, its example runs as it stands, and links of everything that readers see lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lopt

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
READ = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_is_short() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900


def test_example_is_eight_lines_that_lower_the_loss() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.splitlines()) == 8
    scope: dict[str, Any] = {}
    exec(code, scope)
    model, x, y = scope["model"], scope["x"], scope["y"]
    assert torch.nn.functional.cross_entropy(model(x), y) < 0.8  # from log 5 = 1.61


def test_cites_this_version() -> None:
    assert f"version = {{{lopt.__version__}}}" in README.read_text()


@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"\w+://", target):
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub and the docs make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_names_the_make_targets_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"^    make (\w+)", README.read_text(), re.MULTILINE):
        assert f"\n{name}: " in makefile
