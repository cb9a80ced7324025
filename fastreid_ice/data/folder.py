"""UnlabeledFolder: a dataset from any folder of images, with or without cameras."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from tabulate import tabulate

from ..errors import InputError
from .metadata import KEY, Facts, Rule, pattern_rule, table_rule

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
QUERY, GALLERY = "query", "gallery"
SHOWN_CAMERAS = 20

logger = logging.getLogger(f"fastreid.{__name__}")


@DATASET_REGISTRY.register()
class UnlabeledFolder(ImageDataset):
    """Any folder of images (jpg, jpeg, png, webp, bmp, in upper or lower case, at any depth) without identities.

    Links to files and folders are followed, and each folder is read once, however many links lead to it. Names that
    begin with a dot are left out.

    If ``root`` contains the folders ``query`` and ``gallery``, these are not used for training, and can be evaluated.
    There the identity of an image is the name of its folder, as in ``query/anna/7.jpg`` and ``gallery/anna/8.jpg``.
    Their cameras follow the same rule as those of training images, applied to the path below ``query`` or ``gallery``;
    with "folders" this is ``query/<camera>/<identity>/7.jpg``. As usual, gallery images of a query's identity in its
    own camera do not count; without cameras all of them do.

    Args:
        root: the folder.
        cameras: "none" if they are not known; "folders" if the first sub-folder is the camera; else a regular
            expression whose only group is the camera, searched in the path below ``root`` ("/" between folders).
        metadata: cameras, tracks and times: "" if they are not known; a CSV file in ``root``, see ``table_rule``; or
            a regular expression with the groups ``(?P<camera>...)``, ``(?P<track>...)`` and ``(?P<time>...)`` or some
            of them, searched in the same path. If it gives cameras, the other rule must be "none".

    Attributes:
        paths: the training images, sorted.
        cameras: the camera of each image as text, None if it is not known.

    Raises:
        InputError: no such folder, fewer than two images, a path in which no camera is found, metadata of another form,
            or query and gallery that do not match each other.
    """

    dataset_name = "unlabeledfolder"
    unchecked_images = True

    def __init__(self, root: str, *, cameras: str = "none", metadata: str = "", **kwargs) -> None:
        self.root, self.rule = Path(root), cameras
        if not self.root.is_dir():
            raise InputError(f"DATASETS.ROOT {root!r} is no folder")
        parts = _parts(self.root)
        if len(parts) == 1:
            raise InputError(
                f"{root!r} holds {parts[0]!r} without {QUERY if parts == [GALLERY] else GALLERY!r}: evaluation needs "
                "both; rename the folder if its images are to be trained on"
            )
        names = list_images(self.root, leave_out=[self.root / name for name in parts])
        if len(names) < 2:
            raise InputError(
                f"DATASETS.ROOT {root!r} holds {len(names)} images to train on ({', '.join(SUFFIXES)}); "
                "at least 2 are needed"
            )
        self.paths = [str(self.root / name) for name in names]
        self._rules = FolderRules(self.root, parts, cameras=cameras, metadata=metadata)
        self._facts = dict(zip(self.paths, self._rules.facts_of("", names), strict=True))
        self.cameras = [self._facts[path].camera for path in self.paths]
        train = [
            (path, None, None if camera is None else f"{self.dataset_name}_{camera}")
            for path, camera in zip(self.paths, self.cameras, strict=True)
        ]
        super().__init__(train, *(self._test_set() if parts else ([], [])), **kwargs)

    @staticmethod
    def has_test_set(root: str) -> bool:
        """Whether a folder of images has a query or a gallery to evaluate."""
        return any(Path(root, part).is_dir() for part in (QUERY, GALLERY))

    @classmethod
    def from_config(cls, cfg) -> dict:
        """The keywords of ``__init__`` out of ``cfg.DATASETS``."""
        if not cfg.DATASETS.ROOT:
            raise InputError("DATASETS.ROOT is empty: it must name the folder of images")
        node = cfg.DATASETS.FOLDER
        # yacs reads a bare None as an empty value
        return {"cameras": node.CAMERAS or "none", "metadata": node.METADATA or ""}

    def facts_of(self, paths: Sequence[str]) -> list[Facts]:
        """What is known of training images."""
        return [self._facts[path] for path in paths]

    def show_train(self) -> None:
        """Logs how many images each camera has, and how many tracks and times are known."""
        logger.info("%d images in %s (DATASETS.FOLDER.CAMERAS %s)", len(self.paths), self.root, self.rule)
        if self._rules.knows_cameras:
            counts = sorted(Counter(camera or "" for camera in self.cameras).items())
            more = len(counts) - SHOWN_CAMERAS
            table = tabulate(counts[:SHOWN_CAMERAS], ["camera", "images"], disable_numparse=True)
            logger.info("%d cameras\n%s%s", len(counts), table, f"\n... and {more} more" if more > 0 else "")
        facts = self._facts.values()
        tracks = [(known.camera, known.track) for known in facts if known.track is not None]
        times = sum(known.time is not None for known in facts)
        if tracks or times:
            logger.info("%d tracks of %d images; %d images have a time", len(set(tracks)), len(tracks), times)
        if not self.query:
            logger.info("%s has no folders query and gallery: nothing to evaluate there", self.root)

    def _test_set(self) -> list[list[tuple]]:
        """fast-reid's (path, person, camera) of query and of gallery."""
        query, gallery = self._labelled(QUERY), self._labelled(GALLERY)
        seen = defaultdict(set)
        for _, person, camera in gallery:
            seen[person].add(camera)
        if not any(seen[person] - {camera} for _, person, camera in query):
            raise InputError(
                f"no image in {str(self.root / QUERY)!r} has its identity in {str(self.root / GALLERY)!r}"
                + (" in another camera" if self._rules.knows_cameras else "")
            )
        people, cameras = (
            {text: number for number, text in enumerate(sorted({item[column] for item in query + gallery}))}
            for column in (1, 2)
        )
        return [[(path, people[person], cameras[camera]) for path, person, camera in part] for part in (query, gallery)]

    def _labelled(self, part: str) -> list[tuple[str, str, str]]:
        """(path, person, camera) of query or gallery, person and camera as text."""
        folder = self.root / part
        names = list_images(folder)
        if not names:
            raise InputError(f"{str(folder)!r} holds no image")
        layout = "<camera>/<identity>" if self.rule == "folders" else "<identity>"
        for name in names:
            if name.count("/") <= layout.count("/"):
                raise InputError(f"{str(folder / name)!r} must lie in a folder {part}/{layout}")
        cameras = [facts.camera for facts in self._rules.facts_of(part, names)]
        if not self._rules.knows_cameras:
            # Query and gallery count as two cameras, so that all images of a person count.
            cameras = [part] * len(names)
        if None in cameras:
            unknown = str(folder / names[cameras.index(None)])
            raise InputError(f"{KEY} gives no camera for {unknown!r}, and evaluation needs the cameras of all images")
        return [(str(folder / name), name.split("/")[-2], camera) for name, camera in zip(names, cameras, strict=True)]


class FolderRules:
    """What the rules ``cameras`` and ``metadata`` of ``UnlabeledFolder`` say of the images in a folder.

    Args:
        root: the folder.
        parts: the folders in it, such as ``query``, to whose images the rules apply separately.
        cameras, metadata: as for ``UnlabeledFolder``.

    Attributes:
        knows_cameras: whether one of the two rules gives cameras.

    Raises:
        InputError: as for ``UnlabeledFolder``.
    """

    def __init__(self, root: Path, parts: Sequence[str], *, cameras: str, metadata: str) -> None:
        self.root, self.cameras = root, cameras
        self._camera = _camera_pattern(cameras)
        self.knows_cameras = self._camera is not None
        self._rule: Rule = lambda part, names: [Facts()] * len(names)
        if not metadata:
            return
        if metadata.lower().endswith(".csv"):
            places = [("", parts), *((part, ()) for part in parts)]
            images = {_joined(part, name) for part, out in places for name in _listed(root, part, out)}
            self._rule, gives_cameras = table_rule(root / metadata, images)
        else:
            self._rule, gives_cameras = pattern_rule(metadata)
        if gives_cameras and self.knows_cameras:
            raise InputError(
                f"{KEY} {metadata!r} gives cameras, and so does DATASETS.FOLDER.CAMERAS {cameras!r}; set one of them"
            )
        self.knows_cameras |= gives_cameras

    def facts_of(self, part: str, names: Sequence[str]) -> list[Facts]:
        """What both rules give for images below ``part``, or with "" for those below the folder itself.

        Raises:
            InputError: a rule does not fit a path.
        """
        facts = self._rule(part, names)
        if self._camera is None:
            return facts
        matches = map(self._camera.search, names)
        cameras = [match and match[1] for match in matches]
        if None in cameras:
            raise InputError(
                f"DATASETS.FOLDER.CAMERAS {self.cameras!r} finds no camera in {cameras.count(None)} of {len(names)} "
                f"paths below {str(self.root / part)!r}, the first: {names[cameras.index(None)]!r}"
            )
        return [found._replace(camera=camera) for found, camera in zip(facts, cameras, strict=True)]


def list_with_cameras(root: Path, *, cameras: str, metadata: str) -> list[tuple[str, str]]:
    """All images below a folder, also those of its ``query`` and ``gallery``, sorted, each with its camera.

    Args:
        root: the folder.
        cameras, metadata: as for ``UnlabeledFolder``.

    Returns:
        Paths relative to ``root``, and the name of the camera, "" if it is not known.

    Raises:
        InputError: as for ``UnlabeledFolder``, except that any number of images will do.
    """
    parts = _parts(root)
    rules = FolderRules(root, parts, cameras=cameras, metadata=metadata)
    found = []
    for part in ("", *parts):
        names = _listed(root, part, () if part else parts)
        found += zip([_joined(part, name) for name in names], rules.facts_of(part, names), strict=True)
    return sorted((path, facts.camera or "") for path, facts in found)


def camera_in_name(name: str, *, cameras: str, metadata: str) -> str:
    """The camera that the rules of ``UnlabeledFolder`` find in the name of one image elsewhere; "" if they find none.

    A table of metadata names only the images of its own folder, and is not read.
    """
    metadata = "" if metadata.lower().endswith(".csv") else metadata
    try:
        return FolderRules(Path(), (), cameras=cameras, metadata=metadata).facts_of("", [name])[0].camera or ""
    except InputError:
        return ""


def _parts(root: Path) -> list[str]:
    """Which of the folders query and gallery exist."""
    return [name for name in (QUERY, GALLERY) if (root / name).is_dir()]


def _listed(root: Path, part: str, leave_out: Sequence[str]) -> list[str]:
    return list_images(root / part, leave_out=[root / name for name in leave_out])


def _joined(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def list_images(root: Path, leave_out: Collection[Path] = ()) -> list[str]:
    """The images below ``root``: sorted paths relative to it, with "/" between folders.

    Each folder is read once, by its own path if it is below ``root``, else by the first link to it. Links may therefore
    form circles.

    Args:
        root: the folder.
        leave_out: folders that are not read.
    """
    names: list[str] = []
    seen = {_identity(folder) for folder in leave_out}
    folders, links = [root], deque[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        if _identity(folder) in seen:
            continue
        seen.add(_identity(folder))
        prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(Path(entry.path))
                elif entry.name.lower().endswith(SUFFIXES):
                    names.append(prefix + entry.name)
    return sorted(names)


def _is_folder(entry: os.DirEntry) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _camera_pattern(rule: str) -> re.Pattern | None:
    """The pattern whose only group finds the camera in a path; None if cameras are not known."""
    if rule == "none":
        return None
    key = f"DATASETS.FOLDER.CAMERAS {rule!r}"
    try:
        pattern = re.compile("^([^/]+)/" if rule == "folders" else rule)
    except re.error as error:
        raise InputError(f"{key} is neither 'none' nor 'folders' nor a regular expression: {error}") from error
    if pattern.groups != 1:
        raise InputError(
            f"{key} must be 'none', 'folders', or a regular expression with one group, as in '_c([0-9]+)'; "
            f"it has {pattern.groups} groups"
        )
    return pattern
