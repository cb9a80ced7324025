"""SyntheticPeople: the dataset that this package draws on first use, with the same bytes on every machine."""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from PIL import Image

from ...progress import progress
from ..metadata import Facts
from .cameras import STRENGTHS, DrawnCamera
from .canvas import CROSSING, HEIGHT, WIDTH, stream

DRAWING = 1  # raise it with any change of the pictures, so that new drawings are never mixed with old files
CROWD = 3  # people in a camera's view at once, on average, if there are tracks
FIRST_TEST_PERSON = 5001  # the file names of Market-1501 have four digits
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"


@DATASET_REGISTRY.register()
class SyntheticPeople(ImageDataset):
    """People drawn by this package, seen by different cameras, in the layout of Market-1501.

    Every camera sees every person ``images_per_camera`` times. In the test set the first of these images is a query,
    the others are the gallery. A person depends on (seed, number), a camera on (seed, number, strength), and an image
    on both and its own number. So other sizes do not change the people, and another seed gives other people and other
    cameras. Drawing takes about 5 ms per image, once; a crop has 128 x 64 pixels and takes about 5 KB.

    With ``frames`` above 1 the images of a person in a camera are frames of crossings of its view: each crossing is a
    track, and about three people are in a view at once. The training images then have tracks and times, in frames.

    Args:
        root: the folder of datasets; the pictures are written to ``root/synthetic-people/<settings>``.
        strength: ``"mild"`` if cameras are similar, as in Market-1501; ``"strong"`` if cameras, not people, dominate
            the look of a picture, as in MSMT17.
        train_identities, test_identities: people, each in [1, 4999].
        cameras: at least 2.
        images_per_camera: of each person, at least 2 (a query and a gallery image).
        frames: of a crossing, of which ``images_per_camera`` is a multiple; 1 draws every image at another moment.
        seed: in [0, 2**32).

    Raises:
        ValueError: a setting out of range.
        OSError: the folder cannot be written, or holds only a part of the pictures.
    """

    dataset_name = "syntheticpeople"

    def __init__(
        self,
        root: str = "datasets",
        *,
        strength: str = "strong",
        train_identities: int = 48,
        test_identities: int = 24,
        cameras: int = 4,
        images_per_camera: int = 4,
        frames: int = 1,
        seed: int = 0,
        **kwargs,
    ) -> None:
        if strength not in STRENGTHS:
            raise ValueError(f"DATASETS.SYNTHETIC.STRENGTH is {strength!r}; choose one of {sorted(STRENGTHS)}.")
        for key, value, low, high in (
            ("TRAIN_IDENTITIES", train_identities, 1, FIRST_TEST_PERSON - 2),
            ("TEST_IDENTITIES", test_identities, 1, FIRST_TEST_PERSON - 2),
            ("CAMERAS", cameras, 2, 99),
            ("IMAGES_PER_CAMERA", images_per_camera, 2, 9999),
            ("FRAMES", frames, 1, images_per_camera),
            ("SEED", seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"DATASETS.SYNTHETIC.{key} is {value}; it must lie in [{low}, {high}].")
        if images_per_camera % frames:
            raise ValueError(
                f"DATASETS.SYNTHETIC.IMAGES_PER_CAMERA is {images_per_camera}; it must be a multiple of FRAMES {frames}"
            )
        self.strength, self.seed, self.frames = strength, seed, frames
        self.num_cameras, self.images_per_camera = cameras, images_per_camera
        self.people = {
            TRAIN: range(1, train_identities + 1),
            GALLERY: range(FIRST_TEST_PERSON, FIRST_TEST_PERSON + test_identities),
        }
        self.folder = Path(root) / "synthetic-people" / f"{self._settings()}-v{DRAWING}"
        if not self.folder.is_dir():
            self._draw()
        missing = [name for name, *_ in self._shots() if not (self.folder / name).is_file()]
        if missing:
            raise OSError(
                f"{self.folder} is incomplete: {len(missing)} images are missing, the first is {missing[0]}; "
                "delete the folder and it is drawn again."
            )
        super().__init__(self._items(TRAIN), self._items(QUERY), self._items(GALLERY), **kwargs)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """The keywords of ``__init__`` from ``cfg.DATASETS.SYNTHETIC``."""
        node = cfg.DATASETS.SYNTHETIC
        return {
            "strength": node.STRENGTH,
            "train_identities": node.TRAIN_IDENTITIES,
            "test_identities": node.TEST_IDENTITIES,
            "cameras": node.CAMERAS,
            "images_per_camera": node.IMAGES_PER_CAMERA,
            "frames": node.FRAMES,
            "seed": node.SEED,
        }

    def _settings(self) -> str:
        """A name that contains everything on which the pictures depend."""
        people = "x".join(str(len(numbers)) for numbers in self.people.values())
        film = f"-{self.frames}frames" if self.frames > 1 else ""
        return f"{self.strength}-{people}-{self.num_cameras}cam-{self.images_per_camera}img{film}-seed{self.seed}"

    def facts_of(self, paths: Sequence[str]) -> list[Facts]:
        """The tracks and times of training images, if there are tracks."""
        if self.frames == 1:
            return [Facts()] * len(paths)
        known = {
            str(self.folder / name): Facts(track=f"{pid}-{shot // self.frames}", time=self._time(pid, camera, shot))
            for name, pid, camera, shot in self._shots()
            if name.startswith(f"{TRAIN}/")
        }
        return [known[path] for path in paths]

    def _time(self, person: int, camera: int, shot: int) -> float:
        """The frame of the camera's film in which the shot is taken; the crossings of a person follow each other."""
        crossing, frame = divmod(shot, self.frames)
        span = max(1, len(self.people[TRAIN]) * self.frames // CROWD)
        start = stream(self.seed, CROSSING, person, camera, crossing, CROWD).randint(span)
        return float(crossing * (span + self.frames) + start + frame)

    def _shots(self) -> Iterator[tuple[str, int, int, int]]:
        """(file below the folder, person, camera from 0, shot from 0) of every image."""
        for split, people in self.people.items():
            for pid in people:
                for camera in range(self.num_cameras):
                    for shot in range(self.images_per_camera):
                        part = QUERY if split == GALLERY and shot == 0 else split
                        yield f"{part}/{pid:04d}_c{camera + 1}s1_{shot + 1:06d}_00.jpg", pid, camera, shot

    def _items(self, part: str) -> list[tuple]:
        """fast-reid's (path, person, camera) of one part; names, not numbers, for training, as in Market1501."""
        items: list[tuple] = []
        for name, pid, camera, _ in self._shots():
            if name.startswith(f"{part}/"):
                path = str(self.folder / name)
                train = (path, f"{self.dataset_name}_{pid}", f"{self.dataset_name}_{camera}")
                items.append(train if part == TRAIN else (path, pid, camera))
        return items

    def _draw(self) -> None:
        """Draw all images beside the folder, then rename it; if another process is faster, use its folder."""
        scratch = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}")
        try:
            for part in (TRAIN, QUERY, GALLERY):
                (scratch / part).mkdir(parents=True)
        except OSError as error:
            raise OSError(
                f"{self.folder.parent} cannot be written ({error.strerror}), and SyntheticPeople is drawn there on "
                "first use; choose a root that can be written."
            ) from error
        try:
            self._draw_into(scratch)
            try:
                scratch.rename(self.folder)
            except OSError:
                if not self.folder.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _draw_into(self, folder: Path) -> None:
        views = [
            DrawnCamera.draw_lots(self.seed, number, STRENGTHS[self.strength]) for number in range(self.num_cameras)
        ]
        shots = list(self._shots())
        for name, pid, camera, shot in progress(shots, f"Drawing {self.folder.name}"):
            view = views[camera]
            picture = view.shoot(pid, shot) if self.frames == 1 else view.film(pid, *divmod(shot, self.frames))
            Image.fromarray(picture).save(folder / name, quality=92, subsampling=0)


@DATASET_REGISTRY.register()
class SyntheticSource(SyntheticPeople):
    """A source domain for the demo: 150 other people, seen by 8 other cameras, without settings."""

    dataset_name = "syntheticsource"

    def __init__(self, root: str = "datasets", **kwargs) -> None:
        super().__init__(root, train_identities=150, cameras=8, images_per_camera=3, seed=1000, **kwargs)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {}


@DATASET_REGISTRY.register()
class SyntheticMarket(SyntheticPeople):
    """As many people, cameras and images as in Market-1501, for measuring times.

    There are 751 people in 12,936 training images, 750 others in 3,368 queries and a gallery of 15,913, and six
    cameras. Unlike there, all people have nearly the same number of images.

    Args:
        root: the folder of datasets; the pictures are written to ``root/synthetic-people``.
        images: of the training set, in [30, 86000]; the numbers of people, queries and gallery images are proportional.

    Raises:
        ValueError, OSError: as SyntheticPeople.
    """

    dataset_name = "syntheticmarket"

    def __init__(self, root: str = "datasets", *, images: int = 12936, **kwargs) -> None:
        if not 30 <= images <= 86000:
            raise ValueError(f"DATASETS.SYNTHETIC.IMAGES is {images}; it must lie in [30, 86000].")
        share = images / 12936
        self.sizes = {TRAIN: images, QUERY: round(3368 * share), GALLERY: round(15913 * share)}
        people = {"train_identities": math.ceil(751 * share), "test_identities": math.ceil(750 * share)}
        # Five shots are enough for every part: a query and four gallery images of each person by each camera.
        super().__init__(root, strength="mild", cameras=6, images_per_camera=5, **people, **kwargs)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {"images": cfg.DATASETS.SYNTHETIC.IMAGES}

    def _settings(self) -> str:
        return f"market-{self.sizes[TRAIN]}"

    def _shots(self) -> Iterator[tuple[str, int, int, int]]:
        """The first shots of each part, ordered so that everyone is seen once before anyone is seen twice."""
        left = self.sizes.copy()
        for name, pid, camera, shot in sorted(super()._shots(), key=lambda item: (item[3], item[2], item[1])):
            part = name.partition("/")[0]
            if left[part] > 0:
                left[part] -= 1
                yield name, pid, camera, shot


def contact_sheet(datasets: Sequence[SyntheticPeople], *, people: int = 8, shots: int = 2) -> Image.Image:
    """The first training people (rows) by camera and shot (columns), one dataset beside the other.

    docs/synthetic_people.jpg is ``contact_sheet([SyntheticPeople(strength=s) for s in ("mild", "strong")])``, saved
    with quality 80.
    """
    columns = [data.num_cameras * shots for data in datasets]
    gap = WIDTH // 4
    sheet = Image.new("RGB", (sum(columns) * WIDTH + (len(datasets) - 1) * gap, people * HEIGHT), "white")
    left = 0
    for data, width in zip(datasets, columns, strict=True):
        paths = iter(path for path, *_ in data.train)
        for row in range(people):
            for camera in range(data.num_cameras):
                for shot in range(data.images_per_camera):
                    with Image.open(next(paths)) as picture:
                        if shot < shots:
                            sheet.paste(picture, (left + (camera * shots + shot) * WIDTH, row * HEIGHT))
        left += width * WIDTH + gap
    return sheet
