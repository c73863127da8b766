from __future__ import annotations

import pytest

from lopt import progress as module
from lopt.progress import PlainProgress, progress, tracked


def test_plain_lines_are_few_and_end_with_the_last_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(0, 10_000, 5))  # each step takes five
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))
    shown = PlainProgress(12, "training", initial=2)
    for _ in range(10):
        shown.update()
        shown.set_postfix(loss=0.123456, best=None)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert lines[0].startswith("training: ")
    assert lines[-1].startswith("training: 12 of 12 steps")
    assert lines[-1].endswith("about 0 s left, loss 0.1235, best None")


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress(3, "training")
    assert isinstance(shown, PlainProgress)
    for _ in range(3):
        shown.update()
    shown.close()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    shown = progress(3, "training", initial=1)
    shown.update()
    shown.close()
    assert isinstance(shown, module.tqdm)
    assert shown.n == 2


def test_tracked_steps_are_said_off_a_terminal_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(0, 10_000, 15))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))
    assert list(tracked(range(3), "tune adam")) == [0, 1, 2]
    assert capsys.readouterr().err.startswith("tune adam: 2 of 3 steps")
    assert list(tracked(range(3), "")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
