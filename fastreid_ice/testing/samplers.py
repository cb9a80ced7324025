"""Checks of samplers that draw batches of P identities with K images each, like ``IdentitySampler``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from fastreid.utils.env import seed_all_rng

from .checks import Check, require, run_checks

Factory = Callable[..., Iterable[int]]

IMAGES = 16  # in the batch of all processes
EACH = 4  # images of each identity


def check_sampler(*samplers: Factory, by_camera: bool = False) -> None:
    """Checks that samplers can replace ``IdentitySampler``.

    - They have its signature: ``(labels, cameras, *, batch_size, num_instances, seed, rank, world_size)``.
    - An iterator yields positions of images as Python integers and never ends.
    - The identities of a batch are different if there are enough, each with ``num_instances`` images in a row. Noise is
      never drawn, and every identity is drawn in time.
    - ``seed``, a number or several such as ``(seed, epoch)``, determines the stream, also after a resume. Other seeds
      give other streams. Global generators are neither read nor changed.
    - Several processes share the batch of one process. Each gets whole identities, and no two get the same one.
    - Labels and cameras stay unchanged. One image, one camera and few identities work.

    Args:
        samplers: classes, or ``functools.partial(cls, key=value)`` to set keywords.
        by_camera: images of one label in one camera count as an identity, as for the sampling "camera".

    Raises:
        AssertionError: a check failed.
    """
    for make in samplers:
        run_checks(make, _checks(make, by_camera))


def _checks(make: Factory, by_camera: bool) -> Iterator[Check]:
    yield "endless stream", partial(_check_stream, make)
    yield "batches of P x K", partial(_check_batches, make, by_camera)
    yield "every identity is drawn", partial(_check_identities, make, by_camera)
    yield "equal seeds, equal streams", partial(_check_seeds, make)
    yield "global generators unused", partial(_check_generators, make)
    yield "inputs unchanged", partial(_check_inputs, make)
    for world_size in (2, 4):
        yield f"batches shared by {world_size} processes", partial(_check_processes, make, by_camera, world_size)
    for name, columns in _degenerate().items():
        yield f"degenerate sets, {name}", partial(_check_degenerate, make, by_camera, *columns)


def _people(number: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """Labels and cameras of six images of each person and seven noise images, in random order."""
    labels = np.random.default_rng(0).permutation(np.append(np.repeat(np.arange(number), 6), [-1] * 7))
    return labels, np.arange(len(labels)) % 3


def _degenerate() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    labels, cameras = _people()
    few, few_cameras = _people(2)
    return {
        "one image": (np.array([-1, 0, -1]), np.array([0, 0, 1])),
        "one identity": (np.zeros(9, dtype=np.int64), np.arange(9) % 3),
        "fewer identities than a batch holds": (few, few_cameras),
        "identities of one image": (np.arange(9), np.arange(9) % 3),
        "one camera": (labels, 0 * cameras),
        "unknown cameras": (labels, 0 * cameras - 1),
    }


def _draw(
    make: Factory,
    labels: Any,
    cameras: Any,
    *,
    batches: int = 40,
    rank: int = 0,
    world_size: int = 1,
    seed: Any = (3, 0),
) -> np.ndarray:
    """(batches, IMAGES / world_size) positions, the part of one process."""
    batch_size = IMAGES // world_size
    options = {"batch_size": batch_size, "num_instances": EACH, "seed": seed, "rank": rank, "world_size": world_size}
    images = list(islice(make(labels, cameras, **options), batches * batch_size))
    require(
        len(images) == batches * batch_size, f"the stream ends after {len(images)} images; an epoch may ask for more"
    )
    wrong = next((image for image in images if type(image) is not int), None)
    require(wrong is None, f"it yields {wrong!r} of {type(wrong)}, not an int")
    number = len(labels)
    wrong = next((image for image in images if not 0 <= image < number), None)
    require(wrong is None, f"it yields {wrong}, not a position among {number} images")
    return np.array(images).reshape(batches, batch_size)


def _identities(labels: np.ndarray, cameras: np.ndarray, by_camera: bool) -> np.ndarray:
    """(N,) the identity of each image: its label, or its label and camera; -1 for noise."""
    pairs = labels * (cameras.max() + 2) + cameras + 1
    return np.where(labels < 0, -1, pairs) if by_camera else labels


def _groups(identities: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """(batches, P) the identities of each batch, after a check that each has K images in a row."""
    drawn = identities[batches].reshape(len(batches), -1, EACH)
    require((drawn >= 0).all(), "it draws noise, images without a label")
    require((drawn == drawn[:, :, :1]).all(), f"{EACH} images in a row (num_instances) are of several identities")
    return drawn[:, :, 0]


def _check_stream(make: Factory) -> None:
    labels, cameras = _people()
    found = _draw(make, labels, cameras)
    tensors = _draw(make, torch.from_numpy(labels), torch.from_numpy(cameras))
    require(np.array_equal(found, tensors), "tensors of labels and cameras give a different stream than arrays")


def _check_batches(make: Factory, by_camera: bool) -> None:
    labels, cameras = _people()
    for held in _groups(_identities(labels, cameras, by_camera), _draw(make, labels, cameras)):
        require(len(set(held)) == len(held), f"a batch contains an identity twice: {held.tolist()}")


def _check_identities(make: Factory, by_camera: bool) -> None:
    labels, cameras = _people()
    identities = _identities(labels, cameras, by_camera)
    drawn = _groups(identities, _draw(make, labels, cameras, batches=100))
    missing = set(identities[identities >= 0]) - set(drawn.flat)
    require(not missing, f"in 100 batches of {IMAGES // EACH} identities it never draws {sorted(map(int, missing))}")


def _check_seeds(make: Factory) -> None:
    people = _people()
    stream, other_epoch, other_seed, number = (_draw(make, *people, seed=seed) for seed in ((3, 0), (3, 1), (4, 0), 3))
    require(np.array_equal(stream, _draw(make, *people, seed=(3, 0))), "equal seeds give different streams")
    require(np.array_equal(number, _draw(make, *people, seed=3)), "equal seeds give different streams")
    require(not np.array_equal(stream, other_seed), "seeds (3, 0) and (4, 0) give the same stream")
    require(not np.array_equal(stream, other_epoch), "seeds (3, 0) and (3, 1), the next epoch, give the same stream")
    sampler = make(*people, batch_size=IMAGES, num_instances=EACH, seed=(3, 0), rank=0, world_size=1)
    again = [list(islice(sampler, IMAGES)) for _ in range(2)]
    require(again[0] == again[1] == stream[0].tolist(), "a second iterator does not restart the stream")


def _check_generators(make: Factory) -> None:
    people = _people()
    found = []
    for seed in (1, 2):
        seed_all_rng(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        found.append(_draw(make, *people))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        for name, old, new in zip(("random", "numpy", "torch"), before, after, strict=True):
            require(old == new, f"it draws from the global generator of {name}")
    require(np.array_equal(*found), "the stream depends on global generators")


def _check_inputs(make: Factory) -> None:
    people = _people()
    before = [column.copy() for column in people]
    _draw(make, *people)
    for name, old, new in zip(("labels", "cameras"), before, people, strict=True):
        require(np.array_equal(old, new), f"it changes the {name}")


def _check_processes(make: Factory, by_camera: bool, world_size: int) -> None:
    labels, cameras = _people()
    identities = _identities(labels, cameras, by_camera)
    whole = _draw(make, labels, cameras)
    shares = [_draw(make, labels, cameras, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        held = [share[step] for share in shares]
        groups = [set(_groups(identities, part[None])[0].tolist()) for part in held]
        distinct = sum(map(len, groups)) == len(set.union(*groups))
        require(distinct, f"two processes have the same identity in batch {step}: {groups}")
        same = sorted(np.concatenate(held)) == sorted(batch)
        require(same, f"the parts of the processes do not add up to batch {step} of one process")


def _check_degenerate(make: Factory, by_camera: bool, labels: np.ndarray, cameras: np.ndarray) -> None:
    identities = _identities(labels, cameras, by_camera)
    _groups(identities, _draw(make, labels, cameras, batches=10))
    for rank in range(2):
        _groups(identities, _draw(make, labels, cameras, batches=10, rank=rank, world_size=2))
