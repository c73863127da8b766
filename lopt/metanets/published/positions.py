"""Where in its network a neuron is: what tells inputs, outputs and layers apart, and hidden neurons of one layer not.

Shapes: N nodes, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lopt.graph.made_once import made_once
from lopt.graph.pyg_styles import NODE_KINDS
from lopt.metanets.published.wiring import Wiring

INPUT, OUTPUT = NODE_KINDS.index("input"), NODE_KINDS.index("output")


@made_once
def places(wiring: Wiring) -> Tensor:
    """(N,) numbers: each input its own, then one for each set of other neurons, then each output its own.

    As Neural Graphs counts them (Kofinas et al. 2024, arXiv 2403.12143, section 3.1). Inputs and outputs stay where
    they are; a metanet that reads this is no longer equivariant to their order, nor meant to be.
    """
    found = torch.zeros(wiring.nodes, dtype=torch.long)
    count = 0
    for of_its_own in (INPUT, None, OUTPUT):
        for nodes, kind in wiring.node_sets:
            size = nodes.stop - nodes.start
            if kind == of_its_own:
                found[nodes] = torch.arange(count, count + size)
                count += size
            elif of_its_own is None and kind not in (INPUT, OUTPUT):
                found[nodes] = count
                count += 1
    return found


@made_once
def position_codes(wiring: Wiring, width: int) -> Tensor:
    """(D, N): sin(n / 10000^(2k / D)) and its cosine at rows 2k and 2k + 1 (Vaswani et al. 2017, arXiv 1706.03762)."""
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000) / width))
    angles = places(wiring).double() * rates[:, None]
    return torch.stack([angles.sin(), angles.cos()], 1).flatten(0, 1)[:width]
