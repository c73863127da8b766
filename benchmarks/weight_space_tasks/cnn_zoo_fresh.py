"""The readers of `cnn_zoo`, trained as there, on networks that had no part in how readers came to be as they are."""

from __future__ import annotations

from benchmarks.weight_space_tasks import cnn_zoo

METHODS = ("statnn", "ng_gnn+64")
BUDGET = {**cnn_zoo.BUDGET, "fresh": 208}
QUICK = {**cnn_zoo.QUICK, "fresh": 16}
run = cnn_zoo.run
