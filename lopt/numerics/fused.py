"""Functions of vectors as compiled kernels, each for all lengths: one pass over memory in the place of dozens.

What `torch.compile` makes of a function it guards by sizes, strides and bases of all that is given, at a tenth of a
millisecond for each call; here they are known to fit, and there is one kernel for each combination of dtypes, of
devices, of which tensors are single scalars, and of arguments that are no tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

SHORTEST = 1 << 10
"""Scalars from which a kernel is worth its call."""

_KERNELS: dict[Any, Callable[..., Any]] = {}


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a kernel, or, with a warning, as it is where that cannot be compiled.

    It takes tensors and hashable values, also in tuples and lists, and gives a tensor or a tuple of tensors and None.
    Tensors are contiguous, without derivatives, of a single scalar, of one length that may differ between calls, or of
    sizes that never do. It may write into what it is given.
    """

    def run(*args: Any) -> Any:
        leaves = list(_leaves(args))
        key = (
            function,
            *(
                (leaf.dtype, leaf.device, leaf.numel() == 1) if isinstance(leaf, Tensor) else leaf
                for leaf in leaves
            ),
        )
        if key not in _KERNELS:
            try:
                _KERNELS[key] = _compiled(function, args, leaves)
            except Exception as error:  # the compiler's own are of many kinds, and it may not even be there
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"fused: {function.__name__} runs uncompiled: {reason}", stacklevel=2)
                _KERNELS[key] = function
        kernel = _KERNELS[key]
        return function(*args) if kernel is function else kernel(leaves)

    return run


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _leaves(value)
        else:
            yield value


def _compiled(
    function: Callable[..., Any], args: tuple[Any, ...], leaves: list[Any]
) -> Callable[[list[Any]], Any]:
    """The function, of the leaves of its arguments."""
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    result: Any = None

    def flat(*given: Tensor) -> list[Tensor]:
        nonlocal result
        rest = iter(given)
        result = function(*tree_map_only(Tensor, lambda _: next(rest), args))
        return [result] if isinstance(result, Tensor) else [value for value in result if value is not None]

    # Of copies: what is written in tracing must not be what is given.
    examples = [leaves[i].clone() for i in tensors]
    kernel = kernel_of(flat, examples, any_sizes=True)
    if isinstance(result, Tensor):
        return lambda leaves: kernel(*[leaves[i] for i in tensors])[0]
    make = getattr(type(result), "_make", tuple)
    present = [value is not None for value in result]
    result = None

    def run(leaves: list[Any]) -> Any:
        values = iter(kernel(*[leaves[i] for i in tensors]))
        return make([next(values) if there else None for there in present])

    return run


def kernel_of(
    function: Callable[..., list[Tensor]], examples: list[Any], any_sizes: bool
) -> Callable[..., Sequence[Tensor]]:
    """A function of tensors alone as compiled code, for any sizes, or for those and the strides of the examples.

    What it takes from elsewhere is taken as it is now, and nothing is guarded.
    """
    # What the compiler warns of itself is nobody's here, and under `python -W error` it would cost the kernel.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Imported here, as they bring the whole compiler.
        from torch._inductor import config, cpu_vec_isa, standalone_compile
        from torch.fx.experimental.proxy_tensor import make_fx

        graph = make_fx(function, tracing_mode="symbolic" if any_sizes else "real")(*examples)
        shapes: Any = "from_graph" if any_sizes else "from_example_inputs"

        def compiled() -> Any:
            return standalone_compile(graph, examples, dynamic_shapes=shapes)

        if config.cpp.vec_isa_ok is not None:  # the user has said so
            return compiled()
        # Whether the C++ compiler knows the processor's vectors is else tried on programs of their own, one for each
        # kind, in a third of the time to the first kernel; that kernel is as good a trial.
        try:
            with config.patch({"cpp.vec_isa_ok": True}):
                return compiled()
        except Exception:
            cpu_vec_isa.valid_vec_isa_list.cache_clear()
            return compiled()
