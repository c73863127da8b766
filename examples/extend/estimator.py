"""An estimator of your own: evolution strategies of which the signs alone are followed.

python estimator.py, or lopt --import estimator.py train CONFIG --meta.estimator '{name: sign_es, size: 0.1}'
"""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

import lopt
from lopt.training import train
from lopt.training.estimators import ES, Estimate


@lopt.register_estimator("sign_es")
@dataclass(frozen=True)
class SignES(ES):
    """One truncation of a cohort -> a meta-gradient whose entries are all of one size.

    The options of a config are its fields: `size`, and `sigma` of the estimator that it builds upon.
    """

    size: Annotated[float, Field(gt=0, le=1)] = 0.01

    def __call__(self, rule, cohort, generator) -> Estimate:
        estimate = super().__call__(rule, cohort, generator)
        signs = {name: self.size * value.sign() for name, value in estimate.gradient.items()}
        return replace(estimate, gradient=signs)


if __name__ == "__main__":
    estimator = {"name": "sign_es", "sigma": 0.02}
    meta = {"steps": 2, "cohorts": 1, "networks": 2, "truncation": 5, "estimator": estimator}
    tasks = {"tasks": [{"family": "quadratic"}], "validation": ["quadratic"]}
    print(train({"name": "mine", "meta": meta, **tasks}, resume=True))
