"""An index of images: their features in one Parquet file, beside paths, cameras and what they were made with.

The folder of an index holds ``features.parquet``, which is complete by itself, with one row per image:

    path      its absolute path; bytes that are not UTF-8 are written as ``\\udce9``
    camera    its name, "" if not known
    vector    the feature, D float32 of length 1
    size      bytes of the file, and
    modified  when it was last changed, in nanoseconds: files for which both are the same are not read again
    raw_path  the bytes of the path where they are not UTF-8, else null

The key ``fastreid-ice`` of the file's metadata describes the encoder (``Origin``), as JSON. Beyond ``EXACT_ROWS``
images the folder also holds faiss's inverted file, which makes queries faster: see ``fastreid_ice.deploy.search``.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.folder import SUFFIXES, list_with_cameras
from ..data.inspected import stamp
from ..data.inspection import find_unreadable
from ..errors import InputError
from ..files import PART, replacing
from ..reporting import PseudoLabels
from .calibration import calibrate
from .encoder import Encoder

if TYPE_CHECKING:
    import faiss

FEATURES = "features.parquet"
CELLS = "cells-{}.faiss"  # the inverted file of the features with this id
KEY, VERSION = b"fastreid-ice", 1
EXACT_ROWS = 10**6  # up to so many rows every one is compared with the query
BLOCK = 2**16  # rows that are written or read at a time


@dataclass(frozen=True)
class Origin:
    """How the features of an index were made.

    Attributes:
        run, weights: absolute paths of the run's folder and of its checkpoint.
        options: config keys and values that override those of the run.
        fingerprint: that of the encoder.
        source: the folder of images or file of labels that was indexed, an absolute path.
        labels: a hash of the run's labels that calibrated the threshold, "" if it has none.
        calibration: "all" and "other cameras" -> the quantiles of ``pair_quantiles``, None if there are no such pairs.
        id: drawn for these features.
    """

    run: str
    weights: str
    options: list[str]
    fingerprint: str
    source: str
    labels: str
    calibration: dict[str, list[float] | None]
    id: str


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The features of N images.

    Attributes:
        paths: N absolute paths.
        cameras: N texts, "" if not known.
        stamps: (N, 2) int64, size and time of the last change of each file.
        features: (N, D) float32 unit rows.
        origin: how they were made.
    """

    paths: list[str]
    cameras: list[str]
    stamps: np.ndarray
    features: np.ndarray
    origin: Origin

    @classmethod
    def read(cls, folder: Path) -> ImageIndex:
        """
        Raises:
            InputError: no such folder, or one that holds no index or another file under its name.
        """
        import pyarrow.parquet as pq

        path = folder / FEATURES
        if not path.is_file():
            raise InputError(f"{folder} holds no index; `fastreid-ice search index` makes one")
        again = "remove it, and run `fastreid-ice search index` again"
        try:
            with path.open("rb") as opened, pq.ParquetFile(opened) as file:
                description = json.loads((file.schema_arrow.metadata or {})[KEY])
                if description.pop("version") != VERSION:
                    raise InputError(f"{path} was written by another version of fastreid-ice; {again}")
                length = file.schema_arrow.field("vector").type.list_size
                features = np.empty((file.metadata.num_rows, length), np.float32)
                start = 0
                for batch in file.iter_batches(BLOCK, columns=["vector"]):
                    rows = batch.column(0).flatten().to_numpy()
                    features[start : start + len(batch)] = rows.reshape(-1, length)
                    start += len(batch)
                table = file.read(columns=["path", "camera", "size", "modified", "raw_path"])
            origin = Origin(**description)
        except InputError:
            raise
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:  # ArrowInvalid is a ValueError
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path} is not the file of an index, or is damaged ({reason}); {again}") from error
        raw = table["raw_path"].to_pylist()
        paths = [os.fsdecode(own or text) for own, text in zip(raw, table["path"].to_pylist(), strict=True)]
        stamps = np.stack([table["size"].to_numpy(), table["modified"].to_numpy()], axis=1)
        return cls(paths, table["camera"].to_pylist(), stamps, features, origin)

    def write(self, folder: Path, *, exact_rows: int = EXACT_ROWS) -> None:
        """Writes the index completely or not at all.

        A new folder is written under another name beside it, then renamed. In an existing one the file is replaced in
        one step, so that at any moment, also after a kill, it holds the earlier index or this one.

        Args:
            folder: missing, empty or with an index.
            exact_rows: for more rows an inverted file is written too.

        Raises:
            InputError: the folder holds something else, or cannot be written.
        """
        check_folder(folder)
        folder = folder.resolve()
        exists = folder.is_dir()
        parent, prefix = (folder, ".") if exists else (folder.parent, f".{folder.name}.")
        scratch = parent / f"{prefix}{self.origin.id}{PART}"
        try:
            for left in parent.glob(f"{glob.escape(prefix)}*{PART}"):  # by a command that was killed
                if "." not in left.name[len(prefix) : -len(PART)]:  # or it is that of an index with a longer name
                    shutil.rmtree(left)
            scratch.mkdir()
            if len(self.paths) > exact_rows:
                self._write_cells(scratch / CELLS.format(self.origin.id))
            with replacing(str(scratch / FEATURES)) as file:
                self._write_features(file)
            if exists:
                for path in sorted(scratch.iterdir()):  # the inverted file comes first
                    path.replace(folder / path.name)
                for path in folder.glob(CELLS.format("*")):
                    if path.name != CELLS.format(self.origin.id):
                        path.unlink()
            else:
                scratch.rename(folder)
        except (OSError, RuntimeError) as error:  # faiss raises the latter
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise InputError(f"cannot write the index {folder}: {reason}; an earlier one is unchanged") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _write_features(self, file: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        vector = pa.list_(pa.float32(), self.features.shape[1])
        description = json.dumps({"version": VERSION, **asdict(self.origin)}).encode()
        columns = [("path", pa.string()), ("camera", pa.string()), ("vector", vector)]
        columns += [("size", pa.int64()), ("modified", pa.int64()), ("raw_path", pa.binary())]
        schema = pa.schema(columns, metadata={KEY: description})
        with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["camera"]) as writer:
            for start in range(0, len(self.paths), BLOCK):
                part = slice(start, start + BLOCK)
                paths = self.paths[part]
                texts = [as_text(path) for path in paths]
                raw = [None if path == text else os.fsencode(path) for path, text in zip(paths, texts, strict=True)]
                values = pa.array(np.ascontiguousarray(self.features[part]).reshape(-1))
                rows = pa.FixedSizeListArray.from_arrays(values, type=vector)
                sizes, times = np.ascontiguousarray(self.stamps[part].T)
                writer.write_table(pa.table([texts, self.cameras[part], rows, sizes, times, raw], schema=schema))

    def _write_cells(self, path: Path) -> None:
        import faiss

        faiss.write_index(inverted_file(self.features), str(path))


def inverted_file(features: np.ndarray) -> faiss.IndexIVFFlat:
    """faiss's inverted file over (N, D) unit rows: they lie in about 4 sqrt(N) cells, of which a query reads some."""
    import faiss

    cells = max(1, min(round(4 * len(features) ** 0.5), len(features) // 39))  # faiss wants 39 rows for each
    index = faiss.index_factory(features.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64  # of the 256 by default: a quarter of the time
    index.train(features)
    index.add(features)
    return index


@dataclass(frozen=True)
class Update:
    """An index that was brought up to date, and how.

    Attributes:
        index: the new one.
        added, changed, kept, dropped: numbers of images: new ones, those whose file is another one now, those whose
            features were kept, and those that are no longer listed.
        gone: listed images that do not exist.
        unreadable: images that cannot be read, and are left out.
        afresh: whether an earlier index was made with another encoder, so that none of its features could be kept.
    """

    index: ImageIndex
    added: int
    changed: int
    kept: int
    dropped: int
    gone: list[str]
    unreadable: list[str]
    afresh: bool


def update_index(folder: Path, encoder: Encoder, source: Path, *, exact_rows: int = EXACT_ROWS) -> Update:
    """Makes ``folder`` the index of all images of ``source``; features that it already holds are kept.

    Args:
        folder: missing, empty or with an index.
        encoder: if it is not that of the earlier index, all features are extracted.
        source: a folder of images, whose cameras follow DATASETS.FOLDER.CAMERAS and METADATA, or a CSV file of labels,
            whose cameras count.
        exact_rows: as for ``ImageIndex.write``.

    Raises:
        InputError: no images, an image that cannot be read (unless DATALOADER.UNREADABLE is "skip"), or a folder that
            holds something else. The earlier index is then unchanged.
    """
    check_folder(folder)
    before = ImageIndex.read(folder) if (folder / FEATURES).is_file() else None
    afresh = before is not None and before.origin.fingerprint != encoder.fingerprint
    known = {path: row for row, path in enumerate(before.paths)} if before and not afresh else {}
    listed = list_source(source, encoder)
    stamps = {path: found for path in listed if (found := stamp(path))}
    gone = [path for path in listed if path not in stamps]
    if not stamps:
        raise InputError(f"none of the {len(gone)} images of {source} exists, the first: {gone[0]!r}")
    fresh = [
        path
        for path, found in stamps.items()
        if path not in known or found != tuple(before.stamps[known[path]].tolist())
    ]
    extracted, usable = _extracted(fresh, encoder)
    row_of = {path: row for row, (path, good) in enumerate(zip(fresh, usable, strict=True)) if good}
    unreadable = [path for path, good in zip(fresh, usable, strict=True) if not good]
    lost = set(unreadable)
    paths = [path for path in stamps if path not in lost]
    if not paths:
        raise InputError(f"none of the {len(stamps)} images of {source} can be read, the first: {unreadable[0]!r}")
    new = np.array([path in row_of for path in paths])
    features = np.empty((len(paths), (extracted if len(fresh) else before.features).shape[1]), np.float32)
    if new.any():
        features[new] = extracted[[row_of[path] for path in paths if path in row_of]]
    if not new.all():
        features[~new] = before.features[[known[path] for path in paths if path not in row_of]]
    cameras = [as_text(listed[path]) for path in paths]
    labels, calibration = _calibration(encoder, before.origin if before and not afresh else None, paths, features)
    origin = Origin(
        run=os.path.abspath(encoder.run.folder),
        weights=str(encoder.weights),
        options=encoder.options,
        fingerprint=encoder.fingerprint,
        source=os.path.abspath(source),
        labels=labels,
        calibration=calibration,
        id=before.origin.id if before else "",
    )
    index = ImageIndex(paths, cameras, np.array([stamps[path] for path in paths], np.int64), features, origin)
    if not (before and not row_of and (paths, cameras, origin) == (before.paths, before.cameras, before.origin)):
        index = replace(index, origin=replace(origin, id=secrets.token_hex(8)))
        index.write(folder, exact_rows=exact_rows)
    earlier = set(before.paths) if before else set()
    return Update(
        index,
        added=len(row_of.keys() - earlier),
        changed=len(row_of.keys() & earlier),
        kept=len(paths) - len(row_of),
        dropped=len(earlier - set(paths)),
        gone=gone,
        unreadable=unreadable,
        afresh=afresh,
    )


def check_folder(folder: Path) -> None:
    """Raises InputError if ``folder`` cannot become or is not the folder of an index."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--index {folder} is a file; name a folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"--index {folder}: there is no folder {folder.absolute().parent}")
    if folder.is_dir() and not (folder / FEATURES).is_file():
        others = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        if others:
            raise InputError(f"--index {folder} holds other files, such as {others[0]!r}; name a new folder")


def list_source(source: Path, encoder: Encoder) -> dict[str, str]:
    """Absolute path -> camera, "" if not known, of the images in a folder or in a CSV file of labels.

    Raises:
        InputError: there is no image, a file of another kind, or a path in which no camera is found.
    """
    if source.is_dir():
        root, node = os.path.abspath(source), encoder.cfg.DATASETS.FOLDER
        pairs = list_with_cameras(Path(root), cameras=node.CAMERAS or "none", metadata=node.METADATA or "")
        if not pairs:
            raise InputError(f"--images {source} holds no image ({', '.join(SUFFIXES)}); name another folder")
        return {os.path.join(root, name): camera for name, camera in pairs}
    if not source.exists():
        raise InputError(f"--images {source}: there is no such folder, and no such file of labels")
    labels = PseudoLabels.read(source)
    if not len(labels.paths):
        raise InputError(f"--images {source} names no image")
    return {os.path.abspath(path): camera for path, camera in zip(labels.paths, labels.cameras, strict=True)}


def as_text(name: str) -> str:
    r"""A file name or a camera that any program can read: bytes that are not UTF-8 become ``\udce9``."""
    return name.encode(errors="backslashreplace").decode()


def _extracted(paths: list[str], encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """As ``Encoder.encode``; (0, 0) features without images, for which no model is built."""
    if not paths:
        return np.empty((0, 0), np.float32), np.empty(0, bool)
    if encoder.cfg.DATALOADER.UNREADABLE == "error" and (reasons := find_unreadable(paths)):
        raise InputError(
            f"{len(reasons)} of {len(paths)} new images cannot be read, the first: {reasons[0]!r}; remove them, or "
            "leave them out with DATALOADER.UNREADABLE skip"
        )
    return encoder.encode(paths)


def _calibration(
    encoder: Encoder, before: Origin | None, paths: Sequence[str], features: np.ndarray
) -> tuple[str, dict[str, list[float] | None]]:
    """A hash of the labels of the run's last clustering, and what ``calibrate`` finds in them, or found before."""
    file = encoder.run.labels
    if file is None:
        return "", {"all": None, "other cameras": None}
    digest = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    if before and before.labels == digest:
        return digest, before.calibration
    return digest, calibrate(PseudoLabels.read(file), encoder, paths, features)
