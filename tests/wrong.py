"""Classes for the checks of ``fastreid_ice.testing``: a right one of each kind, and others with one fault each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.utils import comm
from scipy.sparse import csgraph
from torch import Tensor, nn

from fastreid_ice.clusterers import Clusterer
from fastreid_ice.core import Clusters, ImageTable, centroids, update_mean
from fastreid_ice.data import IdentitySampler
from fastreid_ice.losses import LossTerm, Step


class Right(LossTerm):
    """Proxies of the clusters, which the momentum features of a batch move."""

    views = frozenset({"online", "momentum"})
    node = "RIGHT"

    def begin_epoch(self, clusters: Clusters) -> None:
        self.remember("proxies", self.means(clusters))

    def means(self, clusters: Clusters) -> Tensor:
        return F.normalize(centroids(clusters.features, clusters.labels))

    def forward(self, step: Step) -> Tensor:
        return self.scale * F.cross_entropy(self.logits(step.online), step.labels)

    def logits(self, online: Tensor) -> Tensor:
        return F.normalize(online) @ self.proxies.to(online.dtype).T / 0.2

    def after_step(self, step: Step) -> None:
        self.proxies = update_mean(self.proxies, step.momentum, step.labels, momentum=0.9)


class NoTerm(nn.Identity):
    pass


class ViewsInASet(Right):
    views = {"online", "momentum"}  # noqa: RUF012


class UnknownView(Right):
    views = frozenset({"online", "weak"})


class WithoutOnline(Right):
    views = frozenset({"momentum"})


class NodeInSmallLetters(Right):
    node = "right"


class OneLossPerImage(Right):
    def forward(self, step: Step) -> Tensor:
        return F.cross_entropy(self.logits(step.online), step.labels, reduction="none")


class Detached(Right):
    def forward(self, step: Step) -> Tensor:
        return self.scale * F.cross_entropy(self.logits(step.online.detach()), step.labels)


class Infinite(Right):
    def forward(self, step: Step) -> Tensor:
        return super().forward(step) / 0


class Flat(Right):
    def forward(self, step: Step) -> Tensor:
        return super().forward(step) * 0


class SinglePrecision(Right):
    def forward(self, step: Step) -> Tensor:
        return super().forward(step).float()


class StopsAGradient(Right):
    def forward(self, step: Step) -> Tensor:
        loss = super().forward(step)
        return loss * loss.detach() / self.scale


class OtherInSinglePrecision(Right):
    def forward(self, step: Step) -> Tensor:
        return super().forward(step) * (1 + 1e5 * torch.finfo(step.online.dtype).eps)


class IgnoresScale(Right):
    def forward(self, step: Step) -> Tensor:
        return super().forward(step) / self.scale


class TakesNoScale(Right):
    def __init__(self) -> None:
        super().__init__(scale=2.0)


class ReadsAnUndeclaredView(Right):
    views = frozenset({"online"})


class LooksWhetherAViewIsThere(Right):
    def forward(self, step: Step) -> Tensor:
        loss = super().forward(step)
        return loss if step.momentum_weak is None else loss + self.scale * step.momentum_weak.norm()


class DeclaresAViewTooMany(Right):
    views = frozenset({"online", "momentum", "momentum_weak"})


class NeedsMomentumFeatures(Right):
    """They are not there where the momentum encoder's features are what was clustered."""

    needs_momentum_features = True

    def means(self, clusters: Clusters) -> Tensor:
        return F.normalize(centroids(clusters.momentum_features, clusters.labels))


class LooksWhetherMomentumFeaturesAreThere(Right):
    def means(self, clusters: Clusters) -> Tensor:
        found = clusters.momentum_features
        return F.normalize(centroids(clusters.features if found is None else found, clusters.labels))


class ChangesFeatures(Right):
    def means(self, clusters: Clusters) -> Tensor:
        clusters.features.mul_(2)
        return super().means(clusters)


class ChangesAView(Right):
    def forward(self, step: Step) -> Tensor:
        step.momentum.mul_(2)
        return super().forward(step)


class MemoryIsTheClustersOwn(Right):
    def begin_epoch(self, clusters: Clusters) -> None:
        super().begin_epoch(clusters)
        self.remember("bank", clusters.features)

    def after_step(self, step: Step) -> None:
        super().after_step(step)
        self.bank[step.indices] = F.normalize(step.momentum)


class PlainTensor(Right):
    def begin_epoch(self, clusters: Clusters) -> None:
        self.proxies = self.means(clusters)


class TensorsInAList(Right):
    def after_step(self, step: Step) -> None:
        super().after_step(step)
        self.queue = [{"seen": step.momentum}]


class InCheckpoints(Right):
    def begin_epoch(self, clusters: Clusters) -> None:
        self.register_buffer("proxies", self.means(clusters))


class HoldsAGraph(Right):
    def after_step(self, step: Step) -> None:
        super().after_step(step)
        self.remember("last", step.online)


class WritesInForward(Right):
    def forward(self, step: Step) -> Tensor:
        loss = super().forward(step)
        super().after_step(step)
        return loss

    def after_step(self, step: Step) -> None:
        pass


class _WriteInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, online: Tensor, term: LossTerm, step: Step) -> Tensor:
        ctx.move = lambda: Right.after_step(term, step)
        return online.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.move()
        return gradient, None, None


class WritesInBackward(Right):
    """As the published code of cluster proxies does."""

    def forward(self, step: Step) -> Tensor:
        return self.scale * F.cross_entropy(self.logits(_WriteInBackward.apply(step.online, self, step)), step.labels)

    def after_step(self, step: Step) -> None:
        pass


class MixesWithTheLastEpoch(Right):
    def begin_epoch(self, clusters: Clusters) -> None:
        proxies = self.means(clusters)
        known = getattr(self, "proxies", proxies)
        self.remember("proxies", F.normalize(proxies + known) if known.shape == proxies.shape else proxies)


class CountsEpochs(Right):
    """Without the count in checkpoints."""

    epochs = 0

    def begin_epoch(self, clusters: Clusters) -> None:
        super().begin_epoch(clusters)
        self.epochs += 1

    def forward(self, step: Step) -> Tensor:
        return self.epochs * super().forward(step)


class CountsStepsInCheckpoints(Right):
    """Right: what lasts longer than an epoch is saved."""

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    def forward(self, step: Step) -> Tensor:
        return super().forward(step) * self.steps.exp().to(step.online.dtype)

    def after_step(self, step: Step) -> None:
        super().after_step(step)
        self.steps += 0.01


class NeedsAnotherIdentity(Right):
    def forward(self, step: Step) -> Tensor:
        others = step.labels[:, None] != step.labels
        return super().forward(step) + self.scale * (F.normalize(step.online) @ step.momentum.T)[others].mean()


class NeedsCameras(Right):
    needs_cameras = True

    def forward(self, step: Step) -> Tensor:
        return super().forward(step) * F.one_hot(step.cameras).sum() / len(step.cameras)


class DoesNotSayThatItNeedsCameras(NeedsCameras):
    needs_cameras = False


class DrawsInEachProcess(Right):
    def after_step(self, step: Step) -> None:
        super().after_step(step)
        self.proxies = F.normalize(self.proxies + 0.1 * torch.from_numpy(np.random.randn(8)).to(self.proxies))


class FailsAmongSeveral(Right):
    def begin_epoch(self, clusters: Clusters) -> None:
        if comm.get_rank() == 1:
            raise ValueError("a slip of its author")
        super().begin_epoch(clusters)


class RightClusterer(Clusterer):
    """Images that a chain of similar ones joins."""

    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        near = (features @ features.T > 0.7).numpy()
        return torch.from_numpy(csgraph.connected_components(near, directed=False)[1]).long()


class NoClusterer(nn.Identity):
    pass


class Int32(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return super().labels(features, known).int()


class OneLabelShort(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return super().labels(features, known)[1:]


class NoiseIsMinusTwo(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return super().labels(features, known) - 2


class Gaps(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return 2 * super().labels(features, known)


class Unseeded(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return torch.from_numpy(np.random.default_rng().permutation(len(features)))


class ObjectsDiffer(RightClusterer):
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.number = next(self.numbers)

    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return super().labels(features, known).roll(self.number)


class KeepsItsFirstRadius(RightClusterer):
    size = 0

    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        self.size = self.size or len(features)
        return super().labels(features, known).roll(self.size % 7)


class ScalesFeatures(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return super().labels(features.mul_(1.01), known)


class KnowsTheTruth(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        told = bool((known.identities >= 0).all())
        return known.identities.unique(return_inverse=True)[1] if told else super().labels(features, known)


class ScalesTimes(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        known.times.mul_(2)
        return super().labels(features, known)


class DoesNotSayThatItNeedsTracks(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        if (known.tracks < 0).all():
            raise ValueError("no track")
        return super().labels(features, known)


class ByPosition(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return torch.arange(len(features)) // 40


class ByPositionAsDeclared(ByPosition):
    order_matters = True


class SinglePrecisionOnly(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return super().labels(features, known) if features.dtype == torch.float32 else torch.arange(len(features))


class NeedsTwoImages(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        (features @ features.T).topk(2)
        return super().labels(features, known)


class KnowsItsProcesses(RightClusterer):
    def labels(self, features: Tensor, known: ImageTable) -> Tensor:
        return super().labels(features, known).roll(comm.get_world_size() - 1)


class Ends(IdentitySampler):
    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), len(self.cameras))


class NumpyIntegers(IdentitySampler):
    def __iter__(self) -> Iterator[int]:
        return map(np.int64, super().__iter__())


class CountsFromOne(IdentitySampler):
    def __iter__(self) -> Iterator[int]:
        return (image + 1 for image in super().__iter__())


class DrawsNoise(IdentitySampler):
    def __init__(self, labels, cameras, **options) -> None:
        super().__init__(np.asarray(labels) + 1, cameras, **options)


class ImagesOfAnIdentityApart(IdentitySampler):
    def __iter__(self) -> Iterator[int]:
        stream = super().__iter__()
        while True:
            batch = np.array(list(itertools.islice(stream, 16 // self.world_size)))
            yield from batch.reshape(-1, self.num_instances).T.ravel().tolist()


class OneIdentityABatch(IdentitySampler):
    def __iter__(self) -> Iterator[int]:
        stream = super().__iter__()
        while True:
            batch = list(itertools.islice(stream, 16 // self.world_size))
            yield from batch[: self.num_instances] * (len(batch) // self.num_instances)


class ForgetsAnIdentity(IdentitySampler):
    def __init__(self, labels, cameras, **options) -> None:
        labels = np.array(labels)
        labels[labels == 10] = -1
        super().__init__(labels, cameras, **options)


class IgnoresTheSeed(IdentitySampler):
    def __init__(self, labels, cameras, *, seed, **options) -> None:
        super().__init__(labels, cameras, **options)


class IgnoresTheEpoch(IdentitySampler):
    def __init__(self, labels, cameras, *, seed, **options) -> None:
        super().__init__(labels, cameras, seed=np.atleast_1d(seed)[0], **options)


class GoesOn(IdentitySampler):
    """A second iterator goes on where the first has stopped."""

    def __iter__(self) -> Iterator[int]:
        self.stream = getattr(self, "stream", None) or super().__iter__()
        return self.stream


class ByTheGlobalGenerator(IdentitySampler):
    def __init__(self, labels, cameras, *, seed, **options) -> None:
        super().__init__(labels, cameras, seed=[*np.atleast_1d(seed), np.random.get_state()[1][0]], **options)


class DrawsAnUnusedNumber(IdentitySampler):
    def __iter__(self) -> Iterator[int]:
        torch.rand(1)
        return super().__iter__()


class RenamesNoise(IdentitySampler):
    def __init__(self, labels, cameras, **options) -> None:
        labels[labels < 0] = -2
        super().__init__(labels, cameras, **options)


class IgnoresTheRank(IdentitySampler):
    def __init__(self, labels, cameras, *, rank, **options) -> None:
        super().__init__(labels, cameras, rank=0, **options)


class SkipsABatchAmongSeveral(IdentitySampler):
    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), 0 if self.world_size == 1 else 16 // self.world_size, None)


class NeedsAFullBatch(IdentitySampler):
    def __init__(self, labels, cameras, **options) -> None:
        super().__init__(labels, cameras, **options)
        if len(self.images) < self.groups_per_batch:
            raise ValueError("too few identities")
