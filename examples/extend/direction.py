"""A base direction of your own: the sign of the momentum, as Lion steps.

python direction.py, or lopt --import direction.py train CONFIG --rule.directions '{sign: 1, adam: 0}'
"""

from torch import Tensor

import lopt
from lopt.rules.directions import History
from lopt.training import train


@lopt.register_direction("sign")
def sign(history: History) -> Tensor:
    """(P,): what the rule sees of all P scalars -> a step of order one for each, without sign and learning rate."""
    return history.moments.momenta[0].sign()


if __name__ == "__main__":
    rule = {"metanet": "mlp", "rate": 1e-3, "directions": {"sign": 1.0, "adam": 0.0}}
    meta = {"steps": 2, "cohorts": 1, "networks": 2, "truncation": 5, "validation_steps": 10}
    tasks = {"tasks": [{"family": "quadratic"}], "validation": ["quadratic"]}
    print(train({"name": "mine", "rule": rule, "meta": meta, **tasks}, resume=True))
