"""A task family of your own: bowls, the flatter at the bottom the higher their power. python task_family.py, or
lopt --import task_family.py train CONFIG --tasks '[{family: bowl, options: {dimension: [5, 50]}}]'
"""

from typing import Annotated

import torch
from pydantic import Field

import lopt
from lopt.training import train
from meta_tasks.family import SpecFamily
from meta_tasks.points import PointSpec, PointTask


class BowlSpec(PointSpec):
    power: Annotated[float, Field(ge=2, le=8)] = 4.0  # the bounds, and what it is unless a config says so


class BowlTask(PointTask):  # for a network of your own derive from `meta_tasks.module_task.ModuleTask`
    def value(self, point: torch.Tensor) -> torch.Tensor:
        return (point - self.optimum).abs().pow(self.power).mean()


@lopt.register_family("bowl")
class BowlFamily(SpecFamily):
    spec_class = BowlSpec

    def task(self, spec: BowlSpec) -> BowlTask:
        task = BowlTask(f"bowl/{spec.power:g}", spec, torch.zeros(spec.dimension), self.device)
        task.power = spec.power
        return task


if __name__ == "__main__":
    tasks = {"tasks": [{"family": "bowl"}], "validation": [{"family": "bowl"}]}
    meta = {"steps": 2, "cohorts": 1, "networks": 2, "truncation": 5, "validation_steps": 10}
    print(train({"name": "bowl", "meta": meta, **tasks}, resume=True))
