"""Augmentations of batches against fast-reid's of single images: the same distribution of each parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastreid.data.transforms import build_transforms
from PIL import Image, ImageFilter
from scipy.stats import chi2_contingency, ks_2samp, kstest
from torch import Generator, Tensor

from fastreid_ice import InputError
from fastreid_ice.data import RandomErasing, RandomFlipCrop, RandomGaussianBlur, build_augmentation
from support import small_config

HEIGHT, WIDTH, DRAWS = 64, 32, 3000
LEAST = 1e-3  # p-value below which two samples are considered different
OFF = {f"INPUT.{name}.ENABLED": False for name in ("FLIP", "PADDING", "BLUR", "REA")}
SIZE = {"INPUT.SIZE_TRAIN": [HEIGHT, WIDTH]}


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def positions() -> Tensor:
    """(3, H, W) uint8 with the position of each pixel: row, column, and 255 for everything but padding."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 255)]).to(torch.uint8)


def both(image: Tensor, **changes: object) -> tuple[Tensor, Tensor]:
    """DRAWS views of an image: ours, and fast-reid's with the same config."""
    cfg = small_config(**{**OFF, **SIZE, **changes})
    ours = build_augmentation(cfg)(image.expand(DRAWS, -1, -1, -1).contiguous(), seeded())
    transform = build_transforms(cfg, is_train=True)
    torch.manual_seed(0)
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return ours, torch.stack([transform(picture) for _ in range(DRAWS)])


def same_counts(first: Tensor, second: Tensor) -> float:
    """p-value of two samples of integers."""
    kinds = torch.cat([first, second]).unique()
    table = [[(sample == kind).sum().item() for kind in kinds] for sample in (first, second)]
    return chi2_contingency(table).pvalue


def flips_and_offsets(views: Tensor) -> dict[str, Tensor]:
    """The drawn parameters, read from the middle of the views, which padding does not reach."""
    y, x = HEIGHT // 2, WIDTH // 2
    here, right = views[:, 1, y, x], views[:, 1, y, x + 1]
    mirrored = right < here
    left = torch.where(mirrored, here + x - WIDTH + 1, here - x)
    return {"mirrored": mirrored.int(), "top": views[:, 0, y, x] - y, "left": left}


def test_flips_and_crops_are_drawn_as_by_fastreid() -> None:
    changes = {"INPUT.FLIP.ENABLED": True, "INPUT.FLIP.PROB": 0.3, "INPUT.PADDING.ENABLED": True}
    ours, theirs = (flips_and_offsets(views) for views in both(positions(), **changes, **{"INPUT.PADDING.SIZE": 5}))
    assert ours["top"].unique().tolist() == ours["left"].unique().tolist() == list(range(-5, 6))
    for name, drawn in ours.items():
        assert same_counts(drawn, theirs[name]) > LEAST, name
    # Each image has its own parameters, independent of the others.
    assert abs(torch.corrcoef(torch.stack([drawn.float() for drawn in ours.values()])).triu(1)).max() < 0.06


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_every_crop_is_one_that_fastreid_makes(mode: str) -> None:
    """Pixel for pixel, padding included."""
    image = positions()
    padding = ((0, 0), (2, 2), (2, 2))
    padded = torch.from_numpy(np.pad(image.numpy(), padding, mode=mode))
    views = RandomFlipCrop(0.5, 2, mode)(image.expand(200, -1, -1, -1), seeded())
    possible = padded.unfold(1, HEIGHT, 1).unfold(2, WIDTH, 1).permute(1, 2, 0, 3, 4).reshape(25, -1)
    possible = {view.numpy().tobytes() for view in possible}
    found = {view.numpy().tobytes() for view in views} | {view.flip(2).numpy().tobytes() for view in views}
    assert len(possible) == 25 and possible <= found
    for view in views:
        assert {view.numpy().tobytes(), view.flip(2).contiguous().numpy().tobytes()} & possible


def rectangles(views: Tensor) -> dict[str, np.ndarray]:
    """Share of the area, height over width and place of the erased rectangles, for views with one."""
    erased = views[:, 0] < 0
    erased = erased[erased.any(2).any(1)]
    rows, columns = erased.any(2).numpy(), erased.any(1).numpy()
    heights, widths = rows.sum(1), columns.sum(1)
    assert (erased.sum((1, 2)).numpy() == heights * widths).all(), "one whole rectangle each"
    return {
        "area": heights * widths,
        "ratio": heights / widths,
        "top": rows.argmax(1) / (HEIGHT - heights),
        "left": columns.argmax(1) / (WIDTH - widths),
        "height": heights,
        "width": widths,
    }


def test_rectangles_are_erased_as_by_fastreid() -> None:
    changes = {"INPUT.REA.ENABLED": True, "INPUT.REA.PROB": 0.6, "INPUT.REA.VALUE": [-1.0, -2.0, -3.0]}
    changes |= {"INPUT.REA.AREA": (0.02, 0.33), "INPUT.REA.RATIO": (0.3, 3.3)}
    changes |= {"INPUT.REA.RATIO_DRAW": "log", "INPUT.REA.ATTEMPTS": 10}
    ours, theirs = both(positions(), **changes)
    erased = ours[:, 0] < 0
    assert torch.equal(ours, torch.where(erased[:, None], torch.tensor([-1.0, -2, -3])[:, None, None], positions()))
    assert same_counts(erased.any(2).any(1).int(), (theirs[:, 0] < 0).any(2).any(1).int()) > LEAST
    theirs = rectangles(theirs)
    for name, values in rectangles(ours).items():
        assert ks_2samp(values, theirs[name]).pvalue > LEAST, name


def test_published_erasing_is_that_of_the_published_code() -> None:
    """Area and ratio uniform, 100 attempts (ICE, Cluster Contrast and DCMIP), against a loop that draws like theirs."""
    options = {"area": (0.02, 0.4), "ratio": (0.3, 1 / 0.3), "ratio_draw": "uniform", "attempts": 100}
    erased = RandomErasing(1.0, [1.0], **options)(torch.zeros(DRAWS, 1, HEIGHT, WIDTH), seeded())[:, 0]
    rng = np.random.default_rng(0)
    heights, widths = [], []
    for _ in range(DRAWS):
        while True:
            area, ratio = rng.uniform(0.02, 0.4) * HEIGHT * WIDTH, rng.uniform(0.3, 1 / 0.3)
            height, width = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if height < HEIGHT and width < WIDTH:
                break
        heights.append(height)
        widths.append(width)
    assert ks_2samp(erased.any(2).sum(1), heights).pvalue > LEAST
    assert ks_2samp(erased.any(1).sum(1), widths).pvalue > LEAST
    milder = RandomErasing(1.0, [1.0])(torch.zeros(DRAWS, 1, HEIGHT, WIDTH), seeded())
    assert erased.mean() > 1.1 * milder.mean()


@pytest.mark.parametrize(
    ("key", "value"), [("AREA", (0.4, 0.02)), ("RATIO", (0.0, 1.0)), ("RATIO_DRAW", "even"), ("ATTEMPTS", 0)]
)
def test_erasing_out_of_range_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"INPUT.REA: {key}"):
        build_augmentation(small_config(**{f"INPUT.REA.{key}": value}))


def test_rectangles_that_do_not_fit_are_drawn_again() -> None:
    """In a flat image most of the high rectangles do not fit, and in some images nothing is erased."""
    images = torch.zeros(DRAWS, 1, 4, 400)
    erased = RandomErasing(1.0, [1.0])(images, seeded())[:, 0].bool()
    assert not erased.all(1).any(), "no rectangle is as high as the image"
    assert erased.any(2).any(1).float().mean() < 0.999
    assert erased.any(2).sum(1).unique().tolist() == [0, 3], "the lowest rectangles are 3 high"


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_pillows(sigma: float) -> None:
    """Pillow approximates the Gaussian by boxes, in whole grey levels."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (16, 8, 3), np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    image = torch.from_numpy(np.array(rough)).permute(2, 0, 1)[None]
    ours = RandomGaussianBlur(1.0, (sigma, sigma))(image, seeded())[0]
    theirs = torch.from_numpy(np.array(rough.filter(ImageFilter.GaussianBlur(sigma)))).permute(2, 0, 1)
    assert (ours - theirs).abs().max() < 6 and (ours - theirs).abs().mean() < 1
    assert sigma < 1 or (ours - image[0]).abs().mean() > 4


def test_blur_is_drawn_for_each_image() -> None:
    images = torch.zeros(DRAWS, 1, 17, 17)
    images[:, :, 8, 8] = 1
    peaks = RandomGaussianBlur(0.4, (0.8, 2.0))(images, seeded())[:, 0, 8, 8].double()
    assert 0.36 < (peaks < 1).double().mean() < 0.44
    # The peak of a Gaussian is 1 / (2 pi sigma^2).
    sigma = (2 * torch.pi * peaks[peaks < 1]) ** -0.5
    assert kstest(sigma.numpy(), "uniform", args=(0.8, 1.2)).pvalue > LEAST
    assert torch.equal(RandomGaussianBlur(1.0, (0.0, 0.0))(images[:2], seeded()), images[:2])


def test_views_follow_from_the_generator() -> None:
    augment = build_augmentation(small_config())
    images = torch.randint(256, (8, 3, 32, 16), dtype=torch.uint8)
    before = images.clone()
    state = torch.get_rng_state()
    first, second, third = (augment(images, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert first.dtype == torch.float32 and torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state), "no other generator is used"


def test_nothing_enabled_is_nothing_done() -> None:
    images = torch.randint(256, (8, 3, 32, 16), dtype=torch.uint8)
    assert torch.equal(build_augmentation(small_config(**OFF))(images, seeded()), images.float())


@pytest.mark.gpu
def test_a_gpu_gives_the_same_views() -> None:
    augment = build_augmentation(small_config())
    images = torch.randint(256, (8, 3, 32, 16), dtype=torch.uint8)
    torch.testing.assert_close(
        augment(images.cuda(), seeded()).cpu(), augment(images, seeded()), atol=0.5, rtol=0
    )  # TF32
