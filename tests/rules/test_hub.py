"""Rules on a Hub of the test's own: exact there and back, silent for every other name, one error for each mistake."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

import lopt
from lopt.cli import main
from lopt.errors import HubError, RuleFileError
from lopt.rules import hub
from lopt.rules.card import model_card
from tests.helpers import randomised
from tests.rules.hub_server import TOKEN, FakeHub


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", fake.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    place = template[template.index("/{repo_id}") :]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.address + place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between one try and the next
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield fake
    fake.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    rule = randomised(lopt.make_rule("mlp", decays=(0.5, 0.95), directions=("slow", "orthogonal")))
    provenance = {
        "command": "lopt train a | b", "commit": "c0ffee", "outer_steps": 7, "torch": "9.9", "cpus": 3,
        "config": {"name": "a", "data": "/home/someone", "tasks": [{"family": "mlp"}]}, "note": "by hand",
    }  # fmt: skip
    lopt.save_rule(rule, tmp_path / "own.safetensors", provenance)
    return tmp_path / "own.safetensors"


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)


def test_pushed_and_loaded_is_the_same_rule(server: FakeHub, file: Path) -> None:
    address = lopt.push_rule(file, "me/mine")
    assert address == f"{server.address}/me/mine"
    assert server.repos["me/mine"]["rule.safetensors"] == file.read_bytes()
    loaded = lopt.load_rule("hf:me/mine")
    assert same(loaded, lopt.load_rule(file))
    assert loaded.config == lopt.load_rule(file).config
    assert "me/mine" not in server.private


def test_a_pushed_rule_trains(server: FakeHub, file: Path) -> None:
    lopt.push_rule(file, "hf:me/mine")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = lopt.LearnedOptimizer([weight], rule="hf:me/mine")
    weight.square().sum().backward()
    optimizer.step()
    assert (weight < 1).all()


def test_pushing_again_replaces_and_a_revision_keeps(server: FakeHub, file: Path) -> None:
    lopt.push_rule(file, "me/mine")
    first = server.commit("me/mine")
    lopt.load_rule(f"hf:me/mine@{first}")
    lopt.push_rule("lopt-base", "me/mine")
    assert lopt.load_rule("hf:me/mine").config.metanet.name == "tensor_mlp"
    assert lopt.load_rule(f"hf:me/mine@{first}").config.metanet.name == "mlp"


def test_private(server: FakeHub, file: Path) -> None:
    lopt.push_rule(file, "me/mine", private=True)
    assert server.private == {"me/mine"}


def test_a_cached_rule_needs_no_hub(server: FakeHub, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lopt.push_rule(file, "me/mine")
    lopt.load_rule("hf:me/mine")
    downloads = sum(asked.startswith("HEAD") for asked in server.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(lopt.load_rule("hf:me/mine"), lopt.load_rule(file))
    assert sum(asked.startswith("HEAD") for asked in server.asked) == downloads
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.close()
    assert same(lopt.load_rule("hf:me/mine"), lopt.load_rule(file))


def test_other_names_ask_nobody(server: FakeHub, file: Path) -> None:
    server.repos["me/mine"] = {"rule.safetensors": file.read_bytes()}
    lopt.load_rule(file)
    lopt.load_rule("lopt-base")
    with pytest.raises(RuleFileError, match="hf:owner/name"):
        lopt.load_rule("me/mine")
    assert server.asked == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("hf:me/nothing", "no such repository"),
        ("hf:me/other", "not a lopt rule: the repository holds no rule.safetensors"),
        ("hf:me/foreign", "not|expected a lopt-rule file"),
        ("hf:me/other@v2", "no such branch, tag or commit"),
        ("hf:mine", "expected hf:owner/name"),
        ("hf:me/a/b", "expected hf:owner/name"),
        ("hf:", "expected hf:owner/name"),
        ("hf:me/mine@", "expected hf:owner/name"),
    ],
)
def test_mistakes_of_a_name(
    server: FakeHub, capsys: pytest.CaptureFixture[str], name: str, complaint: str
) -> None:
    server.repos["me/other"] = {"model.safetensors": b""}
    server.repos["me/foreign"] = {"rule.safetensors": b"not one"}
    with pytest.raises((HubError, RuleFileError), match=complaint):
        lopt.load_rule(name)
    assert main(["evaluate", name, "--tasks", "digits/test"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_neither_hub_nor_copy(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.close()
    with pytest.raises(HubError, match="cannot be reached and no copy is in the cache"):
        lopt.load_rule("hf:me/mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="cannot be reached and no copy is in the cache"):
        lopt.load_rule("hf:me/mine")


def test_pushing_without_a_hub(server: FakeHub, file: Path) -> None:
    server.close()
    with pytest.raises(HubError, match="hf:me/mine: the Hub cannot be reached"):
        lopt.push_rule(file, "me/mine")


def test_pushing_without_leave(server: FakeHub, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="hf auth login"):
        lopt.push_rule(file, "me/mine")
    assert server.repos == {}


def test_what_is_no_rule_is_not_pushed(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not a rule")
    for wrong, card in ((tmp_path / "text.safetensors", None), (tmp_path / "text.safetensors", "# mine")):
        with pytest.raises(RuleFileError):
            lopt.push_rule(wrong, "me/mine", card=card)
    with pytest.raises(HubError, match="leave out @v2"):
        lopt.push_rule("lopt-base", "me/mine@v2")
    assert server.asked == []


def test_without_the_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r'pip install "lopt\[hub\]"'):
        lopt.load_rule("hf:me/mine")
    with pytest.raises(HubError, match=r'pip install "lopt\[hub\]"'):
        lopt.push_rule(file, "me/mine")
    assert lopt.load_rule(file).config.metanet.name == "mlp"


def test_card_tells_what_the_file_tells(file: Path) -> None:
    card = model_card(file, "me/mine")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "lopt"
    assert 'rule="hf:me/mine"' in card
    for fact in (
        "c0ffee",
        "outer steps | 7",
        "lopt train a \\| b",
        "torch 9.9",
        "note: by hand",
        "- {family: mlp}",
    ):
        assert fact in card
    assert "/home/someone" not in card
    assert f"{sum(p.numel() for p in lopt.load_rule(file).parameters()):,}" in card


def test_card_without_provenance(tmp_path: Path) -> None:
    lopt.save_rule(lopt.make_rule("mlp"), tmp_path / "r.safetensors")
    assert "The rule file does not say." in model_card(tmp_path / "r.safetensors", "me/mine")


@pytest.mark.parametrize("metanet", ["mlp", "lstm"])
def test_card_states_the_state(tmp_path: Path, metanet: str) -> None:
    rule = lopt.make_rule(metanet)
    lopt.save_rule(rule, tmp_path / "r.safetensors")
    weight = torch.nn.Parameter(torch.ones(100))
    weight.grad = torch.ones(100)
    optimizer = lopt.LearnedOptimizer([weight], rule=rule)
    optimizer.step()
    size = sum(value.numel() * value.element_size() for value in optimizer.state[weight].values())
    assert f"{(size - 8) // 100} bytes per parameter, and 8 per tensor" in model_card(
        tmp_path / "r.safetensors", "m/m"
    )


def test_command_line(
    server: FakeHub, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(file), "me/mine", "--dry-run"]) == 0
    card = capsys.readouterr().out
    assert server.asked == []
    assert main(["push", str(file), "me/mine"]) == 0
    assert capsys.readouterr().out == f"{server.address}/me/mine\n"
    assert server.repos["me/mine"]["README.md"].decode() == card.removesuffix("\n")
    (tmp_path / "card.md").write_text("# By hand\n")
    assert main(["push", str(file), "me/mine", "--card", str(tmp_path / "card.md")]) == 0
    assert server.repos["me/mine"]["README.md"] == b"# By hand\n"
    capsys.readouterr()
    assert main(["push", str(file), "me/mine", "--card", str(tmp_path / "missing.md")]) == 2
    assert main(["push", str(tmp_path / "nothing"), "me/mine"]) == 2
    assert main(["push", str(file), "mine"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_parse() -> None:
    assert hub.parse("hf:me/my.rule-2@refs/pr/1") == ("me/my.rule-2", "refs/pr/1")
    assert hub.parse("me/mine") == ("me/mine", None)
