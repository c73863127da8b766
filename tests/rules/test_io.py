"""Rule files: exact, whole or refused, and never anything that runs."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lopt.errors import ConfigError, RuleFileError
from lopt.files import write_atomically
from lopt.rules import LearnedRule, LearnedRuleConfig, load_rule, pretrained_names, save_rule
from lopt.rules.io import FORMAT, VERSION, provenance_of
from lopt.training import checkpoint
from tests.helpers import randomised


def odd_rule(dtype: torch.dtype = torch.float32) -> LearnedRule:
    """A rule in which nothing is at its default."""
    torch.manual_seed(0)
    config = LearnedRuleConfig(
        metanet_options={"width": 3, "neuron_width": 5, "layers": 1}, rate=3e-4, decays=(0.5, 0.95),
        second_decay=0.9, directions=("slow", "orthogonal"), max_step=0.1,
    )  # fmt: skip
    return randomised(LearnedRule(config).to(dtype))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rule.safetensors"
    save_rule(odd_rule(), path, {"made by": "a test", "seed": 3})
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    rule = odd_rule(dtype)
    with torch.no_grad():
        rule.metanet.head.scalar[0, :3] = torch.tensor([-0.0, 1e-38, math.pi])
    save_rule(rule, tmp_path / "r.safetensors")
    loaded = load_rule(tmp_path / "r.safetensors")
    assert loaded.config == rule.config
    assert loaded.state_dict().keys() == rule.state_dict().keys()
    for name, value in rule.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == dtype
        assert found.numpy(force=True).tobytes() == value.numpy(force=True).tobytes() if dtype != torch.bfloat16 \
            else torch.equal(found.view(torch.int16), value.view(torch.int16))  # fmt: skip
    assert all(p.requires_grad for p in loaded.parameters())


def test_a_home_folder_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_rule(odd_rule(), "~/rules/r.safetensors")
    assert (tmp_path / "rules" / "r.safetensors").is_file()
    assert load_rule("~/rules/r.safetensors").config == odd_rule().config
    assert provenance_of("~/rules/r.safetensors") == {}


def test_what_is_no_rule_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rule: expected a learned rule to write, found str"):
        save_rule("lopt-small", tmp_path / "r.safetensors")  # type: ignore[arg-type]


def test_a_loaded_rule_does_what_the_saved_one_did(path: Path) -> None:
    from lopt.graph import ParameterGraph

    params = {"w": torch.linspace(-1, 1, 6).reshape(2, 3), "b": torch.ones(2)}
    steps = []
    for rule in (odd_rule(), load_rule(path)):
        bound = rule.on(ParameterGraph.untied(params.items()))
        steps.append(bound.update(params, bound.init(params), params)[0])
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in params)


def test_a_rule_that_does_not_say_how_it_was_made(path: Path) -> None:
    header = {"version": VERSION, "rule": odd_rule().describe()}
    save_file(load_file(path), path, {FORMAT: json.dumps(header)})
    assert provenance_of(path) == {}


def test_saving_twice_gives_the_same_bytes_and_a_run_folder_is_a_name(path: Path) -> None:
    before = path.read_bytes()
    save_rule(load_rule(path.parent), path, {"made by": "a test", "seed": 3})
    assert path.read_bytes() == before
    assert provenance_of(path) == {"made by": "a test", "seed": 3}


def rewrite(path: Path, **changes: Any) -> None:
    """The same tensors under a header with changes."""
    header = {"version": VERSION, "rule": odd_rule().describe(), "provenance": {}, **changes}
    save_file(load_file(path), path, {FORMAT: json.dumps(header)})


def rule_with(**changes: Any) -> Callable[[Path], None]:
    return lambda path: rewrite(path, rule={**odd_rule().describe(), **changes})


def with_metadata(metadata: dict[str, str] | None) -> Callable[[Path], None]:
    return lambda path: save_file(load_file(path), path, metadata)


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        header = {"version": VERSION, "rule": odd_rule().describe(), "provenance": {}}
        save_file(tensors, path, {FORMAT: json.dumps(header)})

    return apply


def edited(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def flip_in_tensors(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 0x40]) + data[-39:]


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (edited(lambda data: b""), "cannot be read"),
    "nine bytes": (edited(lambda data: data[:9]), "cannot be read"),
    "half": (edited(lambda data: data[: len(data) // 2]), "cannot be read"),
    "one byte short": (edited(lambda data: data[:-1]), "cannot be read"),
    "one byte long": (edited(lambda data: data + b"x"), "cannot be read"),
    "text": (edited(lambda data: b"rate: 0.1\n" * 20), "cannot be read"),
    "zeros": (edited(lambda data: bytes(len(data))), "cannot be read"),
    "header length": (edited(lambda data: struct.pack("<Q", 2**60) + data[8:]), "cannot be read"),
    "flipped bit": (edited(flip_in_tensors), "damaged"),
    "pickle": (edited(lambda data: pickle.dumps({"w": 1})), "cannot be read"),
    "no metadata": (with_metadata(None), "another safetensors file"),
    "foreign": (with_metadata({"format": "pt"}), "another safetensors file"),
    "no json": (with_metadata({FORMAT: "{"}), "damaged"),
    "a list": (with_metadata({FORMAT: "[1, 2]"}), "damaged"),
    "a number": (with_metadata({FORMAT: "1"}), "damaged"),
    "old version": (lambda path: rewrite(path, version=VERSION - 1), f"expected lopt-rule version {VERSION}"),
    "new version": (lambda path: rewrite(path, version=VERSION + 1), f"expected lopt-rule version {VERSION}"),
    "no rule": (lambda path: rewrite(path, rule=None), "cannot build"),
    "other metanet": (rule_with(metanet="transformer"), "metanet: expected one of axisnet"),
    "unknown option": (rule_with(speed=1), "speed"),
    "wrong type": (rule_with(rate="fast"), "cannot build"),
    "wrong option": (rule_with(metanet_options={"width": "wide"}), "width"),
    "negative size": (rule_with(metanet_options={"width": -3}), "width"),
    "other shape": (rule_with(metanet_options={"width": 4, "neuron_width": 5, "layers": 1}), "of shape"),
    "more layers": (rule_with(metanet_options={"width": 3, "neuron_width": 5, "layers": 2}), "of shape"),
    "missing tensor": (with_tensors(lambda tensors: tensors.pop("log_rate")), "log_rate"),
    "extra tensor": (with_tensors(lambda tensors: tensors.update(extra=torch.zeros(1))), "extra"),
    "integers": (with_tensors(lambda t: t.update(log_rate=torch.tensor(1))), "log_rate"),
    "not finite": (with_tensors(lambda t: t.update(log_rate=torch.tensor(math.nan))), "log_rate"),
}  # fmt: skip


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_file_that_is_not_right_is_one_clear_error(path: Path, damage: str) -> None:
    apply, message = DAMAGE[damage]
    apply(path)
    with pytest.raises(RuleFileError, match=message) as caught:
        load_rule(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_not_a_rule_nor_the_reverse(path: Path) -> None:
    with pytest.raises(RuleFileError, match="expected a lopt-checkpoint file"):
        checkpoint.load(path)
    checkpoint.write(path, {"step": 1, "tensor": torch.ones(2)})
    with pytest.raises(RuleFileError, match="expected a lopt-rule file"):
        load_rule(path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule.safetensors").write_bytes(pickle.dumps(Bomb()))
    torch.save({"rule": Bomb()}, tmp_path / "rule.pt")
    for name in ("rule.safetensors", "rule.pt"):
        with pytest.raises(RuleFileError):
            load_rule(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    pickle.loads((tmp_path / "rule.safetensors").read_bytes())
    assert (tmp_path / "exploded").exists(), "the bomb is a real one"


def test_unknown_names_list_what_there_is(tmp_path: Path) -> None:
    for name in ("no-such-rule", tmp_path / "nowhere.safetensors"):
        with pytest.raises(
            RuleFileError, match="expected a rule file, a run folder or a shipped rule"
        ) as caught:
            load_rule(name)
        assert all(known in str(caught.value) for known in pretrained_names())


def test_a_run_folder_without_a_rule_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RuleFileError, match=r"expected a run folder with rule\.safetensors, found none in it; a run"
    ):
        load_rule(tmp_path)
    (tmp_path / "lopt-small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_rule("lopt-small").describe()["update_form"]  # a folder of that name hides no rule that ships


def test_a_failed_write_leaves_the_old_file_and_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: .{path}"):
        write_atomically(path, b"new")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["lopt-base", "lopt-small"])
def test_everything_of_a_loaded_rule_is_where_its_numbers_are(name: str) -> None:
    """Buffers that files do not hold too; and loading draws no random number that the caller would miss."""
    before = torch.random.get_rng_state()
    rule = load_rule(name)
    assert {tensor.device.type for tensor in (*rule.parameters(), *rule.buffers())} == {"cpu"}
    assert torch.equal(torch.random.get_rng_state(), before)
