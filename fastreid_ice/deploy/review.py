"""What a person who corrects a run's clusters is shown and asked: questions in order of doubt, and whole clusters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import doubtful_pairs, standardize_by_camera
from ..errors import InputError
from ..reporting import PseudoLabels, centroid_distances
from ..reporting.chart import readable
from ..reporting.pages import common_folder, short_name
from .answers import AnswerFile, copy_earlier
from .encoder import Encoder
from .index import update_index

INDEX = "review.index"  # in the folder of the run: the features, which need not be extracted again
BESIDE = 4  # images of its cluster beside one that is asked about
QUESTIONS = 2  # at a time: the one that is shown, and the next, whose images load meanwhile
CLUSTERS, IMAGES = 24, 120  # of a page of clusters, and of a page of one
SAMPLE = 8  # images of a cluster in the list of all
ROWS = 1000  # of one answer


class Review:
    """The last clustering of a run, questions about it, and the answers.

    The features are those of the run's encoder (``Encoder``). They are extracted when they are first needed, and kept
    in ``review.index``, an index as `fastreid-ice search` makes it.

    Args:
        run: the folder of the run.

    Attributes:
        folder, run_config: of the run, and its config.
        aspect: width over height of the crops, as the encoder sees them.
        answers: the file ``corrections.csv`` in it, which begins with those that the run was trained with.
        clustering: labels 0..C-1 and distances of the images that can be read, N of them.
        numbers: (C,) the labels in the run's file.
        known: what the answers say of these images, together.
        pairs: (Q, 2) what is asked, the greatest doubt first.

    Raises:
        InputError: no run, no clusters, no weights, no images, or a file of corrections that cannot be used.
    """

    def __init__(self, run: Path) -> None:
        encoder = Encoder(run, ["DATALOADER.UNREADABLE", "skip"])
        if encoder.run.labels is None:
            raise InputError(f"{run} holds no labels.csv: this run has not clustered yet")
        self.folder, self.run_config = run, encoder.run.config
        height, width = encoder.cfg.INPUT.SIZE_TEST
        self.aspect = width / height
        labels = PseudoLabels.read(encoder.run.labels)
        if not (labels.labels >= 0).any():
            raise InputError(f"{encoder.run.labels} holds no cluster, only noise: there is nothing to correct")
        if encoder.cfg.CORRECTIONS:
            copy_earlier(Path(encoder.cfg.CORRECTIONS), encoder.run.corrections)
        self.answers = AnswerFile(encoder.run.corrections, labels.paths)
        index = update_index(run / INDEX, encoder, encoder.run.labels).index
        number = {os.path.abspath(path): row for row, path in enumerate(labels.paths)}
        self._rows = np.array([number[path] for path in index.paths])
        found = labels[self._rows]
        self.missing = len(labels.paths) - len(found.paths)
        clustered = found.labels >= 0
        self.numbers = np.unique(found.labels[clustered])  # a file of labels may have gaps
        codes = torch.from_numpy(np.where(clustered, np.searchsorted(self.numbers, found.labels), -1))
        self.features = torch.from_numpy(index.features)
        if encoder.cfg.CLUSTER.CAMERA_NORM:
            self.features = standardize_by_camera(self.features, np.unique(found.cameras, return_inverse=True)[1])
        # To the centroids of the features as they are, as in labels.csv: a clustering finds the centres there too.
        distances = centroid_distances(torch.from_numpy(index.features), codes).numpy()
        self.clustering = PseudoLabels(found.paths, found.cameras, codes.numpy(), distances)
        self.common = common_folder(found.paths)
        self._number = {path: row for row, path in enumerate(index.paths)}
        self.order = np.lexsort((distances, codes.numpy()))[np.count_nonzero(~clustered) :]
        self.sizes = np.bincount(codes.numpy()[clustered], minlength=len(self.numbers))
        self.starts = self.sizes.cumsum() - self.sizes
        pairs, doubt = doubtful_pairs(self.features, codes)
        self.pairs = pairs.numpy()
        asked = codes.numpy()[self.pairs]
        between = asked[:, 0] != asked[:, 1]
        self.pairs[between] = self.medoids[asked[between]]  # an answer about clusters is one about their centres
        self.doubts = np.zeros(len(self.numbers))  # of each cluster, the greatest of the questions about it
        np.maximum.at(self.doubts, self.clustering.labels[self.pairs], doubt.numpy()[:, None])
        self._follow()

    @property
    def medoids(self) -> np.ndarray:
        """(C,) the image of each cluster that is nearest to its centroid."""
        return self.order[self.starts]

    def read(self) -> None:
        """Reads the answers again, which may have been changed by hand.

        Raises:
            InputError: the file cannot be read, or contradicts itself.
        """
        self.answers.read()
        self._follow()

    def add(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Writes answers, as rows of the file.

        Raises:
            InputError: they contradict earlier ones, or cannot be written. Nothing is written then.
        """
        self.answers.add(rows)
        self._follow()

    def take_back(self) -> None:
        """Removes the last answer.

        Raises:
            InputError: there is none, or the file cannot be written.
        """
        self.answers.take_back()
        self._follow()

    def _follow(self) -> None:
        """Works out what the answers say of the images that are shown."""
        self.known = self.answers.known[self._rows]
        self.names: dict[int, str] = {}  # of images
        for row in self.answers.rows:
            image = self._number.get(os.path.abspath(row.image), -1)
            if row.relation == "person":
                self.names[image] = row.other
            elif row.relation == "nobody":
                self.names.pop(image, None)

    def open_questions(self) -> np.ndarray:
        """(Q,) whether a question is neither answered, nor follows from answers."""
        groups, wide = self.known.groups[self.pairs], self.known.groups.max() + 1
        apart = np.isin(np.sort(groups, axis=1) @ [wide, 1], self.known.apart @ [wide, 1])
        return (groups[:, 0] != groups[:, 1]) & ~apart & ~self.known.nobody[self.pairs].any(axis=1)

    def last_answer(self) -> str:
        """The last answer in words, "" if there is none."""
        if not self.answers.rows:
            return ""
        _, image, relation, other = self.answers.rows[-1]
        other = other if relation == "person" else other and short_name(other, self.common)
        return f"{short_name(image, self.common)} {relation} {readable(other)}".strip()

    def questions(self, start: int) -> list[dict[str, Any]]:
        """The first open questions from number ``start`` on."""
        numbers = np.flatnonzero(self.open_questions()[start:])[:QUESTIONS] + start
        return [self._question(int(number)) for number in numbers]

    def clusters(self, order: str, start: int) -> list[dict[str, Any]]:
        """A page of clusters, the "largest" or the most "doubtful" first.

        Raises:
            InputError: another order.
        """
        if order not in ("largest", "doubtful"):
            raise InputError(f"there is no order {order!r}; clusters are ordered by largest or doubtful")
        scores = self.sizes if order == "largest" else self.doubts
        chosen = np.argsort(-scores, kind="stable")[start : start + CLUSTERS]
        return [self._summary(int(label)) for label in chosen]

    def cluster(self, number: int, start: int) -> dict[str, Any]:
        """A cluster by its number in the file of labels, with a page of its images, the nearest to its centroid first.

        Raises:
            KeyError: there is none.
        """
        label = int(np.searchsorted(self.numbers, number))
        if label == len(self.numbers) or self.numbers[label] != number:
            raise KeyError(number)
        medoid = self.medoids[label]
        apart = self._apart_from(medoid)
        rows = self._members(label)[start : start + IMAGES]
        images = [
            self._image(row) | {"marks": self._marks(row, wrong=bool(apart[self.known.groups[row]]))}
            for row in rows.tolist()
        ]
        return self._summary(label) | {"images": images, "start": start, "page": IMAGES}

    def _question(self, number: int) -> dict[str, Any]:
        one, other = self.pairs[number].tolist()
        return {"number": number, "images": [self._side(one, other), self._side(other, one)]}

    def _side(self, row: int, other: int) -> dict[str, Any]:
        """An image that is asked about, its cluster, and the images of this that are nearest to it."""
        label = int(self.clustering.labels[row])
        members = self._members(label)
        nearest = members[(-(self.features[members] @ self.features[row])).argsort(stable=True)]
        beside = nearest[(nearest != row) & (nearest != other)][:BESIDE]
        return self._image(row) | {
            "cluster": int(self.numbers[label]),
            "size": int(self.sizes[label]),
            "beside": beside.tolist(),
            "marks": self._marks(row),
        }

    def _summary(self, label: int) -> dict[str, Any]:
        members = self._members(label)
        places = np.linspace(0, len(members) - 1, min(len(members), SAMPLE)).round().astype(int)
        named = {self.names[row] for row in members.tolist() if row in self.names}
        return {
            "number": int(self.numbers[label]),
            "size": len(members),
            "medoid": int(members[0]),
            "sample": members[places].tolist(),
            "names": sorted(named),
        }

    def _image(self, row: int) -> dict[str, Any]:
        path, camera = self.clustering.paths[row], self.clustering.cameras[row]
        return {"row": row, "name": short_name(path, self.common), "camera": readable(camera)}

    def _marks(self, row: int, *, wrong: bool = False) -> list[str]:
        """What answers say about an image, in words."""
        marks = ["no person"] * bool(self.known.nobody[row]) + ["wrong"] * wrong
        return marks + ([self.names[row]] if row in self.names else [])

    def _members(self, label: int) -> np.ndarray:
        """The images of a cluster, the nearest to its centroid first."""
        return self.order[self.starts[label] : self.starts[label] + self.sizes[label]]

    def _apart_from(self, row: int) -> np.ndarray:
        """(G,) whether each group is known to be another person than an image."""
        own = self.known.groups[row]
        apart = np.zeros(self.known.groups.max() + 1, bool)
        pairs = self.known.apart[(self.known.apart == own).any(1)]
        apart[pairs[pairs != own]] = True
        return apart
