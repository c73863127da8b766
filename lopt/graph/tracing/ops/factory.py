"""Tensors made from nothing: uniform ones have no axes to speak of, counted ones have fixed axes."""

from __future__ import annotations

from typing import Any

from lopt.graph.tracing.ops.pointwise import pointwise
from lopt.graph.tracing.ops.table import rule
from lopt.graph.tracing.speech import Speech
from lopt.graph.tracing.values import Dim, Value


@rule(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like",
    "full_like", "empty_like", "scalar_tensor", "empty_strided", "new_empty_strided", "empty_permuted", "fill",
    "zero", "_efficientzerotensor",
)  # fmt: skip
def uniform(s: Speech, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """All entries alike."""
    s.constant = True
    return tuple(Dim(n, None) for n in s.shapes[0])


@rule(
    "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "uniform", "log_normal", "exponential",
    "cauchy", "geometric", "random", "normal_functional",
)  # fmt: skip
def random(s: Speech, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Entries exchangeable in distribution."""
    s.constant = True
    return tuple(s.free(n) for n in s.shapes[0])


@rule("normal", "poisson", "binomial")
def sampled(s: Speech, *args: Any, **kwargs: Any) -> Any:
    """Entries drawn around those of the arguments, unless the first of these is what is written to."""
    call = s.call
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    return pointwise(s, *given, op=call.name) if given and not call.writes else random(s)


@rule("multinomial")
def multinomial(s: Speech, weights: Value, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Answers with places, so that the weights must stay where they are."""
    s.fix(weights.dims[-1])
    return (*weights.dims[:-1], s.fixed(s.shapes[0][-1]))


@rule("arange", "linspace", "logspace", "eye", "randperm", "tril_indices", "triu_indices", "hann_window")
def counted(s: Speech, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Entries that say where they stand."""
    return tuple(s.fixed(n, "constant") for n in s.shapes[0])
