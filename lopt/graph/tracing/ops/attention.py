"""Scaled dot-product attention, as one operation whatever kernel runs it."""

from __future__ import annotations

from typing import Any

from lopt.graph.tracing.axes import split
from lopt.graph.tracing.ops.contraction import name_attention
from lopt.graph.tracing.ops.pointwise import pointwise
from lopt.graph.tracing.ops.table import rule
from lopt.graph.tracing.speech import Speech
from lopt.graph.tracing.values import Dim, Value


@rule("scaled_dot_product_attention")
def attention(
    s: Speech, query: Value, key: Value, value: Value, attn_mask: Value | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **_: Any,
) -> tuple[Dim, ...]:  # fmt: skip
    """softmax(q k^T + mask) v for q (*batch, heads, L, E), k (*batch, heads', S, E), v (*batch, heads', S, V).

    With grouped queries, heads is a multiple of heads': each key head serves a run of query heads.
    """
    s.tie(key.dims[-2], value.dims[-2])
    s.tie(query.dims[-1], key.dims[-1])
    batch = tuple(_shared(s, q, k, v) for q, k, v in _aligned(query, key, value))
    scores = Value((*batch, query.dims[-2], key.dims[-2]), pure=False)
    if attn_mask is not None:
        pointwise(s, scores, attn_mask, op="add")
    if is_causal:
        s.fix(query.dims[-2], key.dims[-2])
    if not value.pure:
        name_attention(s, query.origins, key.origins, value)
    return (*batch, query.dims[-2], value.dims[-1])


def _aligned(*values: Value) -> list[tuple[Dim, ...]]:
    """The batch dimensions of all, aligned from the right."""
    rank = max(v.rank for v in values) - 2
    padded = [[Dim(1, None)] * (rank - v.rank + 2) + list(v.dims[:-2]) for v in values]
    return list(zip(*padded, strict=True))


def _shared(s: Speech, q: Dim, k: Dim, v: Dim) -> Dim:
    size = max(q.size, k.size, v.size)
    tied = s.tie(*[d for d in (q, k, v) if d.size == size])
    for dim in (k, v):
        if 1 < dim.size < size and dim.axis is not None and tied.axis is not None:
            heads, _ = split(tied.axis, [dim.size, size // dim.size])
            s.tie(dim, Dim(dim.size, heads))
    return Dim(size, tied.axis)


FUSED = (
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
)  # fmt: skip


@rule(*FUSED)
def fused_attention(s: Speech, query: Value, key: Value, value: Value, *args: Any, **kwargs: Any) -> Any:
    """A kernel called directly, with its mask (if it takes one) as the next argument.

    Where kernels say that they are causal differs: any argument that is true is taken for it.
    """
    mask = next((a for a in (*args[:1], kwargs.get("attn_mask")) if isinstance(a, Value)), None)
    causal = any(a is True for a in (*args, *kwargs.values()))
    return [attention(s, query, key, value, mask, is_causal=causal), *[None] * (len(s.shapes) - 1)]
