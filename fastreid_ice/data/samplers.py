"""P x K sampling of pseudo-labelled images: P identities per batch, K images of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

SAMPLINGS = ("spread", "anchor", "camera", "random")


class IdentitySampler(Sampler[int]):
    """An endless stream of image indices: shuffled identities, K consecutive images of each.

    Every identity comes exactly once per pass over all identities. A global batch holds G = world_size * batch_size / K
    identities. They are all different if there are at least G of them: when a batch extends beyond the end of a pass,
    the next pass starts with identities that the batch does not hold yet. If there are fewer than G identities, they
    are repeated within a batch as evenly as possible, with images that the batch does not hold yet as long as the
    identity has any.

    Every process draws the same global stream and yields its own share of each batch: whole groups, none of them in two
    processes. A repeated identity is distributed evenly over the processes.

    The K images of an identity with n images in C cameras are drawn in one of four ways:

    - "spread" over the cameras (ICE; "MoreCameraSampler" in the published code): one image from each of min(K, C)
      random cameras, then, if C < K, K - C of the other images. On average an image that is one of m in its camera
      comes K / (C m) times per pass if C >= K, 1/m + (1 - 1/m) (K - C) / (n - C) times if C < K and C < n, and K / n
      times if C = n < K.
    - "anchor" (Cluster Contrast, DCMIP; "RandomMultipleGallerySampler" of SpCL): first any image, then K - 1 images of
      other cameras than that of the first, with replacement if there are fewer; from its own camera if C = 1. Updating
      a proxy with each image in turn depends on this order.
    - "camera" (O2CAP; "ClassUniformlySampler" in the published code): the images of the identity in one camera, each of
      which counts as an identity in all of the above; if they are fewer than K, K random ones of K copies of each.
    - "random": K of the n images, each K / n times per pass on average, whatever their cameras.

    If there are too few images, they are repeated in turn, except for "anchor" and "camera". The published code of
    "spread" draws them with replacement instead, which can lose cameras of an identity with one image in each of fewer
    than K cameras; here no camera is lost.

    Args:
        labels: (N,) pseudo identity of each image; images with a negative label (noise) are never drawn.
        cameras: (N,) camera of each image, any integers.
        batch_size: images per batch and process, a multiple of ``num_instances``.
        num_instances: K, images per identity and group.
        sampling: how the K images are drawn, one of ``SAMPLINGS``.
        seed: determines the stream, with which every iterator starts again; the same in every process; an integer >= 0
            or several, such as ``(seed, epoch)``.
        rank: number of this process, in [0, world_size).
        world_size: number of processes.

    Raises:
        ValueError: if the arguments do not match each other, or no image has a label.

    Construction sorts the labels in O(N log N); drawing a group shuffles the images of its identity. Memory is O(N).

    Example:
        >>> from torch.utils.data import BatchSampler
        >>> sampler = IdentitySampler([0, 1, 0, 1, -1], [0, 0, 1, 1, 0], batch_size=4, num_instances=2)
        >>> batches = BatchSampler(sampler, 4, drop_last=True)
        >>> sorted(next(iter(batches)))
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        labels: ArrayLike,
        cameras: ArrayLike,
        *,
        batch_size: int,
        num_instances: int,
        sampling: str = "spread",
        seed: int | Sequence[int] = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        # Copies: when a tensor is sent to a loader's workers it moves to shared memory, away from its NumPy views.
        identity, camera = np.asarray(labels).copy(), np.asarray(cameras).copy()
        if identity.ndim != 1 or identity.shape != camera.shape:
            raise ValueError(
                f"labels and cameras must be vectors of one length, got shapes {identity.shape} and {camera.shape}"
            )
        if batch_size < 1 or num_instances < 1 or batch_size % num_instances:
            raise ValueError(
                f"the batch of {batch_size} images per process (SOLVER.IMS_PER_BATCH / processes) must be a multiple "
                f"of DATALOADER.NUM_INSTANCE = {num_instances}"
            )
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling {sampling!r} must be one of {', '.join(SAMPLINGS)}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size), got rank {rank} and world_size {world_size}")
        clustered = np.flatnonzero(identity >= 0)
        if not clustered.size:
            raise ValueError(
                f"labels: none of the {identity.size} images belongs to a cluster, so nothing can be sampled; "
                "raise CLUSTER.EPS or lower CLUSTER.MIN_SAMPLES"
            )

        if sampling == "camera":
            pairs = np.stack([identity, camera], 1)[clustered]
            identity[clustered] = np.unique(pairs, axis=0, return_inverse=True)[1].ravel()
        by_identity = clustered[np.argsort(identity[clustered], kind="stable")]
        borders = np.flatnonzero(np.diff(identity[by_identity])) + 1
        self.images = np.split(by_identity, borders)  # one array of image indices per identity
        self.cameras = camera
        self.num_instances = num_instances
        self.groups_per_batch = world_size * batch_size // num_instances
        self.sampling = sampling
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(self.seed)
        drawn = np.zeros(len(self.cameras), dtype=np.int64)  # how many times the current batch holds each image
        for identities in self._identity_batches(rng):
            if self.groups_per_batch > len(self.images):
                # The stride below then gives the copies of an identity to different processes, if there are enough.
                identities = np.sort(identities)
            batch = np.empty((self.groups_per_batch, self.num_instances), dtype=np.int64)
            for group, identity in zip(batch, identities, strict=True):
                group[:] = self._draw_group(self.images[identity], drawn, rng)
                np.add.at(drawn, group, 1)
            drawn[batch] = 0
            yield from batch[self.rank :: self.world_size].ravel().tolist()

    def _identity_batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Batches of identities, (groups_per_batch,) each, from consecutive permutations of all identities."""
        open_batch = np.empty(0, dtype=np.int64)
        while True:
            order = rng.permutation(len(self.images))
            # Only as many identities move to the front as the open batch still needs; the others stay in random order.
            presence = np.bincount(open_batch, minlength=len(order))
            front = np.argsort(presence[order], kind="stable")[: self.groups_per_batch - len(open_batch)]
            stream = np.concatenate([open_batch, order[front], np.delete(order, front)])
            complete = len(stream) - len(stream) % self.groups_per_batch
            yield from stream[:complete].reshape(-1, self.groups_per_batch)
            open_batch = stream[complete:]

    def _draw_group(self, images: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """K of one identity's ``images``; those that the batch holds least often (``drawn``) come first."""

        def shuffle(candidates: np.ndarray) -> np.ndarray:
            candidates = rng.permutation(candidates)
            return candidates[np.argsort(drawn[candidates], kind="stable")]

        if self.sampling == "camera" and len(images) < self.num_instances:
            return rng.permutation(np.repeat(images, self.num_instances))[: self.num_instances]
        images = shuffle(images)
        if self.sampling in ("camera", "random"):
            return np.resize(images, self.num_instances)
        if self.sampling == "anchor":
            return self._draw_around(images, rng)
        leaders = np.unique(self.cameras[images], return_index=True)[1]  # the first image of each camera
        picks = shuffle(images[leaders])[: self.num_instances]
        # Shuffled again, because the images after the leaders in the first order favour cameras with many images.
        others = shuffle(np.delete(images, leaders))
        extra = np.resize(others if others.size else picks, self.num_instances - len(picks))
        return np.concatenate([picks, extra])

    def _draw_around(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The first of the shuffled ``images``, and K - 1 others, from other cameras if there are any."""
        anchor, others = images[:1], images[1:]
        elsewhere = others[self.cameras[others] != self.cameras[anchor]]
        others = next(some for some in (elsewhere, others, anchor) if some.size)
        missing = self.num_instances - 1
        picks = others[:missing] if others.size >= missing else rng.choice(others, missing)
        return np.concatenate([anchor, picks])


class CurrentBatches(Sampler[list[int]]):
    """The ``batches`` that are set when an iterator starts, so that a loader keeps its workers while they change."""

    def __init__(self) -> None:
        self.batches: Iterable[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
