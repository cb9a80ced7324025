"""Pseudo labels as a file: the last clustering of a run, for people and for the commands."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..files import replacing
from ..progress import progress

COLUMNS = ("path", "camera", "label", "distance_to_centroid")
LABEL_LIMIT = 2**53  # whole numbers are exact up to this in a browser, which searches the report
BLOCK = 4096  # rows at a time


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The clustering of N images.

    Attributes:
        paths: N files.
        cameras: N texts, "" for an unknown camera.
        labels: (N,) int64, 0..C-1, or -1 for noise.
        distances: (N,) float32 in [0, 2], to the centroid of the image's cluster, as ``centroid_distances`` measures
            it; NaN if unknown.
    """

    paths: Sequence[str]
    cameras: Sequence[str]
    labels: np.ndarray
    distances: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> PseudoLabels:
        """Those of some images, whose numbers are ``rows``, in this order."""
        paths, cameras = ([column[row] for row in rows] for column in (self.paths, self.cameras))
        return PseudoLabels(paths, cameras, self.labels[rows], self.distances[rows])

    def medoids(self) -> dict[int, int]:
        """Cluster -> the image that is nearest to its centroid."""
        order = np.lexsort((self.distances, self.labels))
        numbers, first = np.unique(self.labels[order], return_index=True)
        found = dict(zip(numbers.tolist(), order[first].tolist(), strict=True))
        found.pop(-1, None)
        return found

    def write(self, path: Path) -> None:
        """Writes a CSV file with the columns path, camera, label and distance_to_centroid, completely or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with replacing(str(path), "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for name, camera, label, distance in zip(
                self.paths, self.cameras, self.labels.tolist(), self.distances.tolist(), strict=True
            ):
                writer.writerow((name, camera, label, "" if np.isnan(distance) else f"{distance:.6f}"))

    @classmethod
    def read(cls, path: Path) -> PseudoLabels:
        """Reads such a file, also if a spreadsheet saved it with a byte order mark and blank lines.

        Raises:
            InputError: no such file, or one with other content; the message names the line.
        """
        rows = []
        try:
            with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                lines = csv.reader(file)
                whole = tuple(next(lines, ())) == COLUMNS
                if whole:
                    for name, camera, label, distance in filter(any, lines):
                        rows.append((name, camera, int(label), float(distance or "nan")))
                        if not -1 <= rows[-1][2] < LABEL_LIMIT:
                            raise ValueError(f"a label must be 0, 1, ... below {LABEL_LIMIT}, or -1 for noise")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        except (csv.Error, ValueError) as error:
            raise InputError(f"{path}, line {lines.line_num} is not {','.join(COLUMNS)}: {error}") from error
        if not whole:
            raise InputError(f"{path} is not a file of labels: its first line must be {','.join(COLUMNS)}")
        paths, cameras, labels, distances = zip(*rows, strict=True) if rows else ((),) * 4
        return cls(paths, cameras, np.array(labels, np.int64), np.array(distances, np.float32))


def save_labels(path: Path, paths: Sequence[str], cameras: Sequence[str], labels: Tensor, features: Tensor) -> None:
    """Writes the labels of a run's images, with their absolute paths, so that they are found from any folder.

    Args:
        path: the CSV file.
        paths: N image files.
        cameras: N texts, "" if unknown.
        labels: (N,) int64, 0..C-1 without gaps, -1 for noise.
        features: (N, D) unit rows on the CPU, zero for an image that could not be read.
    """
    PseudoLabels(
        [os.path.abspath(name) for name in paths],
        cameras,
        labels.numpy(),
        centroid_distances(features, labels).numpy(),
    ).write(path)


def centroid_distances(features: Tensor, labels: Tensor) -> Tensor:
    """(N,) 1 - cosine between each row and the centroid of its cluster, for noise the nearest centroid, in [0, 2].

    The centroid is the mean of the cluster's unit rows. NaN for a zero row, and for all rows if there is no cluster.

    Args:
        features: (N, D) floating point of any precision and norm.
        labels: (N,) int64, 0..C-1 without gaps, -1 for noise.

    Time is N D for the clustered rows and C D for each noise row; memory, besides the arguments, C D and a block of C.
    """
    distances = torch.full(labels.shape, torch.nan)
    if not (labels >= 0).any():
        return distances
    clustered, noise = (
        [rows for rows in chosen.nonzero()[:, 0].split(BLOCK) if len(rows)]
        for chosen in (labels >= 0, (labels < 0) & (features != 0).any(1))
    )
    means = torch.zeros(int(labels.max()) + 1, features.shape[1])
    for rows in clustered:
        means.index_add_(0, labels[rows], F.normalize(features[rows].float()))
    means = F.normalize(means)
    for rows in progress(clustered + noise, "Measuring distances to centroids"):
        units, own = F.normalize(features[rows].float()), labels[rows]
        cosines = (units @ means.T).amax(1) if own[0] < 0 else (units * means[own]).sum(1)
        distances[rows] = 1 - cosines.clamp(-1, 1)
    return distances
