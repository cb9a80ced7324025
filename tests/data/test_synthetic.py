"""SyntheticPeople: the same pictures everywhere, in fast-reid's layout, complete or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_ice.core import track_constraints
from fastreid_ice.data import build_training_set
from fastreid_ice.data.synthetic.cameras import STRENGTHS, DrawnCamera, looks_of
from fastreid_ice.data.synthetic.canvas import FINE, HEIGHT, WIDTH, Canvas
from fastreid_ice.data.synthetic.dataset import FIRST_TEST_PERSON, SyntheticMarket, SyntheticPeople, contact_sheet
from fastreid_ice.data.synthetic.people import Looks, Pose, Walker
from support import small_config

SMALL = {"train_identities": 2, "test_identities": 1, "cameras": 2, "images_per_camera": 2}
FILM = {**SMALL, "images_per_camera": 4, "frames": 2}
# Of names and bytes of all files of SMALL and FILM. If one changes, the drawing has: raise synthetic.DRAWING too.
DIGESTS = {
    "mild": "c736e4c9e3165eaa3a6f77207c2bcf0f70d168ce13f0ed7cf636a627d3f7e2ec",
    "film": "0d6e77e7f42d26705021840fde641831f60b818833b1d92f5a16ea2f93233662",
    "strong": "7daf7b8b40a48b59051c36179ffd3d98b9ed1bb06269c6c2472d78f7fa7ef3c9",
}


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.jpg")):
        total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def pixels(items) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path, *_ in items])


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> SyntheticPeople:
    """A set with the default cameras and images and fewer people."""
    return SyntheticPeople(str(tmp_path_factory.mktemp("people")), train_identities=12, test_identities=3)


@pytest.mark.parametrize("strength", sorted(STRENGTHS))
def test_same_bytes_on_every_machine(tmp_path, strength):
    assert digest(SyntheticPeople(str(tmp_path), strength=strength, **SMALL).folder) == DIGESTS[strength]


def test_same_bytes_of_tracks_on_every_machine(tmp_path):
    assert digest(SyntheticPeople(str(tmp_path), **FILM).folder) == DIGESTS["film"]


def test_layout_is_that_of_fastreid(default):
    assert (len(default.train), len(default.query), len(default.gallery)) == (12 * 16, 3 * 4, 3 * 4 * 3)
    path, pid, camera = default.train[0]
    assert (pid, camera) == ("syntheticpeople_1", "syntheticpeople_0")
    assert Path(path).parts[-2:] == ("bounding_box_train", "0001_c1s1_000001_00.jpg")
    path, pid, camera = default.query[-1]
    assert (pid, camera) == (FIRST_TEST_PERSON + 2, 3)
    assert Path(path).parts[-2:] == ("query", "5003_c4s1_000001_00.jpg")
    assert Path(default.gallery[0][0]).parts[-2:] == ("bounding_box_test", "5001_c1s1_000002_00.jpg")
    assert default.get_num_pids(default.train) == 12 and default.get_num_cams(default.train) == 4
    for part in (default.query, default.gallery):
        assert default.get_num_pids(part) == 3 and default.get_num_cams(part) == 4
    with Image.open(path) as picture:
        assert (picture.size, picture.mode) == ((WIDTH, HEIGHT), "RGB")


def test_every_picture_is_another(default):
    assert len({Path(path).read_bytes() for path, *_ in default.train + default.query + default.gallery}) == 240


def test_sizes_leave_people_and_cameras_as_they_are(default, tmp_path):
    fewer = SyntheticPeople(str(tmp_path), **SMALL)
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        for path in (fewer.folder / part).iterdir():
            assert path.read_bytes() == (default.folder / part / path.name).read_bytes()


def test_another_seed_has_other_people_and_other_cameras():
    strength = STRENGTHS["strong"]
    assert looks_of(0, 1) == looks_of(0, 1) != looks_of(1, 1) != looks_of(1, 2)
    cameras = [DrawnCamera.draw_lots(seed, number, strength) for seed in (0, 1) for number in (0, 1)]
    for one in range(4):
        for other in range(one):
            assert not np.array_equal(cameras[one].tone, cameras[other].tone)
            assert not np.array_equal(cameras[one].scene[:100], cameras[other].scene[:100])


def nearest_are_of_the_same_camera(data: SyntheticPeople) -> float:
    """The share of same-camera pictures among the 10 nearest in pixels: how much cameras dominate."""
    thumbnails = pixels(data.train).reshape(len(data.train), 16, 8, 8, 8, 3).mean((2, 4)).reshape(len(data.train), -1)
    squares = (thumbnails**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * thumbnails @ thumbnails.T
    np.fill_diagonal(distances, np.inf)
    cameras = np.array([camera for *_, camera in data.train])
    return (cameras[distances.argsort(1)[:, :10]] == cameras[:, None]).mean()


def test_cameras_dominate_more_where_the_strength_is_strong(default, tmp_path):
    mild = SyntheticPeople(str(tmp_path), strength="mild", train_identities=12, test_identities=1)
    assert nearest_are_of_the_same_camera(default) > 0.75  # by chance 0.25
    assert nearest_are_of_the_same_camera(mild) < 0.5


def test_drawn_once(tmp_path, monkeypatch):
    first = SyntheticPeople(str(tmp_path), **SMALL)
    monkeypatch.setattr(DrawnCamera, "shoot", lambda *_: pytest.fail("drawn a second time"))
    assert SyntheticPeople(str(tmp_path), **SMALL).train == first.train


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    shoot = DrawnCamera.shoot

    def interrupted(camera, person, shot):
        if person == 2:
            raise KeyboardInterrupt
        return shoot(camera, person, shot)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DrawnCamera, "shoot", interrupted)
        SyntheticPeople(str(tmp_path), **SMALL)
    assert list((tmp_path / "synthetic-people").iterdir()) == []
    assert digest(SyntheticPeople(str(tmp_path), **SMALL).folder) == DIGESTS["strong"]


def test_several_at_once_share_one_folder(tmp_path):
    start, drawn = threading.Barrier(3), []

    def draw():
        start.wait()
        drawn.append(SyntheticPeople(str(tmp_path), **SMALL))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 3
    assert [path.name for path in (tmp_path / "synthetic-people").iterdir()] == [drawn[0].folder.name]
    assert digest(drawn[0].folder) == DIGESTS["strong"]


def test_an_incomplete_folder_is_named(tmp_path):
    data = SyntheticPeople(str(tmp_path), **SMALL)
    (data.folder / "query" / "5001_c2s1_000001_00.jpg").unlink()
    with pytest.raises(OSError, match=rf"{data.folder.name} is incomplete: 1 images are missing.*5001_c2.*delete"):
        SyntheticPeople(str(tmp_path), **SMALL)


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file/synthetic-people cannot be written .* choose a root"):
        SyntheticPeople(str(tmp_path / "file"), **SMALL)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("train_identities", 0),
        ("test_identities", 5000),
        ("cameras", 1),
        ("images_per_camera", 1),
        ("frames", 5),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path, setting, value):
    with pytest.raises(ValueError, match=rf"DATASETS.SYNTHETIC.{setting.upper()} is {value}; it must lie in \["):
        SyntheticPeople(str(tmp_path), **{setting: value})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_strength_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"DATASETS.SYNTHETIC.STRENGTH is 'weak'; choose one of \['mild', 'strong'\]"):
        SyntheticPeople(str(tmp_path), strength="weak")


def test_settings_come_from_the_config(tmp_path):
    node = SimpleNamespace(
        STRENGTH="mild", TRAIN_IDENTITIES=2, TEST_IDENTITIES=1, CAMERAS=2, IMAGES_PER_CAMERA=2, FRAMES=1, SEED=7
    )
    settings = SyntheticPeople.from_config(SimpleNamespace(DATASETS=SimpleNamespace(SYNTHETIC=node)))
    assert SyntheticPeople(str(tmp_path), **settings).folder.name.startswith("mild-2x1-2cam-2img-seed7-v")


def test_tracks_are_frames_of_walkers(tmp_path):
    """Who crosses a view is one person; the same one never crosses it twice at once; others do at that time."""
    sizes = {"TRAIN_IDENTITIES": 20, "TEST_IDENTITIES": 1, "CAMERAS": 2, "IMAGES_PER_CAMERA": 6, "FRAMES": 3}
    node = {f"DATASETS.SYNTHETIC.{key}": value for key, value in sizes.items()}
    cfg = small_config(DATASETS__ROOT=str(tmp_path), **node)
    images = build_training_set(cfg)
    known = images.known
    constraints = track_constraints(known)
    assert len(images) == 20 * 2 * 6 and constraints.num_linked == 80 * 3
    who = np.full(constraints.groups.max() + 1, -1)
    who[constraints.groups] = known.identities
    assert np.array_equal(who[constraints.groups], known.identities), "a track is one person"
    assert len(who) == 80 and (who[constraints.apart[:, 0]] != who[constraints.apart[:, 1]]).all()
    assert 80 * 1 < len(constraints.apart) < 80 * 4, "about three people at once"
    for track in range(80):
        times = known.times[torch.from_numpy(constraints.groups == track)]
        assert times.diff().tolist() == [1, 1]


def test_frames_of_a_track_are_alike(tmp_path):
    """More than the images of another crossing, since the walk goes on before the same part of the scene."""
    data = SyntheticPeople(str(tmp_path), train_identities=8, test_identities=1, images_per_camera=6, frames=3)
    small = pixels(data.train).reshape(8 * 4, 2, 3, 16, 8, 8, 8, 3).mean((4, 6)).reshape(8 * 4, 2, 3, -1)
    within = np.abs(small[:, :, 0] - small[:, :, 1]).mean()
    between = np.abs(small[:, 0] - small[:, 1]).mean()
    assert 0 < within < 0.8 * between


def test_a_track_that_is_cut_short_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"DATASETS.SYNTHETIC.IMAGES_PER_CAMERA is 4; it must be a multiple of FRAMES 3"
    ):
        SyntheticPeople(str(tmp_path), images_per_camera=4, frames=3)


def test_market_has_the_proportions_of_market_1501(tmp_path):
    data = SyntheticMarket(str(tmp_path), images=60)
    parts = data.train, data.query, data.gallery
    assert [len({path for path, *_ in part}) for part in parts] == [60, 16, 74]
    assert [data.get_num_pids(part) for part in parts] == [4, 4, 4]
    assert data.get_num_cams(data.train) == data.get_num_cams(data.gallery) == 6
    counts = Counter(pid for _, pid, _ in data.train)
    assert max(counts.values()) - min(counts.values()) <= 1
    seen = {(pid, camera) for _, pid, camera in data.gallery}
    assert all(any((pid, other) in seen for other in range(6) if other != camera) for _, pid, camera in data.query)
    with pytest.raises(ValueError, match=r"DATASETS.SYNTHETIC.IMAGES is 3; it must lie in \[30, 86000\]"):
        SyntheticMarket(str(tmp_path), images=3)


def test_contact_sheet_shows_people_by_camera_and_shot(default):
    sheet = np.asarray(contact_sheet([default, default], people=3, shots=2))
    assert sheet.shape == (3 * HEIGHT, 2 * 8 * WIDTH + WIDTH // 4, 3)
    second_person_third_camera_second_shot = pixels(default.train)[1 * 16 + 2 * 4 + 1]
    assert np.array_equal(sheet[HEIGHT : 2 * HEIGHT, 5 * WIDTH : 6 * WIDTH], second_person_third_camera_second_shot)
    assert np.array_equal(sheet[:, : 8 * WIDTH], sheet[:, 8 * WIDTH + WIDTH // 4 :])


def test_polygon_fills_what_a_loop_over_pixels_fills():
    rng = np.random.RandomState(0)
    for _ in range(20):
        centre, radii = rng.randint(-20, 220, 2), rng.randint(3, 90, 2)
        angles = np.sort(rng.rand(7)) * 2 * np.pi
        corners = [(int(x), int(y)) for x, y in centre + radii * np.stack([np.cos(angles), np.sin(angles)], 1)]
        canvas = Canvas()
        canvas.polygon(corners, canvas.material((9, 9, 9)))
        for y in range(0, HEIGHT * FINE, 7):
            edges = [
                e for e in zip(corners, corners[1:] + corners[:1], strict=True) if min(e)[1] <= y or max(e)[1] <= y
            ]
            crossings = []
            for (x0, y0), (x1, y1) in edges:
                if y0 == y1 == y:
                    crossings += [x0, x1]
                elif y0 != y1 and min(y0, y1) <= y <= max(y0, y1):
                    crossings.append(x0 + (x1 - x0) * (y - y0) // (y1 - y0))
            expected = [bool(crossings) and min(crossings) <= x <= max(crossings) for x in range(WIDTH * FINE)]
            assert (canvas.cells[y] > 0).tolist() == expected


def painted(heading: int, colour: tuple, **looks) -> int:
    """Visible fine pixels of a colour on a person who walks in a direction (degrees; 0 is towards the camera)."""
    plain = {"garment": "shirt", "hair_style": "short", "lower": "trousers", "badge": "none", "bag": "none"}
    fields = vars(looks_of(0, 1)) | plain | looks
    canvas = Canvas()
    walker = Walker(Looks(**fields), Pose(heading=heading, phase=40, stride=24), x=96, y=370, size=340, pitch=8)
    walker.draw(canvas)
    materials = [number for number, paint in enumerate(canvas.palette) if number and paint == colour]
    return int(np.isin(canvas.cells // 3, materials).sum())


def test_a_rucksack_is_seen_from_behind():
    pink = (250, 1, 250)
    front, side, back = (painted(heading, pink, bag="rucksack", bag_colour=pink) for heading in (0, 90, 180))
    assert 0 < 2 * front < side < back


def test_a_shirt_under_an_open_jacket_is_seen_from_the_front():
    pink = (250, 1, 250)
    front, diagonal, back = (painted(heading, pink, garment="open", inner=pink) for heading in (0, 45, 180))
    assert front > diagonal > 0 == back


@pytest.mark.parametrize("badge, heading", [("chest", 0), ("back", 180)])
def test_a_badge_is_on_one_side_only(badge, heading):
    pink = (250, 1, 250)
    badged = {"badge": badge, "top_second": pink, "pattern": "plain"}
    assert painted(heading, pink, **badged) > 0 == painted(heading + 180, pink, **badged)


def test_the_face_is_seen_from_the_front_and_a_side_is_narrower():
    eyes = (40, 34, 34)
    assert painted(0, eyes) > 0 == painted(180, eyes)
    blue = (1, 1, 250)
    front, side = (painted(heading, blue, top=blue, sleeves=(9, 9, 9), pattern="plain") for heading in (0, 90))
    assert front > 1.15 * side


def test_eight_headings_look_different():
    looks = looks_of(0, 3)
    views = []
    for heading in range(0, 360, 45):
        canvas = Canvas()
        Walker(looks, Pose(heading=heading, phase=40, stride=24), x=96, y=370, size=340, pitch=8).draw(canvas)
        views.append(canvas.cells)
    assert all((views[one] != views[other]).mean() > 0.02 for one in range(8) for other in range(one))
