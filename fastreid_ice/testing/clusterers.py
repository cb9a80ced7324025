"""Checks of a ``Clusterer`` on random features of people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, get_cfg
from fastreid.utils.env import seed_all_rng
from torch import Tensor

from ..clusterers import Clusterer, GroundTruth
from ..config import add_ice_config
from ..core import ImageTable
from .checks import Check, require, run_checks
from .processes import check_in_processes

Factory = Callable[[], Clusterer]
People = tuple[Tensor, ImageTable]  # features, and what is known of the images


def check_clusterer(*clusterers: Callable[..., Clusterer], cfg: CfgNode | None = None, processes: int = 2) -> None:
    """Checks that clusterers follow the protocol of ``Clusterer``.

    - Labels are (N,) int64, -1 for noise, otherwise 0, 1, ... without gaps, for float32 and float64 features.
    - Equal seeds give equal labels, whatever the object clustered before.
    - The inputs stay unchanged. Only ``GroundTruth`` may read ``known.identities``.
    - Well-separated people give the same clusters in another order and precision, unless the class sets
      ``order_matters``.
    - Degenerate sets work: a single image, fewer images than neighbours or clusters, copies of an image, and unknown
      cameras or tracks unless the class sets ``needs_cameras`` or ``needs_tracks``.
    - Several processes get the labels of a single one.

    Args:
        clusterers: classes with ``from_config``, or callables that return a clusterer without arguments, such as
            ``functools.partial(cls, eps=0.5)``.
        cfg: the config for ``from_config``; by default the default keys, with ``CLUSTER.NUM_CLUSTERS`` 8, the number
            of people in the features.
        processes: how many processes are compared with one; 1 skips this check. They start once for all clusterers,
            which takes seconds.

    Raises:
        AssertionError: a check failed.
        InputError: a clusterer cannot be sent to another process, for example a class defined in a function.
    """
    if cfg is None:
        cfg = get_cfg()
        add_ice_config(cfg)
        cfg.CLUSTER.NUM_CLUSTERS = 8
        cfg.MODEL.DEVICE = "cpu"
    makes = [partial(each.from_config, cfg) if hasattr(each, "from_config") else each for each in clusterers]
    for each, make in zip(clusterers, makes, strict=True):
        run_checks(each, _checks(make))
    check_in_processes(makes, _cluster, processes)


def _checks(make: Factory) -> Iterator[Check]:
    yield "labels", partial(_check_labels, make)
    yield "equal seeds, equal labels", partial(_check_seeds, make)
    yield "inputs unchanged", partial(_check_inputs, make)
    yield "identities unread", partial(_check_identities, make)
    yield "order of the images", partial(_check_order, make)
    yield "float32 agrees with float64", partial(_check_precision, make)
    for name, people in _degenerate(make).items():
        yield f"degenerate sets, {name}", partial(_labels, make, people)


def people_apart(people: int = 8, images: int = 40) -> People:
    """Images of well-separated people in 3 cameras, one person after the other.

    Each person crosses the view of each camera twice, a track each, at the same time as all others.
    """
    generator = torch.Generator().manual_seed(3)
    identities = torch.arange(people).repeat_interleave(images)
    centres = F.normalize(torch.randn(people, 16, generator=generator))
    features = F.normalize(centres[identities] + 0.05 * torch.randn(len(identities), 16, generator=generator))
    cameras, times = torch.arange(len(identities)) % 3, torch.arange(len(identities)) % images
    tracks = 2 * identities + (times >= images // 2)
    return features, ImageTable(cameras=cameras, tracks=tracks, times=times.double(), identities=identities)


def _degenerate(make: Factory) -> dict[str, People]:
    features, known = people_apart()
    cases: dict[str, People] = {f"{images} image(s)": (features[:images], known[:images]) for images in (1, 2, 3, 5)}
    for copies in (7, 40):
        cases[f"{copies} copies of an image"] = features[torch.zeros(copies, dtype=torch.int64)], known[:copies]
    if not make().needs_cameras:
        cases["unknown cameras"] = features, replace(known, cameras=None)
    if not make().needs_tracks:
        cases["unknown tracks"] = features, replace(known, tracks=None)
    cases["one image of each person"] = features[::40], known[::40]
    return cases


def _labels(make: Factory, people: People) -> Tensor:
    """The labels of a new object, after a check of their form."""
    return _labels_by(make(), people)


def _labels_by(clusterer: Clusterer, people: People) -> Tensor:
    require(isinstance(clusterer, Clusterer), f"it returns a {type(clusterer).__name__}, not a Clusterer")
    seed_all_rng(5)
    labels = clusterer.labels(*people)
    what = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
    number = len(people[0])
    fits = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (number,)
    require(fits, f"labels of {number} images are {what}, not int64 of shape ({number},)")
    require(labels.min() >= -1, f"labels contain {int(labels.min())}; noise is -1")
    sizes = torch.bincount(labels[labels >= 0])
    gaps = (sizes == 0).nonzero().flatten().tolist()
    require(not gaps, f"labels have gaps: they go up to {len(sizes) - 1}, but no image has {', '.join(map(str, gaps))}")
    seed_all_rng(5)
    require(torch.equal(clusterer(*people).labels, labels), "calling it gives other labels than its labels()")
    return labels


def _check_labels(make: Factory) -> None:
    _labels(make, people_apart())


def _check_seeds(make: Factory) -> None:
    used = make()
    _labels_by(used, people_apart(people=5, images=21))
    found = [_labels_by(clusterer, people_apart()) for clusterer in (make(), make(), used)]
    require(torch.equal(found[0], found[1]), "two objects give different labels for equal features and seeds")
    require(torch.equal(found[0], found[2]), "labels depend on what the object clustered before")


def _check_inputs(make: Factory) -> None:
    people = people_apart()
    features, known = people
    columns = {"features": features, **known.columns()}
    before = {name: column.clone() for name, column in columns.items()}
    _labels(make, people)
    for name, column in columns.items():
        require(torch.equal(before[name], column), f"it changes the {name}")


def _check_identities(make: Factory) -> None:
    if isinstance(make(), GroundTruth):
        return
    features, known = people_apart()
    unknown = _labels(make, (features, known.without_identities()))
    wrong = torch.arange(len(known)) % 5  # unrelated to the features
    others = _labels(make, (features, replace(known, identities=wrong)))
    require(torch.equal(unknown, others), "labels depend on the true identities, which training does not know")


def _check_order(make: Factory) -> None:
    if make().order_matters:
        return
    features, known = people_apart()
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(1))
    shuffled = _labels(make, (features[order], known[order]))
    require(
        _same_clusters(_labels(make, (features, known))[order], shuffled),
        "the order of the images changes the clusters; set order_matters = True if that is by design",
    )


def _check_precision(make: Factory) -> None:
    features, known = people_apart()
    single, double = (_labels(make, (features.to(dtype), known)) for dtype in (torch.float32, torch.float64))
    same = make().order_matters or _same_clusters(single, double)
    require(same, "float32 and float64 features of well-separated people give different clusters")


def _same_clusters(one: Tensor, other: Tensor) -> bool:
    """Equal partitions, whatever the numbers of the clusters; noise must agree."""
    pairs = torch.stack((one, other), 1).unique(dim=0)
    numbers_match = len(pairs) == len(one.unique()) == len(other.unique())
    return numbers_match and bool(((pairs == -1).sum(1) != 1).all())


def _cluster(make: Factory) -> dict[str, Tensor]:
    found = {}
    for name, people in {"people apart": people_apart(), **_degenerate(make)}.items():
        seed_all_rng(5)
        found[f"the labels of {name}"] = make()(*people).labels
    return found
