"""The search that uses each product for both rows: the same lists as that of each row with all others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_ice.core import camera_neighbors, k_nearest, neighbors
from fastreid_ice.core.neighbors import checked_rows
from fastreid_ice.core.symmetric import SymmetricProducts, SymmetricScreen, suits

NUM_ROWS = 4100


def people(dim: int = 64, per_person: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    who = torch.arange(NUM_ROWS) // per_person
    centers = torch.randn(int(who.max()) + 1, dim, generator=generator)
    return centers[who] + torch.randn(NUM_ROWS, dim, generator=generator)


def full_sort(features: Tensor, k: int) -> Tensor:
    units = F.normalize(features.double())
    similarities = (units @ units.T).fill_diagonal_(torch.inf)
    return similarities.sort(dim=1, descending=True, stable=True).indices[:, :k]


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return full_sort(people(), 20)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("chunk_size", [1000, 1024, 6000])
def test_equals_a_full_sort(
    precision: torch.dtype, chunk_size: int, expected: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "precisions", lambda device: (precision,))
    assert torch.equal(k_nearest(people(), 20, chunk_size=chunk_size)[1], expected)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_settles_almost_all_rows_by_itself(precision: torch.dtype, expected: Tensor) -> None:
    rows = torch.arange(NUM_ROWS)
    screen = SymmetricScreen(precision, *checked_rows(people(), None), 20)
    similarities, indices, certain = (torch.cat(parts) for parts in zip(*map(screen, rows.split(1024)), strict=True))
    assert certain.float().mean() > 0.98
    assert torch.equal(indices[certain], expected[certain])
    assert (similarities[:, 0] == torch.inf).all()


def test_copies_and_opposite_rows() -> None:
    """Of 300 copies no list has room for all; a row whose neighbours all point away has nothing above its bound."""
    features = people()
    features[100:400] = features[100]
    features[7] = -10 * features.mean(0) - features[8:].sum(0)
    assert torch.equal(k_nearest(features, 20)[1], full_sort(features, 20))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sizes", [(2500, 1000, 600), (3800, 300)], ids=str)
def test_lists_by_camera(sizes: tuple[int, ...], precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_neighbors, "precisions", lambda device: (precision,))
    taken = []
    advance = SymmetricProducts.advance
    monkeypatch.setattr(SymmetricProducts, "advance", lambda *args: (taken.append(args), advance(*args))[1])
    features = people()
    cameras = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    cameras = cameras[torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(1))]
    units = F.normalize(features.double())
    similarities, same = units @ units.T, cameras[:, None] == cameras
    intra, inter = camera_neighbors.camera_neighbors(features, cameras, 6, 21)
    assert taken
    inside = similarities.masked_fill(~same, -torch.inf).fill_diagonal_(torch.inf)
    assert torch.equal(intra, inside.topk(6).indices)
    outside = similarities.masked_fill(same, -torch.inf)
    assert torch.equal(inter, outside.topk(21).indices)


def test_what_it_suits() -> None:
    features = people()
    rows = torch.arange(NUM_ROWS)
    assert suits(features, rows, 30)
    assert not suits(features, rows.flip(0), 30)
    assert not suits(features, rows[1:], 30)
    assert not suits(features, rows, 1000)
    assert not suits(features[:1000], rows[:1000], 30)


def test_rows_out_of_turn_are_refused() -> None:
    screen = SymmetricScreen(torch.float32, *checked_rows(people(), None), 20)
    screen(torch.arange(1000))
    with pytest.raises(ValueError, match="the rows from 1000 on come next, got those from 2000 on"):
        screen(torch.arange(2000, 3000))
