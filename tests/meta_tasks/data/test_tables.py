from __future__ import annotations

from typing import get_args

import pytest
import torch

from meta_tasks.data.tables import Table, load_table


@pytest.mark.parametrize("name", get_args(Table))
def test_splits_cover_every_row_once(name: str) -> None:
    from sklearn import datasets

    table, published = load_table(name), getattr(datasets, f"load_{name}")()
    counts = {split: len(rows) for split, rows in table.inputs.items()}
    total = sum(counts.values())
    assert total == len(published.data)
    assert counts["train"] / total == pytest.approx(0.7, abs=0.02)
    assert counts["test"] / total == pytest.approx(0.2, abs=0.02)
    # Standardisation is affine, so distinct rows stay distinct; a row in two splits would appear twice.
    rows = torch.cat(list(table.inputs.values()))
    assert len(rows.unique(dim=0)) == len(torch.from_numpy(published.data).unique(dim=0))


@pytest.mark.parametrize("name", get_args(Table))
def test_training_columns_are_standardised(name: str) -> None:
    table = load_table(name)
    for values in (table.inputs["train"], *([] if table.classes else [table.targets["train"]])):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0), torch.ones(values.shape[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_every_split_has_the_same_share_of_each_class(name: str) -> None:
    table = load_table(name)
    shares = [t.bincount(minlength=table.classes) / len(t) for t in table.targets.values()]
    for share in shares[1:]:
        torch.testing.assert_close(share, shares[0], atol=0.03, rtol=0)


def test_equal_from_call_to_call() -> None:
    load_table.__globals__["_load"].cache_clear()
    first = load_table("wine").inputs["test"]
    load_table.__globals__["_load"].cache_clear()
    assert torch.equal(first, load_table("wine").inputs["test"])
