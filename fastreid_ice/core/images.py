"""What is known of the images of a training set, beside what they show."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .constraints import Constraints


@dataclass(frozen=True, eq=False)
class ImageTable:
    """What is known of N images. At least one column must be given; one that is not is -1 for every image.

    Attributes:
        cameras: (N,) int64, camera of each image, -1 where not known.
        tracks: (N,) int64, the track (the crossing of a camera's view) that an image is a frame of, -1 where not known.
            A track belongs to one camera: equal numbers in two cameras are two tracks.
        times: (N,) float64, when an image was taken, at least 0, -1 where not known; in any unit, comparable among the
            images of a camera.
        identities: (N,) int64, true identities, -1 where not known. Only ``GroundTruth`` and measurements may read
            them.
        corrections: what a person has said about the images, from ``correction_constraints``; no column. The clusterers
            keep it.

    Raises:
        ValueError: no column, or one with another shape, another type or values below -1.
    """

    cameras: Tensor = None  # type: ignore[assignment]  # tensors, once the table is made
    tracks: Tensor = None  # type: ignore[assignment]
    times: Tensor = None  # type: ignore[assignment]
    identities: Tensor = None  # type: ignore[assignment]
    corrections: Constraints | None = None

    def __post_init__(self) -> None:
        given = [column for column in self.columns().values() if column is not None]
        if not given:
            raise ValueError("at least one column of an ImageTable must be given, such as cameras, -1 if not known")
        for name, column in self.columns().items():
            dtype = torch.float64 if name == "times" else torch.int64
            if column is None:
                object.__setattr__(self, name, torch.full_like(given[0], -1, dtype=dtype))
            elif column.dtype != dtype or column.shape != given[0].shape or column.dim() != 1:
                raise ValueError(
                    f"{name} must be ({len(given[0])},) {str(dtype).removeprefix('torch.')}, a value for each image, "
                    f"got {str(column.dtype).removeprefix('torch.')} {tuple(column.shape)}"
                )
            elif not ((column >= 0) | (column == -1)).all():
                raise ValueError(f"{name} must be at least 0, or -1 where not known")
        if self.corrections is not None and len(self.corrections.groups) != len(self):
            raise ValueError(f"corrections are those of {len(self.corrections.groups)} images, not of {len(self)}")

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, rows: Tensor | slice) -> ImageTable:
        """The table of some images, by a slice, a mask (N,) or indices."""
        corrections = None if self.corrections is None else self.corrections[rows]
        return ImageTable(**{name: column[rows] for name, column in self.columns().items()}, corrections=corrections)

    def to(self, device: torch.device | str) -> ImageTable:
        moved = {name: column.to(device) for name, column in self.columns().items()}
        return ImageTable(**moved, corrections=self.corrections)

    def without_identities(self) -> ImageTable:
        return ImageTable(self.cameras, self.tracks, self.times, corrections=self.corrections)

    def columns(self) -> dict[str, Tensor]:
        """Name -> column (N,)."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "corrections"}
