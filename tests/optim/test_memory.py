"""What the optimizer keeps between steps, counted in the memory that it holds rather than in the tensors it shows."""

from __future__ import annotations

import platform
import random
import subprocess
import sys

import pytest
import torch
from torch import nn

import lopt
from meta_tasks.networks import TransformerLanguageModel, convnet

BYTES_PER_PARAMETER, BYTES_PER_TENSOR = 16, 12
"""Of a tensor: its two counters and its pace."""


def gpt() -> tuple[nn.Module, torch.Tensor]:
    """Half a million parameters."""
    return TransformerLanguageModel(65, 32, 96, 4, 4), torch.randint(65, (2, 32))


def c10_32() -> tuple[nn.Module, torch.Tensor]:
    return convnet((3, 32, 32), (32, 64, 64), 10), torch.randn(2, 3, 32, 32)


def held(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all storages that the state keeps alive."""
    storages = [v.untyped_storage() for state in optimizer.state.values() for v in state.values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def allowed(model: nn.Module) -> int:
    sizes = [p.numel() for p in model.parameters()]
    return BYTES_PER_PARAMETER * sum(sizes) + BYTES_PER_TENSOR * len(sizes)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, share: float = 1.0
) -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    for p in model.parameters():
        if random.random() >= share:
            p.grad = None
    optimizer.step()


@pytest.mark.parametrize("make", [gpt, c10_32])
def test_lopt_base_keeps_16_bytes_per_parameter(make) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    graph = lopt.ParameterGraph.trace(model, (inputs,))
    optimizer = lopt.LearnedOptimizer(model.named_parameters(), graph=graph)
    for _ in range(3):
        step(model, optimizer, inputs)
        assert 0 < held(optimizer) <= allowed(model)
    optimizer.load_state_dict(optimizer.state_dict())
    assert held(optimizer) <= allowed(model)


def test_steps_of_changing_parameters_keep_no_more() -> None:
    """As under stochastic depth or gradual freezing: each step's state is not kept alive by what a later one skips."""
    torch.manual_seed(0)
    random.seed(0)
    model, inputs = c10_32()
    optimizer = lopt.LearnedOptimizer(model.named_parameters())
    step(model, optimizer, inputs)
    for _ in range(12):
        step(model, optimizer, inputs, share=0.6)
        assert held(optimizer) <= allowed(model)


def test_half_precision_parameters_keep_the_same() -> None:
    torch.manual_seed(0)
    model, inputs = c10_32()
    model, inputs = model.bfloat16(), inputs.bfloat16()
    optimizer = lopt.LearnedOptimizer(model.named_parameters())
    step(model, optimizer, inputs)
    assert held(optimizer) <= allowed(model)


FAULTS = """
import resource
import torch
import lopt

w = torch.nn.Parameter(torch.ones(8, 8))
w.grad = torch.ones(8, 8)
lopt.LearnedOptimizer([w], rule="lopt-small").step()


def rows():
    return [torch.ones(100_000) for _ in range(20)]


rows()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    rows()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="others keep freed memory by rules of their own"
)
def test_what_a_step_frees_is_there_for_the_next_one() -> None:
    """Of 8 MB, which are 2,000 pages, no page is mapped anew."""
    done = subprocess.run([sys.executable, "-c", FAULTS], stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) < 2000
