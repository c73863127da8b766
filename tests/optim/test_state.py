"""State that others read: trainers that save, share, move or average it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import nn

import lopt
from tests.optim.kit import give_gradients, learned, mlp, same, train, values

RULES = ["lopt-small", "lopt-base", "lstm", "muon", "adafactor", "schedule_free_adamw", "torch"]


def made(name: str) -> lopt.rules.Rule | str:
    if name == "torch":
        return lopt.rules.classical.TorchOptim("AdamW")
    return name if name.startswith("lopt") else lopt.make_rule(name)


def narrow() -> nn.Sequential:
    """With axes of one, whose strides mean nothing to PyTorch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 3))


def tensors(node, path: str = "") -> dict[str, torch.Tensor]:
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in tensors(value, f"{path}/{key}").items()}


@pytest.mark.parametrize("model", [mlp, narrow])
@pytest.mark.parametrize("rule", RULES)
def test_state_is_tensors_of_their_own_and_written_in_place(rule, model):
    model = model()
    optimizer = learned(model.parameters(), rule=made(rule))
    train(model, optimizer, 2)
    whole = {key: value for key, value in optimizer.state_dict().items() if key != "param_groups"}
    held = tensors(whole)
    assert all(isinstance(value, torch.Tensor) and value.is_contiguous() for value in held.values())
    storages = [t.untyped_storage() for t in held.values() if t.numel()]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in held.values())
    before = {name: (t.data_ptr(), t.clone()) for name, t in tensors({"state": whole["state"]}).items()}
    train(model, optimizer, 2, seed=2)
    after = tensors({"state": optimizer.state_dict()["state"]})
    assert {name: t.data_ptr() for name, t in after.items()} == {n: place for n, (place, _) in before.items()}
    assert any(not torch.equal(after[name], old) for name, (_, old) in before.items())


def test_the_whole_state_goes_through_safetensors(tmp_path):
    models = [mlp(), mlp()]
    optimizers = [learned(model.parameters(), loss_guard=True) for model in models]

    def advance(model, optimizer, seed):
        optimizer.zero_grad()
        give_gradients(model, seed)
        optimizer.observe(float(seed))
        optimizer.step()

    for seed in range(4):
        advance(models[0], optimizers[0], seed)
    saved = optimizers[0].state_dict()
    groups = saved.pop("param_groups")
    save_file(tensors(saved), tmp_path / "state.safetensors")
    read: dict = {"state": {}, "param_groups": groups, "loss_guard": {}}
    for path, tensor in load_file(tmp_path / "state.safetensors").items():
        first, *rest = path.strip("/").split("/")
        if first == "state":
            read["state"].setdefault(int(rest[0]), {})[rest[1]] = tensor
        elif first == "loss_guard":
            read["loss_guard"][rest[0]] = tensor
        else:
            read[first] = tensor
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(read)
    assert optimizers[1].guard == optimizers[0].guard
    assert [type(value) for value in vars(optimizers[1].guard).values()] == [
        type(value) for value in vars(optimizers[0].guard).values()
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        advance(model, optimizer, 7)
    assert same(values(models[0]), values(models[1]))


def _train_shared(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.set_num_threads(1)
    train(model, optimizer, 3)


def test_state_in_shared_memory_is_advanced_by_another_process():
    """As in Hogwild and A3C: the state is made, shared, and stepped elsewhere."""
    model = mlp().share_memory()
    optimizer = learned(model.parameters())
    train(model, optimizer, 1)
    for state in optimizer.state.values():
        for value in state.values():
            value.share_memory_()
    twin_model, twin = copy.deepcopy((model, optimizer))
    process = torch.multiprocessing.get_context("fork").Process(target=_train_shared, args=(model, optimizer))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    train(twin_model, twin, 3)
    assert same(values(model), values(twin_model))
    assert same(optimizer.state_dict()["state"], twin.state_dict()["state"])


def test_state_that_was_moved_away_and_back():
    models = [mlp(), mlp()]
    optimizers = [learned(model.parameters()) for model in models]
    for seed in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, 1, seed)
        for p, state in optimizers[1].state.items():
            optimizers[1].state[p] = {key: value.clone() for key, value in state.items()}
    assert same(values(models[0]), values(models[1]))


def test_state_of_views_from_an_older_checkpoint():
    model = mlp()
    optimizer = learned(model.parameters())
    train(model, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["momenta"] = torch.stack([torch.zeros_like(state["momenta"]), state["momenta"]])[1]
    saved["skipped_steps"] = 3
    resumed = learned(model.parameters())
    resumed.load_state_dict(saved)
    assert resumed.skipped_steps == 3
    held = tensors(resumed.state_dict()["state"])
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in held.values())


@pytest.mark.parametrize("missing", ["maximize", "weight_decay", "lr"])
def test_an_option_that_an_older_checkpoint_lacks(missing):
    model = mlp()
    optimizer = learned(model.parameters(), weight_decay=0.5, lr=0.7)
    train(model, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    expected = saved["param_groups"][0].pop(missing)
    resumed = learned(model.parameters(), weight_decay=0.5, lr=0.7)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0][missing] == expected
    train(model, resumed, 1)


@pytest.mark.parametrize("rule", ["lopt-small", "lopt-base"])
def test_a_resumed_run_takes_its_own_horizon(rule):
    whole, model = mlp(), mlp()
    train(whole, learned(whole.parameters(), rule=rule, total_steps=1000), 5)
    first = learned(model.parameters(), rule=rule, total_steps=5)
    train(model, first, 5)
    resumed = learned(model.parameters(), rule=rule, total_steps=1000)
    with pytest.warns(UserWarning, match="total_steps: .* planned for 5 steps .* it is 1000"):
        resumed.load_state_dict(first.state_dict())
    before = values(model)
    train(model, resumed, 1)
    assert max((p - old).abs().max() for p, old in zip(model.parameters(), before, strict=True)) > 1e-4
    assert {float(state["total_steps"]) for state in resumed.state.values()} == {1000.0}
    assert {float(state["total_steps"]) for state in first.state.values()} == {5.0}


def test_a_horizon_that_is_not_given_again_is_kept():
    model = mlp()
    first = learned(model.parameters(), total_steps=50)
    train(model, first, 2)
    resumed = learned(model.parameters())
    resumed.load_state_dict(first.state_dict())
    assert {float(state["total_steps"]) for state in resumed.state.values()} == {50.0}


@pytest.mark.parametrize("rule", ["lopt-small", "lopt-base"])
def test_no_tensor_of_inference_mode_stays(rule):
    """Steps are made in it; whoever keeps, copies or differentiates what they leave behind must not notice."""
    model = mlp()
    optimizer = learned(model.named_parameters(), rule=rule)
    train(model, optimizer, 3)
    for state in optimizer.state.values():
        state["second"] = state["second"].double()  # of another precision: it is made anew
    train(model, optimizer, 2)
    kept = [*model.parameters(), *(value for state in optimizer.state.values() for value in state.values())]
    assert {value.dtype for value in kept} == {torch.float32}
    assert not any(value.is_inference() for value in kept)
    twin = copy.deepcopy(model)
    other = learned(twin.named_parameters(), rule=rule)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(twin, other, 3) == train(model, optimizer, 3)


def test_state_that_was_loaded_in_inference_mode():
    model = mlp()
    optimizer = learned(model.parameters())
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    with torch.inference_mode():
        optimizer.load_state_dict(state)
    train(model, optimizer, 2)


KEPT = {torch.Tensor.new_zeros, torch.Tensor.detach, torch.Tensor.clone}


class KeptByNew(torch.Tensor):
    """A class of tensors that stays itself in what `new_zeros` makes, as torchao's for training in 8 bits."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **(kwargs or {}))
        return made.as_subclass(cls) if func in KEPT else made


@pytest.mark.parametrize("rule", ["lopt-small", "lopt-base"])
def test_state_of_a_class_of_tensors_is_plain(rule, tmp_path):
    """Else nobody could load it with `weights_only`."""
    model = mlp()
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(KeptByNew))
    optimizer = learned(model.parameters(), rule=rule)
    train(model, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert {type(t) for state in optimizer.state.values() for t in state.values()} == {torch.Tensor}
