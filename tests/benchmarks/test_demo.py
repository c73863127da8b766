"""What the demo says of its results, good or bad, and that it has learned the horizons that it shows."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.demo import COLOURS, CONFIG, LONG_FACTOR, STEPS, outcome, picture, verdicts
from lopt import config as configs
from lopt.training.run_config import RunConfig


def result(learned: float | None, adamw: float | None) -> dict[str, Any]:
    """A comparison in which all losses of an optimizer are one number; None: it diverged."""

    def entry(name: str, loss: float | None) -> dict[str, Any]:
        statistic = {"mean": loss, "std": 0.0, "values": [loss, loss]}
        keys = ("mean_train_loss", "final_train_loss", "test_loss", "test_accuracy")
        curve = {"steps": [0.0, 1.0, 2.0], "train_loss": [[loss] * 3] * 2}
        figures = {**dict.fromkeys(keys, statistic), "curve": curve}
        kind = "baseline" if name in ("adamw", "muon") else "rule"
        return {"kind": kind, "horizon": figures, "long_horizon": figures}

    losses = {"learned": learned, "fresh": 0.3, "lopt-small": 0.4, "muon": 0.5, "adamw": adamw}
    entries = {name: entry(name, loss) for name, loss in losses.items()}
    return {"steps": 300, "long_steps": 900, "seeds": [1, 2], "entries": entries}


@pytest.mark.parametrize(
    ("learned", "adamw", "said"),
    [
        (0.1, 0.2, "ahead of tuned AdamW in 3 of 3: mean loss 0.1 against 0.2"),
        (0.2, 0.1, "ahead of tuned AdamW in 0 of 3: mean loss 0.2 against 0.1"),
        (None, 0.1, "ahead of tuned AdamW in 0 of 3: mean loss diverged against 0.1"),
        (0.1, None, "ahead of tuned AdamW in 3 of 3: mean loss 0.1 against diverged"),
    ],
)
def test_verdict(learned: float | None, adamw: float | None, said: str) -> None:
    [sentence] = verdicts({"net": result(learned, adamw)})
    assert sentence.startswith("net, 900 steps: the learned rule is ")
    assert said in sentence


def test_table_and_picture_show_every_optimizer_also_one_that_diverged() -> None:
    results = {"one": result(0.1, None), "two": result(0.2, 0.3)}
    table = outcome(results)
    assert "one: test loss" in table
    assert "diverged" in table
    figure = picture(results)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 6
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"learned", "fresh", "lopt-small", "muon (tuned)", "adamw (tuned)"}
    assert set(COLOURS) == set(results["one"]["entries"])


def test_networks_of_meta_training_live_as_long_as_those_shown() -> None:
    meta = configs.load(RunConfig, CONFIG).meta
    assert meta.longest_life >= meta.longest_horizon >= STEPS * LONG_FACTOR
    assert meta.shortest_horizon < STEPS
