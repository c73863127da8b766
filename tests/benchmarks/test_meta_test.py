"""The meta-test table: what chooses a rate, what is counted, and that finished rows are not done again."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lopt
from benchmarks import meta_test
from benchmarks.runner.kinds import compared, fixed_rate, geometric, steps_to, summarise, table
from meta_tasks import named_task


def setting(lr: float, loss: float | None, final: float | None = None) -> dict[str, Any]:
    """Validation loss `loss`, and a curve that falls to `final`, which is the held-out loss, too."""
    final = loss if final is None else final
    return {"lr": lr, "validation": [loss], "final": [final], "test": [final], "curve": [4.0, final, final]}


BUDGET = {"steps": 30, "rates": 2, "seeds": 1, "tuning_seeds": 1}


def row(kind: str, optimizer: str, settings: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": kind,
        "optimizer": optimizer,
        "rule": optimizer == "mine",
        "budget": BUDGET,
        "settings": settings,
    }


ROWS = [
    row("a", "adamw", [setting(0.1, 1.0), setting(0.2, 2.0)]),
    row("b", "adamw", [setting(0.1, 9.0), setting(0.2, 2.0)]),
    row("a", "mine", [setting(1.0, None, 0.5)]),
    row("b", "mine", [setting(1.0, None, 4.0)]),
    row("c", "mine", [setting(1.0, None, 1.0)]),  # which adamw has not been through
]


def test_a_rate_is_chosen_by_validation_for_each_kind_and_for_all() -> None:
    found = summarise(ROWS)
    assert found["kinds"] == ["a", "b"]
    assert [found["shown"]["adamw"][kind]["lr"] for kind in "ab"] == [0.1, 0.2]
    assert found["fixed"] == {"adamw": 0.2}  # geometric means of 1 and 9, and of 2 and 2


def test_ratios_steps_and_what_is_never_reached() -> None:
    tuned = summarise(ROWS)["compared"]["mine"]["adamw"]
    assert tuned["by_kind"] == {
        "a": {"final": 0.5, "test": 0.5, "steps": 30},
        "b": {"final": 2.0, "test": 2.0, "steps": None},
    }
    assert tuned["final"] == pytest.approx(1.0)
    assert (tuned["ahead"], tuned["unreached"], tuned["worst_final"]) == (1, 1, 2.0)
    assert "| adamw, 0.2 for all | 0.71 | 0.71 |" in table(summarise(ROWS))  # sqrt(.5 / 2 * 4 / 2)


def test_rules_are_shown_beside_what_they_began_as() -> None:
    """Network by network, without any baseline; a kind on which one diverged is named."""

    def run(optimizer: str, kind: str, losses: list[float | None]) -> dict[str, Any]:
        settings = [{**setting(1.0, None, 1.0), "final": losses, "test": losses[::-1]}]
        return {**row(kind, optimizer, settings), "rule": True}

    rows = [run("fresh", kind, [1.0, 4.0]) for kind in "abc"]
    rows += [run("mine", "a", [0.5, 1.0]), run("mine", "b", [1.0, 8.0]), run("mine", "c", [1.0, None])]
    found = summarise(rows)["beside_fresh"]["mine"]["final"]
    expected = {"a": -math.log(8) / 2, "b": math.log(2) / 2}
    assert found["by_kind"] == pytest.approx(expected)
    assert found["mean"] == pytest.approx(-math.log(2) / 2)
    assert (found["better"], found["diverged"]) == (1, ["c"])
    assert "| mine | -0.347 ± 1.359 | -0.347 ± 1.359 | 1, 1 |" in table(summarise(rows))


def test_what_diverges_has_no_ratio_but_is_counted() -> None:
    good, bad = setting(1.0, None, 1.0), {**setting(1.0, None, 1.0), "final": [None], "test": [None]}
    found = compared({"a": good, "b": bad, "c": good}, {"a": good, "b": good, "c": bad}, 30)
    assert (found["final"], found["diverged"], found["other_diverged"], found["ahead"]) == (1.0, 1, 1, 1)
    assert math.isinf(found["worst_final"])


def test_a_rate_that_diverges_on_one_kind_or_was_not_tried_is_none_for_all() -> None:
    one, two, three = setting(1, 0.1), setting(2, 1.0), setting(3, 0.01)
    assert fixed_rate({"a": {1: one, 2: two, 3: three}, "b": {1: setting(1, None), 2: two}}) == 2
    assert fixed_rate({"a": {1: setting(1, None)}}) is None


def test_rates_go_on_while_the_best_lies_at_an_end() -> None:
    """From a rate far too low, one after the other."""
    tried = meta_test.tried("adamw", named_task("quadratic"), 2, range(1, 2), range(101, 102), 10)
    assert [s["lr"] for s in tried] == [0.003, 0.0095, 0.03, 0.095, 0.3, 0.95]


def test_steps_are_counted_to_two_stretches_in_a_row() -> None:
    assert steps_to([3.0, 1.0, 3.0, 1.0, 0.9], 1.0) == 50
    assert steps_to([3.0, None, None], 1.0) is None
    assert geometric([2.0, 8.0]) == pytest.approx(4.0)


def test_rows_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(meta_test, "QUICK", ("quadratic",))
    monkeypatch.setattr(
        sys,
        "argv",
        ["meta_test", "lopt-small", "--quick", "--rates", "2", "--seeds", "1", "--tuning-seeds", "1",
         "--fresh", "--baselines", "adamw", "torch.optim.NAdam", "--out", str(tmp_path)],
    )  # fmt: skip
    meta_test.main()
    rows = (tmp_path / "meta_test.jsonl").read_text()
    assert rows.count("\n") == 4
    out = capsys.readouterr().out
    assert "| best tuned |" in out
    assert "less the fresh rule's" in out
    meta_test.main()
    assert (tmp_path / "meta_test.jsonl").read_text() == rows
    spoilt = rows.encode()[:-20] + b"\xff\xfe"  # a power cut in the last row
    (tmp_path / "meta_test.jsonl").write_bytes(spoilt)
    meta_test.main()
    assert (tmp_path / "meta_test.jsonl").read_bytes().startswith(spoilt + b"\n{")
    meta_test.main()
    assert (tmp_path / "meta_test.jsonl").read_bytes().count(b"\n") == 5


def test_another_rule_of_the_same_name_is_run_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_test, "QUICK", ("quadratic",))
    file, rows = tmp_path / "mine.safetensors", tmp_path / "meta_test.jsonl"
    argv = ["meta_test", str(file), "--quick", "--seeds", "1", "--rates", "1", "--baselines", "adamw"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path)])
    for rate, count in ((0.01, 2), (0.02, 3), (0.02, 3)):
        torch.manual_seed(0)
        lopt.save_rule(lopt.make_rule("tensor_mlp", rate=rate), file)
        meta_test.main()
        assert rows.read_text().count("\n") == count
    first, second = (row for row in map(json.loads, rows.read_text().splitlines()) if row["rule"])
    assert first["settings"] != second["settings"]
    summary = json.loads((tmp_path / "meta_test.json").read_text())
    assert summary["shown"]["mine"]["quadratic"]["final"] == second["settings"][0]["final"]
