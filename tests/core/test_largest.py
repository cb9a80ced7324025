"""The largest products over several tiles, sorted in the first and compared with a bound in the others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice.core import _largest
from fastreid_ice.core.screen import largest_products


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_largest, "_SORTED", 64)
    monkeypatch.setattr(_largest, "_LISTED", 256)


def units(number: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(number, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 10, 100])
def test_equals_one_sort(count: int, precision: torch.dtype) -> None:
    """100 are more than there are positive products in the first tile."""
    queries, rows = units(50, 1).to(precision), units(2000).to(precision)
    products, indices = largest_products(queries, rows, count)
    every = (queries @ rows.T).float()
    assert torch.equal(products, every.topk(count).values)
    assert torch.equal(every.gather(1, indices), products)
    assert all(len(set(row)) == count for row in indices.tolist())


def test_the_own_row_comes_first_and_what_does_not_count_is_left_out() -> None:
    rows = units(2000)
    own = torch.tensor([3, 700, 1999])
    counting = torch.rand(3, 1500, generator=torch.Generator().manual_seed(2)) < 0.5
    every = (rows[own] @ rows.T).index_put((torch.arange(3), own), torch.tensor(torch.inf))
    products, indices = largest_products(rows[own], rows, 10, own=own)
    assert torch.equal(indices, every.topk(10).indices) and torch.equal(indices[:, 0], own)
    allowed = F.pad(counting, (500, 0))
    products, indices = largest_products(rows[own], rows, 10, pieces=[(500, 2000, counting)])
    expected = (rows[own] @ rows.T).masked_fill(~allowed, -torch.inf).topk(10)
    assert torch.equal(indices, expected.indices) and torch.equal(products, expected.values)


def test_negative_products_are_sorted_in_every_tile() -> None:
    rows = units(2000).abs()
    products, indices = largest_products(-rows[:5], rows, 10)
    expected = (-rows[:5] @ rows.T).topk(10)
    assert torch.equal(indices, expected.indices) and torch.equal(products, expected.values)
