"""The README's example runs as it stands, but for the rule that only the demo makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import lopt

README = Path(__file__).parent.parent / "README.md"


def test_example_lowers_the_loss(tmp_path: Path) -> None:
    lopt.save_rule(lopt.make_rule("axisnet", rate=0.03), tmp_path / "rule.safetensors")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert 'rule="runs/demo"' in code
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(code.replace("runs/demo", str(tmp_path)), scope)
    model, x, y = scope["model"], scope["x"], scope["y"]
    assert scope["graph"].rung == "traced"
    assert torch.nn.functional.cross_entropy(model(x), y) < 2
