"""Damaged rule files and configs: each is read, or refused with one line; nothing else, and nothing large or slow."""

from __future__ import annotations

import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from lopt.config import dump, load
from lopt.errors import ConfigError, DataError, LoptError, RuleFileError
from lopt.rules import LearnedRule, load_rule, make_rule, save_rule
from lopt.rules.io import FORMAT, VERSION
from lopt.training.run_config import RunConfig
from meta_tasks import make_family
from tests.fuzz import mutate

SLOWEST, LARGEST = 20.0, 600
"""Seconds that one input may take, on a machine that does other things too, and MiB that memory may grow by."""


@contextmanager
def bounded() -> Iterator[Counter[str]]:
    """Counts outcomes; checks that memory stays."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts: Counter[str] = Counter()
    yield counts
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{dict(counts)}, memory grew by {grown:.0f} MiB")
    assert grown < LARGEST


def outcome(read: Callable[[], Any], allowed: type[LoptError] | tuple[type[LoptError], ...]) -> str:
    start = time.perf_counter()
    message = None
    try:
        read()
    except allowed as error:
        message = str(error)
    assert time.perf_counter() - start < SLOWEST
    if message is None:
        return "read"
    assert len(message) < 2000
    assert "\n" not in message
    return "refused"


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_rule_files(tmp_path: Path, count: int) -> None:
    path, draw = tmp_path / "rule.safetensors", random.Random(0)
    save_rule(make_rule("axisnet", width=3, neuron_width=4, layers=1), path, {"seed": 0})  # type: ignore[arg-type]
    whole, tensors = path.read_bytes(), load_file(path)
    header = {"version": VERSION, "rule": load_rule(path).describe(), "provenance": {"seed": 0}}
    with bounded() as counts:
        for _ in range(count):
            if draw.random() < 0.5:
                path.write_bytes(mutate.raw(whole, draw))
            else:
                text = json.dumps(mutate.tree(header, draw))
                damaged = (
                    mutate.raw(text.encode(), draw).decode(errors="replace") if draw.random() < 0.3 else text
                )
                path.write_bytes(save(tensors, {FORMAT: damaged.encode(errors="replace").decode()}))
            counts[outcome(lambda: load_rule(path), RuleFileError)] += 1
    assert counts["refused"] > count / 2
    assert counts["read"] > 0


CONFIG = yaml.safe_load("""
name: x
seed: 3
rule:
  metanet: {name: axisnet, width: 4}
  decays: [0.9, 0.99]
  directions: {adam: 1.0, slow: 0.1}
  scales: {matrix: 0.5}
  constants: [momentum_decay]
  rate: 0.01
  fade: 10
  max_step: 0.5
tasks:
  - {family: quadratic, options: {dimension: {low: 3, high: 9, log: true}}, weight: 2.0}
  - {family: mlp, options: {widths: {low: 4, high: 9}, depth: [1, 2], batch_size: 8}}
validation: [quadratic, {family: cnn, options: {widths: [4, 4]}}]
meta: {steps: 2, cohorts: 2, networks: 2, truncation: 5, learning_rate: 0.001, estimator: {name: pes, sigma: 0.1}}
""")


def read_config(path: Path) -> None:
    """All that is looked at before a run begins."""
    config = load(RunConfig, path)
    assert load(RunConfig, json.loads(json.dumps(yaml.safe_load(dump(config))))) == config
    with torch.device("meta"):
        LearnedRule(config.rule)
    for entry in config.tasks:
        make_family(entry.family, entry.options).sample_spec(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [300, pytest.param(2_000, marks=pytest.mark.slow)])
def test_damaged_configs(tmp_path: Path, count: int) -> None:
    path, draw = tmp_path / "config.yaml", random.Random(1)
    whole = yaml.safe_dump(CONFIG).encode()
    with bounded() as counts:
        for _ in range(count):
            kind = draw.random()
            if kind < 0.3:
                path.write_bytes(mutate.raw(whole, draw))
            else:
                path.write_text(json.dumps(mutate.tree(CONFIG, draw)))
            counts[outcome(lambda: read_config(path), (ConfigError, DataError))] += 1
    assert counts["refused"] > count / 3
    assert counts["read"] > 0


LAUGHS = "a: &a [x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "an alias; write out what it stands for"),
        ("[" * 5000, "more than 24 sections within each other"),
        ("{a: " * 5000, "more than 24 sections within each other"),
        ("- " * 5000 + "x", "more than 24 sections within each other"),
        ("a: " + "9" * 5000, "write a number in decimals"),
        ("a: 010", "found: 010; write a number in decimals"),
        ("a: 1:30", "found: 1:30; write a number in decimals"),
        ("a: 1_000", "found: 1_000; write"),
        ("a: 0x1F", "found: 0x1F; write"),
        ("a: no", "true or false, or text in quotes"),
        ("a: 2020-01-01", "the tag 'tag:yaml.org,2002:timestamp'"),
        ("a: !!python/object/apply:os.system [ls]", "the tag"),
        ("a: !!bool maybe", "maybe; write"),
        ("a: !!timestamp x", "the tag"),
        ("a: !!null x", "the tag"),
        ("a: !mine x", "the tag '!mine'"),
        ("<<: {a: 1}", "a key that is not text"),
        ("a: " + "x" * 300_000, "at most 200000 characters"),
    ],
)
def test_yaml_that_is_large_runs_something_or_means_something_else(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "key", ["a." * 3000, "tasks." + "9" * 5000, "", ".", "rule..rate", "tasks.-1", "tasks.0x"]
)
def test_keys_of_overrides_from_strangers(key: str) -> None:
    with pytest.raises(ConfigError):
        load(RunConfig, CONFIG, {key: 1})
