"""DDP and FSDP2 in two gloo processes and more."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.shards_worker import NETWORKS

ROOT = Path(__file__).parents[2]


def in_processes(folder: Path, module: str, *arguments: str, ranks: int = 2) -> None:
    """What torchrun does, without the seconds of a process of its own."""
    common = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        common["MASTER_PORT"] = str(free.getsockname()[1])
    processes, logs = [], [folder / f"{rank}.log" for rank in range(ranks)]
    for rank, log in enumerate(logs):
        with open(log, "w") as output:
            command = [sys.executable, "-m", module, *arguments]
            environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks, "\n".join(log.read_text()[-2000:] for log in logs)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("parallel")
    in_processes(folder, "tests.trainers.parallel_worker", str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture
def ddp(ranks) -> list[dict]:
    return [rank["ddp"] for rank in ranks]


@pytest.fixture
def fsdp2(ranks) -> list[dict]:
    return [rank["fsdp2"] for rank in ranks]


def close(a: list[torch.Tensor], b: list[torch.Tensor], tolerance: float = 2e-4) -> bool:
    return all((x - y).abs().max() <= tolerance for x, y in zip(a, b, strict=True))


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_ddp_equals_one_process(ddp):
    assert equal(ddp[0]["parameters"], ddp[1]["parameters"])
    assert close(ddp[0]["parameters"], ddp[0]["alone"])


def test_processes_that_see_other_parts_of_the_model_first_agree_on_its_graph(ranks):
    assert equal(ranks[0]["forked"], ranks[1]["forked"])


def test_zero_redundancy_steps_nearly_as_without(ranks):
    """Not equally: a rule reads all parameters of its optimizer at once, which are some of them here."""
    assert equal(ranks[0]["zero"]["zero"], ranks[1]["zero"]["zero"])
    assert close(ranks[0]["zero"]["zero"], ranks[0]["zero"]["plain"], 2e-3)


def test_a_sharded_model_is_told_when_to_be_traced(ranks):
    assert all("sharded by fully_shard: make the graph before" in rank["too_late"] for rank in ranks)


def test_fsdp2_equals_one_process(fsdp2):
    assert equal(fsdp2[0]["parameters"], fsdp2[1]["parameters"])
    assert close(fsdp2[0]["parameters"], fsdp2[0]["alone"])


def test_fsdp2_skips_on_all_ranks_what_is_not_finite_on_one(fsdp2):
    assert [rank["skipped"] for rank in fsdp2] == [1, 1]
    assert close(fsdp2[0]["poisoned"], fsdp2[0]["alone_poisoned"])


def test_fsdp2_state_is_sharded(fsdp2):
    """The first weight is (8, 6): each rank keeps 4 rows of its momenta."""
    assert [rank["local_momenta"][1:] for rank in fsdp2] == [(4, 6), (4, 6)]


def test_fsdp2_checkpoint_continues_bit_for_bit(fsdp2):
    for rank in fsdp2:
        assert equal(rank["continued"], rank["resumed"])
        assert not close(rank["continued"], rank["parameters"])
        assert equal(rank["reloaded"], rank["not_reloaded"])


def test_steps_over_shards_equal_those_of_one_process(ranks):
    check_shards(ranks, largest_share=0.66)
    assert all(rank["shards"]["skipped"] == {"skipped": 1, "unchanged": True} for rank in ranks)


def check_shards(ranks: list[dict], largest_share: float) -> None:
    """Shares are uneven where three rows go to two ranks, or to four."""
    for rank in ranks:
        cases = {name: found for name, found in rank["shards"].items() if ":" in name}
        assert all(found["sharded"] for found in cases.values())
        assert max(found["error"] for found in cases.values()) < 1e-6
        assert max(found["share"] for found in cases.values()) < largest_share


@pytest.mark.slow
def test_steps_over_four_shards_and_a_checkpoint_for_two(tmp_path):
    cases = [
        f"{network}:{rule}" for network in NETWORKS for rule in ("lopt-small", "lopt-base", "axisnet", "muon")
    ]
    in_processes(
        tmp_path, "tests.trainers.shards_worker", str(tmp_path), "save", "kept_whole", *cases, ranks=4
    )
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(4)]
    check_shards(found, largest_share=0.36)
    assert max(rank["shards"]["kept_whole"] for rank in found) < 1e-6
    in_processes(tmp_path, "tests.trainers.shards_worker", str(tmp_path), "load")
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert max(rank["shards"]["load"] for rank in found) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "rules"), [(2, ["lopt-small", "lopt-base", "axisnet"]), (4, ["lopt-base"])]
)
def test_kernels_step_over_shards_as_one_process_does_without(ranks, rules, tmp_path):
    cases = [f"wide:{rule}:fused" for rule in rules]
    in_processes(tmp_path, "tests.trainers.shards_worker", str(tmp_path), *cases, ranks=ranks)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True)["shards"] for rank in range(ranks)]
    assert max(case["error"] for rank in found for case in rank.values()) < 1e-6
    assert all(case["sharded"] and case["kernels"] for rank in found for case in rank.values())


@pytest.mark.slow
@pytest.mark.parametrize("example", ["ddp", "fsdp2"])
def test_examples(example, tmp_path):
    import lopt

    lopt.save_rule(lopt.make_rule("axisnet"), tmp_path / "rule.safetensors")
    in_processes(tmp_path, f"examples.{example}", str(tmp_path / "rule.safetensors"))
