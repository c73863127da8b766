"""The examples train, resume where their trainer can, and agree with one another."""

from __future__ import annotations

import importlib
import shutil

import pytest
import torch

import lopt
from examples import plain_pytorch, pyg_nodes
from lopt.rules import Rule

pytestmark = pytest.mark.filterwarnings("default")  # what trainers warn of is not ours


@pytest.fixture(scope="module")
def rule() -> Rule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lopt.make_rule("axisnet")


@pytest.fixture(scope="module")
def plain(rule) -> list[float]:
    return plain_pytorch.main(rule)


def example(name: str, package: str):
    pytest.importorskip(package, reason=f"{package} is not installed")
    return importlib.import_module(f"examples.{name}")


def learns(losses: list[float]) -> bool:
    return max(losses[-5:]) < 0.6 * losses[0]


def test_plain_pytorch(plain):
    assert len(plain) == 29
    assert learns(plain)


@pytest.mark.filterwarnings("ignore::lopt.errors.GraphWarning")  # GCNConv removes self loops: data-dependent
def test_pyg(rule):
    assert learns(pyg_nodes.main(rule))


def test_lightning(rule, plain, tmp_path):
    module = example("lightning_module", "lightning")
    options = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    assert module.main(rule, **options) == pytest.approx(plain, abs=1e-5)
    whole = module.main(rule, 2, enable_checkpointing=True, **options)
    (checkpoint,) = (tmp_path / "checkpoints").glob("epoch=1*.ckpt")
    assert len(module.main(rule, 3, checkpoint, **options)) == 29
    assert len(whole) == 58


def test_huggingface_trainer_resumes(rule, tmp_path):
    pytest.importorskip("accelerate", reason="its Trainer needs accelerate")
    module = example("huggingface_trainer", "transformers")
    options = {"save_strategy": "steps", "save_steps": 20, "logging_strategy": "steps"}
    whole = module.main(rule, 29, str(tmp_path), **options)
    assert learns(whole)
    shutil.rmtree(tmp_path / "checkpoint-29")
    resumed = module.main(rule, 29, str(tmp_path), resume=True, **options)
    assert resumed == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"precision": "bf16"}])
def test_accelerate(rule, plain, options):
    module = example("accelerate_loop", "accelerate")
    module.Accelerator().state._reset_state(True)
    losses = module.main(rule, **options)
    assert len(losses) == len(plain)
    assert losses[0] == pytest.approx(plain[0], rel=1e-2)
    assert losses[-1] < 0.6 * losses[0]
