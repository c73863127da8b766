"""All rules by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

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
    if metanet in CLASSICAL:
        return _construct(CLASSICAL[metanet], metanet, options)
    if metanet not in METANETS:
        raise ConfigError(f"rule: expected one of {', '.join(names())}, found {metanet!r}")
    own = {field.name for field in fields(LearnedRuleConfig)} - {"metanet", "metanet_options"}
    rest = {key: value for key, value in options.items() if key not in own}
    config = {key: value for key, value in options.items() if key in own}
    return _construct(lambda **kw: LearnedRule(LearnedRuleConfig(metanet, rest, **kw)), metanet, config)


def _construct(make: Any, name: str, options: dict[str, Any]) -> Rule:
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(f"rule {name!r}: {error}; see its documentation for the options it takes") from None
