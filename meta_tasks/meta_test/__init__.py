"""The meta-test suite: kinds of task that no rule is trained on, and by which nothing is ever chosen.

The rule: **looked at once for each rule that is shipped; each look is written down** (benchmarks/LOG.md, "Looks at
the meta-test suite"). So the kinds are no families and no named tasks: no config can name one, no suite holds one,
and `python -m benchmarks meta_test` alone runs them. What a change is worth is to be seen elsewhere.
"""

from lopt.config import suggest
from lopt.errors import ConfigError
from lopt.numerics.defaults import torchs_defaults
from meta_tasks.meta_test import classifiers, functions, generative, relations, sequences, taught
from meta_tasks.meta_test.kind import Kind, KindTask

__all__ = ["KINDS", "Kind", "KindTask", "kind_task"]

KINDS: dict[str, Kind] = {
    **generative.KINDS,
    **sequences.KINDS,
    **relations.KINDS,
    **functions.KINDS,
    **classifiers.KINDS,
    **taught.KINDS,
}
"""Every kind by name. All data are generated or come with scikit-learn."""


@torchs_defaults()
def kind_task(name: str) -> KindTask:
    """The task of one kind. Raises `ConfigError` for an unknown name."""
    if name not in KINDS:
        raise ConfigError(f"meta_test: expected a kind, found {name!r}; {suggest(name, KINDS)}")
    return KindTask(name, KINDS[name])
