"""All rules by name."""

from __future__ import annotations

from typing import Any

from lopt.config import from_mapping
from lopt.errors import ConfigError
from lopt.metanets import METANETS
from lopt.rules.base import Rule
from lopt.rules.classical import CLASSICAL
from lopt.rules.config import LearnedRuleConfig
from lopt.rules.learned import LearnedRule


def names() -> list[str]:
    """Every name that `make_rule` takes: metanets first, then classical rules."""
    return [*METANETS, *CLASSICAL]


def make_rule(metanet: str, **options: Any) -> Rule:
    """A fresh rule: a learned one around a metanet, or a classical one such as "adamw".

    Options of `LearnedRuleConfig` (rate, decays, directions...) and of the metanet's constructor (width...) may be
    mixed; those of a classical rule are its constructor's. Raises `ConfigError` for an unknown name or option.
    """
    if metanet not in names():
        raise ConfigError(
            f"rule: expected one of {', '.join(names())}, found {metanet!r}; options go beside the name"
        )
    if metanet in CLASSICAL:
        return CLASSICAL[metanet](**options)
    described = {"metanet": metanet, "options": options}
    return LearnedRule(from_mapping(LearnedRuleConfig, described, f"rule {metanet!r}"))
