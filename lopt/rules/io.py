"""Rule files: meta-parameters as safetensors, everything else as JSON in its header. Nothing in them can run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lopt.errors import ConfigError, RuleFileError
from lopt.files import read, user_path, write
from lopt.rules import hub
from lopt.rules.learned import LearnedRule

FORMAT = "lopt-rule"
VERSION = 2
RULE = "rule.safetensors"
"""The file of a run folder."""


def save_rule(
    rule: LearnedRule, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a rule to one safetensors file, atomically. `provenance` is any JSON-able account of its making.

    Raises `ConfigError` for what is no learned rule: classical ones are made by their names.
    """
    if not isinstance(rule, LearnedRule):
        raise ConfigError(f"rule: expected a learned rule to write, found {type(rule).__name__}")
    header = {"version": VERSION, "rule": rule.describe(), "provenance": dict(provenance or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in rule.state_dict().items()}
    write(path, tensors, FORMAT, header)


def load_rule(name_or_path: str | os.PathLike[str]) -> LearnedRule:
    """Read a rule that ships with lopt, by name, or a file that `save_rule` or a training run wrote.

    "hf:owner/name" or "hf:owner/name@revision" is a rule on the Hugging Face Hub: downloaded into its cache the
    first time, read from there where the Hub cannot be reached. No other name downloads anything.

    Raises `RuleFileError` if there is none, or if it is damaged, of another format, version or shape, and
    `HubError` if the Hub does not give it.
    """
    path = locate(name_or_path)
    tensors, header = read(path, FORMAT, VERSION)
    try:
        # Nothing is allocated, however wide the file says that the rule is, before its tensors are known to fit.
        with torch.device("meta"):
            planned = LearnedRule.from_description(header.get("rule", {}))
    except ConfigError as error:
        raise RuleFileError(
            f"{path}: the file describes a rule that this version cannot build: {error}"
        ) from None
    _check_fit(planned, tensors, path)
    # Once more where the numbers are: what a rule computes for itself, and no file holds, would stay on "meta".
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        rule = LearnedRule.from_description(header.get("rule", {}))
    # Copied, not assigned: products round by the layout in memory, and a loaded rule takes the same steps to the bit.
    rule.to(tensors["log_rate"].dtype).load_state_dict(tensors)
    return rule


def pretrained_names() -> list[str]:
    """The rules that ship with the package."""
    files = [entry.name for entry in resources.files("lopt.pretrained").iterdir()]
    return sorted(n.removesuffix(".safetensors") for n in files if n.endswith(".safetensors"))


def provenance_of(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """How a rule was made, as its file says; nothing if it does not."""
    told: dict[str, Any] = read(locate(name_or_path), FORMAT, VERSION)[1].get("provenance", {})
    return told


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a rule; "hf:owner/name" alone may download it."""
    if hub.is_hub_name(name_or_path):
        return hub.fetch(str(name_or_path))
    path = user_path(name_or_path)
    if path.is_dir():
        path = path / RULE
    if path.is_file():
        return path
    shipped = resources.files("lopt.pretrained") / f"{name_or_path}.safetensors"
    if shipped.is_file():
        return Path(str(shipped))
    if path.name == RULE and path.parent.is_dir():
        raise RuleFileError(
            f"{path.parent}: expected a run folder with {RULE}, found none in it; a run writes it with its first"
            " validation"
        )
    known = ", ".join(pretrained_names()) or "none in this version"
    raise RuleFileError(
        f"rule {str(name_or_path)!r}: expected a rule file, a run folder or a shipped rule ({known}),"
        " or hf:owner/name"
    )


def _check_fit(rule: LearnedRule, tensors: dict[str, Tensor], path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in rule.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        names = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        first = names[0]
        raise RuleFileError(
            f"{path}: expected {first} of shape {expected.get(first)}, found {found.get(first)}"
            f" ({len(names)} tensors differ); the file does not fit the rule it describes"
        )
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and torch.isfinite(tensor).all()):
            raise RuleFileError(f"{path}: expected finite floating-point numbers in {name}, found others")
