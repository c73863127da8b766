"""Metanets: features on the parameter graph -> raw outputs for every scalar; one file per architecture."""

from __future__ import annotations

from lopt.metanets.axisnet import AxisNet
from lopt.metanets.base import Metanet

METANETS: dict[str, type[Metanet]] = {"axisnet": AxisNet}
"""Every metanet by the name that configs and rule files use."""

__all__ = ["METANETS", "AxisNet", "Metanet"]
