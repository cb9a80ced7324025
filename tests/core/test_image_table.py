"""The table of what is known of the images."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastreid_ice.core import ImageTable

INTEGERS = torch.tensor([0, -1, 5])


def test_columns_not_given_are_not_known() -> None:
    known = ImageTable(tracks=INTEGERS)
    assert len(known) == 3 and known.tracks is INTEGERS
    for name, dtype in (("cameras", torch.int64), ("times", torch.float64), ("identities", torch.int64)):
        column = getattr(known, name)
        assert column.dtype == dtype and column.tolist() == [-1] * 3
    assert len(ImageTable(INTEGERS[:0])) == 0


def test_rows_and_identities() -> None:
    times = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    known = ImageTable(INTEGERS, INTEGERS + 1, times, INTEGERS)
    for rows in (slice(1, None), torch.tensor([False, True, True]), torch.tensor([1, 2])):
        part = known[rows]
        columns = [column.tolist() for column in part.columns().values()]
        assert columns == [[-1, 5], [0, 6], [2.0, -1.0], [-1, 5]]
    hidden = known.without_identities()
    assert hidden.identities.tolist() == [-1] * 3 and hidden.times is times
    assert known.to("cpu").cameras.tolist() == [0, -1, 5]
    with pytest.raises(dataclasses.FrozenInstanceError):
        known.cameras = INTEGERS


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "at least one column of an ImageTable must be given"),
        ({"cameras": INTEGERS.int()}, r"cameras must be \(3,\) int64, a value for each image, got int32 \(3,\)"),
        ({"cameras": INTEGERS, "tracks": INTEGERS[:2]}, r"tracks must be \(3,\) int64, .* got int64 \(2,\)"),
        ({"identities": INTEGERS[:, None]}, r"identities must be \(3,\) int64, .* got int64 \(3, 1\)"),
        ({"times": INTEGERS}, r"times must be \(3,\) float64, .* got int64 \(3,\)"),
        ({"tracks": INTEGERS - 1}, "tracks must be at least 0, or -1 where not known"),
        ({"times": torch.tensor([torch.nan]).double()}, "times must be at least 0, or -1 where not known"),
        ({"times": torch.tensor([-0.5]).double()}, "times must be at least 0, or -1 where not known"),
    ],
)
def test_what_is_wrong_is_named(columns: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTable(**columns)
