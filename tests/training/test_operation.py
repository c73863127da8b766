"""What a run shows of itself, and what it does on a disk that is really full."""

from __future__ import annotations

import fcntl
import math
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

from lopt.cli.watch import sparkline, summary
from lopt.errors import RunFolderError
from lopt.graph.tensor_classes import CLASSES, classes
from lopt.runs.history import History
from lopt.runs.runlog import spread
from lopt.training import checkpoint
from lopt.training.gauges import named_gauges, peak_memory, step_gauges
from lopt.training.run_config import FamilyConfig, RunConfig
from lopt.training.trainer import CHECKPOINT
from tests.helpers import TinyTask, seeded
from tests.training.tiny_run import CONFIG, finish, outcome, tiny_trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    finish(folder)
    return folder


def config(steps: int = CONFIG.steps) -> RunConfig:
    meta = CONFIG.but(steps=steps)
    return RunConfig(
        name="tiny", tasks=[FamilyConfig(family="quadratic")], validation=["quadratic"], meta=meta
    )


def test_picture_is_drawn_at_validations(finished: Path) -> None:
    assert (finished / "training.png").read_bytes().startswith(b"\x89PNG")


def test_step_sizes_throughput_and_memory_are_logged(finished: Path) -> None:
    history = History.read(finished)
    found = {name.partition("/")[2] for name in history.names("step_rms/")}
    assert found == set(classes(TinyTask().graph))
    for name in (*history.names("step_rms/"), *history.names("update_ratio/"), "inner_steps_per_second"):
        assert all(value > 0 for _, value in history.series(name)), name
    assert 50 < history.last("memory_mib") < 1e5  # type: ignore[operator]


def test_every_second_is_in_the_log_and_turns_are_told_by_family(finished: Path) -> None:
    history = History.read(finished)
    assert all(value >= 0 for _, value in history.series("seconds"))
    assert len(history.series("seconds")) == len(history.records)
    turns = [v for name in history.names("seconds/") for _, v in history.series(name)]
    assert set(history.names("seconds/")) == {"seconds/narrow", "seconds/wide"}
    assert 0 < sum(turns) < sum(value for _, value in history.series("seconds"))


def test_validation_curves_are_logged_in_a_few_points(finished: Path) -> None:
    curves = History.read(finished).last("curves")
    assert curves["steps"] == [0, 1, 2]
    assert [len(losses) for losses in curves["losses"].values()] == [3]
    assert spread(1000, 4) == [0, 333, 666, 999]
    assert spread(1, 100) == [0]


def test_gauges_are_geometric_means_by_class_of_tensor() -> None:
    task = TinyTask()
    before = task.init(4, seeded(0))
    table = step_gauges(task.graph, before, {name: p * 1.1 for name, p in before.items()})
    found = named_gauges(table)
    of_class = dict(zip(task.graph.parameters, classes(task.graph), strict=True))
    for name, mine in of_class.items():
        others = [other for other in of_class if of_class[other] == mine]
        assert found[f"update_ratio/{mine}"] == pytest.approx(0.1, rel=1e-4), name
        rms = [before[n].flatten(1).square().mean(1).sqrt().log().mean() for n in others]
        expected = 0.1 * torch.stack(rms).mean().exp().item()
        assert found[f"step_rms/{mine}"] == pytest.approx(expected, rel=1e-4)
    assert table.shape == (3, len(CLASSES))
    spoilt = {name: p.clone().index_fill_(0, torch.tensor([1]), math.nan) for name, p in before.items()}
    assert all(
        math.isfinite(value) for value in named_gauges(step_gauges(task.graph, before, spoilt)).values()
    )
    assert peak_memory() > 50


def test_summary_of_a_finished_run(finished: Path) -> None:
    text = summary(config(), History.read(finished))
    lines = text.splitlines()
    assert lines[0] == "tiny: outer step 10 of 10 (100%)"
    for word in ("narrow", "wide", "validation", "/ weights", "restarts", "inner steps per second", "MiB"):
        assert word in text
    assert "nan" not in text


def test_summary_of_a_run_in_progress_and_of_one_that_has_not_begun(finished: Path, tmp_path: Path) -> None:
    first = summary(config(1000), History.read(finished)).splitlines()[0]
    assert first.startswith("tiny: outer step 10 of 1000 (1%), about ")
    assert summary(config(), History.read(tmp_path)).splitlines() == [
        "tiny: outer step 0 of 10 (0%)",
        "nothing logged yet",
    ]


def test_tensorboard_reads_what_is_logged(finished: Path) -> None:
    """Hiding what an earlier process logged beyond its last checkpoint."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    files = sorted((finished / "tensorboard").iterdir())
    events = list(LegacyEventFileLoader(str(files[0])).Load())
    assert events[0].file_version == "brain.Event:2"
    assert events[1].session_log.status == 1
    found = [(event.step, value.simple_value) for event in events for value in event.summary.value
             if value.tag == "outer_loss"]  # fmt: skip
    expected = History.read(finished).series("outer_loss")
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_history_leaves_out_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "outer_loss": 2.0}\n{"step": 2, "outer')
    assert History.read(tmp_path).series("outer_loss") == [(1, 2.0)]
    assert History.read(tmp_path).last("nothing") is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 7], "▁█"), ([1, 1], "▁▁"), ([0, math.nan, 1], "▁×█"), ([math.nan], ""), ([], "")],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_sparkline_is_no_wider_than_asked_for() -> None:
    assert len(sparkline(list(range(1000)), 40)) == 40
    assert sparkline(list(range(80)), 8) == "▁▂▃▄▅▆▇█"


@pytest.mark.parametrize("estimator", ["es", "pes", "mixture"])
def test_runs_of_every_estimator_resume_bit_for_bit(estimator: str, tmp_path: Path) -> None:
    """With twins in the checkpoint."""
    options = CONFIG.but(steps=6, estimator=estimator, validate_every=6, longest_horizon=12)
    finish(tmp_path / "whole", config=options)
    stopped = tiny_trainer(tmp_path / "parts", config=options)
    step = stopped._outer_step

    def interrupted() -> dict[str, float]:
        if stopped.step == 4:
            raise KeyboardInterrupt
        return step()

    stopped._outer_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert checkpoint.load(tmp_path / "parts" / CHECKPOINT)["step"] == 3
    finish(tmp_path / "parts", config=options)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoint_and_ends_with_one_line(finished: Path, tmp_path: Path) -> None:
    """A tmpfs that fills up while the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        trainer = tiny_trainer(disk)
        step = trainer._outer_step

        def filling() -> dict[str, float]:
            if trainer.step == 4:
                with pytest.raises(OSError, match="No space left"), open(disk / "filler", "wb") as file:
                    file.write(bytes(4 << 20))
            return step()

        trainer._outer_step = filling  # type: ignore[method-assign]
        with pytest.raises(
            RunFolderError, match=r"No space left.*checkpoint of outer step 3 is whole.*lopt resume"
        ):
            trainer.run()
        assert checkpoint.load(disk / CHECKPOINT)["step"] == 3
        (disk / "filler").unlink()
        finish(disk)
        assert outcome(disk) == outcome(finished)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_watch_as_a_command(finished: Path, tmp_path: Path) -> None:
    from lopt import config as configs
    from lopt.cli.main import main

    (finished / "config.yaml").write_text(configs.dump(config()))
    assert main(["watch", str(finished)]) == 0
    assert main(["watch", str(finished), "--every", "1"]) == 0  # over, so it does not wait
    assert main(["watch", str(tmp_path)]) == 2


def test_report_as_a_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lopt import config as configs
    from lopt.cli.main import main

    assert main(["report", str(tmp_path)]) == 2
    assert "expected a run folder with config.yaml, found none" in capsys.readouterr().err
    (finished / "config.yaml").write_text(configs.dump(config()))
    assert main(["report", str(finished), "--out", str(tmp_path / "run.html")]) == 0
    text = (tmp_path / "run.html").read_text()
    for expected in (
        "outer step 10 of 10",
        "training narrow",
        "training wide",
        "cohort_turns: 2",
        "outer_steps",
    ):
        assert expected in text, expected


def test_live_on_a_terminal_redraws_in_place_until_the_run_is_over(finished: Path, tmp_path: Path) -> None:
    """A log that grows line by line is watched through a pseudo-terminal of 12 rows and 60 columns."""
    lines = prepared(finished, tmp_path)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    watching = subprocess.Popen([*WATCH, str(tmp_path)], stdout=follower, env=env)
    os.close(follower)
    shown = ""
    while "\x1b[H" not in shown:
        shown += os.read(leader, 4096).decode()
    grow(tmp_path, lines)
    while part := _read(leader):
        shown += part
    os.close(leader)
    assert watching.wait(30) == 0
    live, last = shown.split("\x1b[?1049l")
    screens = live.split("\x1b[H")[1:]
    assert len(screens) >= 2
    for screen in screens:
        rows = screen.removesuffix("\x1b[J").replace("\x1b[K", "").splitlines()
        assert len(rows) <= 12
        assert max(map(len, rows)) <= 60
    assert "outer step 0 of 10" in screens[0]
    assert "outer step 10 of 10" in last
    assert "\x1b[" not in last.removeprefix("\x1b[?25h")


def test_live_elsewhere_prints_lines(finished: Path, tmp_path: Path) -> None:
    lines = prepared(finished, tmp_path)
    with subprocess.Popen([*WATCH, str(tmp_path)], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "tiny: outer step 0 of 10 (0%)\n"
        grow(tmp_path, lines)
        rest = watching.stdout.read()
    assert watching.returncode == 0
    assert "\x1b" not in rest
    assert "tiny: outer step 10 of 10 (100%)\n\nouter loss" in rest


WATCH = (sys.executable, "-m", "lopt", "watch", "--live", "--every", "1")


def prepared(finished: Path, folder: Path) -> list[str]:
    """A run folder without a log, and the lines of the log of a finished run."""
    from lopt import config as configs

    (folder / "config.yaml").write_text(configs.dump(config()))
    return (finished / "metrics.jsonl").read_text().splitlines(keepends=True)


def grow(folder: Path, lines: list[str]) -> None:
    for line in lines:
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(line)
        time.sleep(0.15)


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError:  # how Linux says that nobody holds the other end any more
        return ""
