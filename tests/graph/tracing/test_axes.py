"""The union-find of axis variables: refinement propagates, and what does not fit is fixed, never tied."""

from __future__ import annotations

import pytest

from lopt.graph.tracing.axes import Axis, cut, find, fix, is_fixed, join, leaves, merge, split, unify


def same(a: Axis, b: Axis) -> bool:
    return [find(x) for x in leaves(a)] == [find(x) for x in leaves(b)]


def test_what_one_view_reveals_holds_for_every_tensor_of_the_axis() -> None:
    a, b = Axis(12), Axis(12)
    unify(a, b)
    heads, size = split(a, [3, 4])
    again = split(b, [3, 4])
    assert find(heads) is find(again[0])
    assert find(size) is find(again[1])


def test_products_meet_in_their_common_refinement() -> None:
    a, b = Axis(24), Axis(24)
    split(a, [6, 4])
    split(b, [3, 8])
    unify(a, b)
    assert [leaf.size for leaf in leaves(a)] == [3, 2, 4]
    assert same(a, b)


def test_concatenations_meet_in_their_common_refinement() -> None:
    a, b = join([Axis(5), Axis(3)]), join([Axis(2), Axis(6)])
    unify(a, b)
    assert [leaf.size for leaf in leaves(a)] == [2, 3, 3]
    assert same(a, b)


def test_a_product_cut_along_its_outer_factor_is_a_concatenation() -> None:
    channels = join([Axis(2), Axis(3)])
    flat, weight = merge([channels, Axis(4)]), Axis(20)
    unify(weight, flat)
    a, b = cut(weight, [8, 12]) or []
    assert [leaf.size for leaf in leaves(a)] == [2, 4]
    assert [leaf.size for leaf in leaves(b)] == [3, 4]
    assert find(leaves(a)[1]) is find(leaves(b)[1])


def test_a_product_and_a_concatenation_meet_where_the_cuts_fit() -> None:
    product, concat = merge([Axis(3), Axis(4)]), join([Axis(4), Axis(8)])
    unify(product, concat)
    assert not is_fixed(product)
    assert [leaf.size for leaf in leaves(concat)] == [4, 2, 4]  # a factor of 1 leaves no trace


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (merge([Axis(2), Axis(3)]), merge([Axis(3), Axis(2)])),
        (merge([Axis(2), Axis(3)]), join([Axis(2), Axis(4)])),
        (Axis(5), Axis(6)),
    ],
)
def test_what_does_not_fit_is_fixed(a: Axis, b: Axis) -> None:
    unify(a, b)
    assert is_fixed(a)
    assert is_fixed(b)
    assert find(a) is not find(b)


def test_views_of_a_concatenation_tie_the_inner_factor_or_fix() -> None:
    outer, inner = split(join([Axis(6), Axis(9)]), [5, 3])
    assert [leaf.size for leaf in leaves(outer)] == [2, 3]
    assert not inner.fixed
    misfit = join([Axis(5), Axis(4)])
    split(misfit, [3, 3])
    assert is_fixed(misfit)


def test_fixing_reaches_everything_inside_and_the_strongest_reason_is_kept() -> None:
    a = Axis(6)
    parts = split(a, [2, 3])
    fix(a, "position")
    assert [p.fixed for p in parts] == ["position", "position"]
    fix(parts[0], "input")
    fix(parts[0], "untied")
    assert [p.fixed for p in parts] == ["input", "position"]


def test_tying_to_a_fixed_axis_fixes() -> None:
    a, b = Axis(6), Axis(6, "output")
    split(a, [2, 3])
    unify(a, b)
    assert {leaf.fixed for leaf in leaves(a)} == {"output"}


def test_sizes_of_one_and_zero_leave_no_trace() -> None:
    a = Axis(4)
    assert find(split(a, [1, 4])[1]) is a
    assert merge([Axis(1), a, Axis(1)]) is a
    assert join([Axis(0), a]) is a
    empty, rest = cut(a, [0, 4]) or []
    assert (empty.size, find(rest).size) == (0, 4)
