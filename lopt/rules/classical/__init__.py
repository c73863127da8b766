"""Classical rules, in the same pure form as the learned ones."""

from collections.abc import Callable

from lopt.rules.base import Rule
from lopt.rules.classical.adafactor import Adafactor
from lopt.rules.classical.adam import Adam, AdamW
from lopt.rules.classical.base import ClassicalRule
from lopt.rules.classical.lion import Lion
from lopt.rules.classical.muon import Muon
from lopt.rules.classical.normuon import NorMuon
from lopt.rules.classical.schedule_free import ScheduleFreeAdamW
from lopt.rules.classical.sgd import SGD
from lopt.rules.classical.soap_muon import SoapMuon
from lopt.rules.classical.torch_optim import TorchOptim

CLASSICAL: dict[str, Callable[..., Rule]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "adafactor": Adafactor,
    "lion": Lion,
    "muon": Muon,
    "normuon": NorMuon,
    "soap_muon": SoapMuon,
    "schedule_free_adamw": ScheduleFreeAdamW,
}
"""The classical rules by name; each is called with its hyperparameters, `lr` among them."""

__all__ = [
    "CLASSICAL",
    "SGD",
    "Adafactor",
    "Adam",
    "AdamW",
    "ClassicalRule",
    "Lion",
    "Muon",
    "NorMuon",
    "ScheduleFreeAdamW",
    "SoapMuon",
    "TorchOptim",
]
