"""A rule file with its model card, made from what the file says of itself, on the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import yaml

from lopt.rules import hub
from lopt.rules.io import load_rule, locate, provenance_of
from lopt.rules.learned import LearnedRule

TAGS = ("learned-optimizer", "meta-learning", "optimizer", "pytorch")
MACHINE = ("torch", "python", "cpu", "cuda", "threads")
LOCAL = ("data", "out")
"""Keys of a config that name folders of the machine it ran on."""


def push_rule(
    name_or_path: str | os.PathLike[str], repo: str, *, private: bool = False, card: str | None = None
) -> str:
    """Share a rule file, run folder or shipped rule as "hf:owner/name"; returns the repository's address.

    `card` is Markdown to put beside it instead of `model_card`'s. A repository that is there already gets a new
    commit; `private` is for one that is not. Needs `lopt[hub]` and a token (`hf auth login`).

    Raises `RuleFileError` if it is not a rule, `HubError` if the Hub does not take it.
    """
    path = locate(name_or_path)
    load_rule(path)  # raises where it is none, before anything is sent
    made = model_card(path, repo) if card is None else card
    return hub.upload(repo, {hub.FILE: path.read_bytes(), "README.md": made.encode()}, private=private)


def model_card(name_or_path: str | os.PathLike[str], repo: str) -> str:
    """The card as Markdown: what the rule is, how to use it, and how it was made as far as its file says."""
    repo, _ = hub.parse(repo)
    rule, provenance = load_rule(name_or_path), provenance_of(name_or_path)
    front = yaml.safe_dump({"library_name": "lopt", "tags": list(TAGS)}, sort_keys=False)
    sections = [
        f"---\n{front}---",
        f"# {repo.rpartition('/')[2]}",
        "A learned optimizer: a meta-trained update rule for neural networks, used through lopt in place of a"
        " `torch.optim` optimizer.",
        "## Use",
        _use(repo),
        "## What it is",
        _table(_description(rule)),
        "## How it was made",
        _making(provenance),
    ]
    return "\n\n".join(sections) + "\n"


def _use(repo: str) -> str:
    return f"""    pip install "lopt[hub]"

```python
import lopt

graph = lopt.ParameterGraph.trace(model, example_inputs)
optimizer = lopt.LearnedOptimizer(model.named_parameters(), graph=graph, rule="{hub.PREFIX}{repo}", total_steps=1000)
```

The learning rate stays at its default of 1.0: the rule decides its own steps, and `lr` multiplies them."""


def _description(rule: LearnedRule) -> dict[str, object]:
    config = rule.config
    per_parameter = 4 * (len(config.decays) + 1 + rule.metanet.memory)
    return {
        "metanet": " ".join(str(value) for _, value in config.metanet),
        "meta-parameters": f"{sum(p.numel() for p in rule.parameters()):,}",
        "base directions": ", ".join(config.directions),
        "update form": config.update_form,
        "decays": ", ".join(f"{decay:g}" for decay in (*config.decays, config.second_decay)),
        "optimizer state": f"{per_parameter} bytes per parameter, and 8 per tensor",
    }


def _making(provenance: Mapping[str, Any]) -> str:
    if not provenance:
        return "The rule file does not say."
    facts = {key: provenance.get(key) for key in ("command", "commit", "time", "outer_steps", "validation")}
    machine = ", ".join(f"{key} {provenance[key]}" for key in MACHINE if provenance.get(key) is not None)
    told = _table(
        {key.replace("_", " "): value for key, value in {**facts, "machine": machine}.items() if value}
    )
    others = {
        key: value
        for key, value in provenance.items()
        if key not in {*facts, *MACHINE, "config", "cpus", "platform", "processor"}
    }
    config = {key: value for key, value in provenance.get("config", {}).items() if key not in LOCAL}
    blocks = [told]
    for title, section in (("config", config), ("more", others)):
        if section:
            text = yaml.safe_dump(section, sort_keys=False, default_flow_style=None, width=110)
            blocks.append(f"<details><summary>{title}</summary>\n\n```yaml\n{text}```\n\n</details>")
    return "\n\n".join(blocks)


def _table(rows: Mapping[str, object]) -> str:
    # A bar would end the cell, and a command may hold one.
    cells = {key: str(value).replace("|", "\\|").replace("\n", " ") for key, value in rows.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells.items())])
