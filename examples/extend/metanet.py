"""A metanet of your own: a small network for each scalar that also sees the mean features of its tensor.

python metanet.py, or lopt --import metanet.py train CONFIG --rule.metanet '{name: averages, width: 16}'
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

import lopt
from lopt.metanets import Metanet
from lopt.training import train


@lopt.register_metanet("averages")
class Averages(Metanet):
    """features (F, P) -> raw outputs (R, P). The options of a config are the parameters of the constructor."""

    def __init__(
        self, features: int, context: int, outputs: int, width: Annotated[int, Field(ge=1, le=256)] = 8
    ) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(2 * features, width), nn.Linear(width, outputs)
        nn.init.zeros_(self.head.weight), nn.init.zeros_(self.head.bias)  # fresh, it is its base optimizer

    def forward(self, graph, features: Tensor, context: Tensor, memory=None) -> tuple[Tensor, None]:
        means = [part.mean(1, keepdim=True).expand_as(part) for part in features.split(graph.sizes, 1)]
        seen = torch.cat([features, torch.cat(means, 1)])
        return self.head(self.hidden(seen.T).relu()).T, None


if __name__ == "__main__":
    meta = {"steps": 2, "cohorts": 1, "networks": 2, "truncation": 5, "validation_steps": 10}
    tasks = {"tasks": [{"family": "quadratic"}], "validation": ["quadratic"]}
    print(train({"name": "mine", "rule": {"metanet": "averages"}, "meta": meta, **tasks}, resume=True))
