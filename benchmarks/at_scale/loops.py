"""One training loop for each trainer, as its users write it.

Each takes a `Run`, leaves its losses there, and returns what else it found worth recording.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lopt
from benchmarks.at_scale.run import Run, local_parts
from benchmarks.at_scale.workloads import CHARACTERS, CONTEXT, DEPTH, HEADS, WIDTH, loss_of

Findings = dict[str, Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROCESSES = {"ddp": 2, "fsdp2": 2}
"""How many processes a trainer is run in, if not one; several talk through gloo, on the CPU."""


def plain(run: Run) -> Findings:
    model = run.network().to(DEVICE)
    optimizer = run.optimizer(model, lopt.trace_on_first_forward(model))
    for inputs, targets in run.loader():
        optimizer.zero_grad()
        loss = loss_of(model(inputs.to(DEVICE)), targets.to(DEVICE))
        loss.backward()
        optimizer.step()
        run.losses.append(loss.item())
    return {}


def lightning(run: Run) -> Findings:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = run.network()

        def configure_optimizers(self) -> lopt.LearnedOptimizer:
            return run.optimizer(self.model, lopt.trace_on_first_forward(self.model))

        def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
            inputs, targets = batch
            loss = loss_of(self.model(inputs), targets)
            run.losses.append(loss.item())
            return loss

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(max_steps=run.steps, enable_model_summary=False, **quiet).fit(Module(), run.loader())
    return {"version": lightning.__version__}


def huggingface(run: Run) -> Findings:
    """transformers' own GPT-2, and the ResNet with its loss, as Trainer calls them."""
    import transformers

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = run.network()

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.model(inputs), labels)}

    examples = run.examples()
    torch.manual_seed(0)
    if examples.tensors[0].is_floating_point():
        model, name = WithLoss(), "inputs"
        rows = [{name: inputs, "labels": label} for inputs, label in examples]
    else:
        shape = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        config = transformers.GPT2Config(vocab_size=CHARACTERS, **shape, **ends)
        model, name = transformers.GPT2LMHeadModel(config), "input_ids"
        rows = [{name: codes, "labels": codes} for codes, _ in examples]  # it shifts them itself

    optimizer = run.optimizer(model, lopt.trace_on_first_forward(model))
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder, max_steps=run.steps, per_device_train_batch_size=run.workload.batch,
            logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model, settings, train_dataset=rows, optimizers=(optimizer, constant))
        trainer.train()
    run.losses += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"version": transformers.__version__, "network": type(model).__name__}


def accelerate(run: Run) -> Findings:
    import accelerate

    accelerator = accelerate.Accelerator()
    model = run.network()
    optimizer: Any = run.optimizer(model, lopt.trace_on_first_forward(model))
    model, optimizer, batches = accelerator.prepare(model, optimizer, run.loader())
    for inputs, targets in batches:
        loss = loss_of(model(inputs), targets)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        run.losses.append(loss.item())
    return {"version": accelerate.__version__}


def ddp(run: Run) -> Findings:
    model = run.network()
    graph = lopt.trace_on_first_forward(model)
    parallel = DistributedDataParallel(model)
    _train(run, parallel, run.optimizer(parallel, graph))
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    first = own.clone()
    dist.broadcast(first, 0)
    equal = [False] * dist.get_world_size()
    dist.all_gather_object(equal, torch.equal(own, first))
    return {"parameters_equal_on_all_ranks": all(equal)}


def fsdp2(run: Run) -> Findings:
    """In the middle everything is saved in shards, wiped, and loaded again."""
    model, batches = run.network(), list(run.loader())
    # Sharded parameters cannot be traced, so this comes first.
    graph = lopt.ParameterGraph.trace(model, (batches[0][0],))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for blocks in (part for part in model.children() if isinstance(part, nn.Sequential)):
        for block in blocks:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = run.optimizer(model, graph)
    half = len(batches) // 2
    _train(run, model, optimizer, batches[:half])
    exact = _saved_wiped_loaded(model, optimizer)
    _train(run, model, optimizer, batches[half:])
    return {"checkpoint_equal_bit_for_bit": exact}


def _train(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any = None) -> None:
    for inputs, targets in run.loader() if batches is None else batches:
        optimizer.zero_grad()
        loss = loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        run.losses.append(loss.item())


def _saved_wiped_loaded(model: nn.Module, optimizer: lopt.LearnedOptimizer) -> bool:
    """Whether parameters and state come back from `torch.distributed.checkpoint` as they were, on all ranks."""

    def everything() -> list[Tensor]:
        return local_parts(
            [
                *model.parameters(),
                *(v for p in model.parameters() for _, v in sorted(optimizer.state[p].items())),
            ]
        )

    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder)
        before = everything()
        weights, state = get_state_dict(model, optimizer)
        checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
        with torch.no_grad():
            for tensor in [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]:
                tensor.zero_()
        weights, state = get_state_dict(model, optimizer)
        loaded = {"model": weights, "optimizer": state}
        checkpoint.load(loaded, checkpoint_id=folder[0])
        set_state_dict(
            model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"]
        )
        here = all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
        present = [here] * dist.get_world_size()
        dist.all_gather_object(present, here)
    return all(present)


TRAINERS = {
    "plain": plain,
    "lightning": lightning,
    "huggingface": huggingface,
    "accelerate": accelerate,
    "ddp": ddp,
    "fsdp2": fsdp2,
}
