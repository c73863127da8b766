"""Metanets: features on the parameter graph -> raw outputs for every scalar; one file per architecture."""

from __future__ import annotations

from lopt.metanets.axisnet import AxisNet
from lopt.metanets.base import Metanet
from lopt.metanets.deepsets import DeepSets
from lopt.metanets.lstm import Lstm, TensorLstm
from lopt.metanets.mlp import Mlp
from lopt.metanets.published.dwsnet import DwsNet
from lopt.metanets.published.gmn import Gmn
from lopt.metanets.published.nfn import Nfn
from lopt.metanets.published.ng_gnn import NgGnn
from lopt.metanets.published.ng_t import NgT
from lopt.metanets.published.unf import Unf
from lopt.metanets.tensor_mlp import TensorMlp
from lopt.registry import Registry

METANETS: Registry[type[Metanet]] = Registry(
    "metanet", Metanet, given=("features", "context", "outputs"), default="axisnet"
)
"""Every metanet by the name that configs and rule files use."""

for _name, _metanet in {
    "axisnet": AxisNet,
    "mlp": Mlp,
    "lstm": Lstm,
    "tensor_lstm": TensorLstm,
    "tensor_mlp": TensorMlp,
    "deepsets": DeepSets,
    "nfn": Nfn,
    "dwsnet": DwsNet,
    "unf": Unf,
    "ng_gnn": NgGnn,
    "ng_t": NgT,
    "gmn": Gmn,
}.items():
    METANETS.register(_name)(_metanet)

__all__ = [
    "METANETS",
    "AxisNet",
    "DeepSets",
    "DwsNet",
    "Gmn",
    "Lstm",
    "Metanet",
    "Mlp",
    "Nfn",
    "NgGnn",
    "NgT",
    "TensorLstm",
    "TensorMlp",
    "Unf",
]
