"""Clusterers: features in, ``Clusters`` out."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.utils import comm
from torch import Tensor

from fastreid_ice import InputError
from fastreid_ice.clusterers import Clusterer, GroundTruth, JaccardDBSCAN, KMeans, build_clusterer
from fastreid_ice.core import (
    ImageTable,
    camera_jaccard_graph,
    choose_eps,
    choose_k1,
    correction_constraints,
    dbscan,
    jaccard_graph,
    k_nearest,
    label_quality,
    standardize_by_camera,
)
from fastreid_ice.data import build_training_set
from fastreid_ice.testing import in_processes
from golden import load_golden
from support import small_config, train


def blobs(people: int = 8, images: int = 12, noise: float = 0.05) -> tuple[Tensor, ImageTable]:
    """Features, and cameras and identities, of people that are easy to distinguish."""
    generator = torch.Generator().manual_seed(3)
    identities = torch.arange(people).repeat_interleave(images)
    centres = F.normalize(torch.randn(people, 16, generator=generator))
    features = F.normalize(centres[identities] + noise * torch.randn(len(identities), 16, generator=generator))
    return features, ImageTable(torch.arange(len(identities)) % 3, identities=identities)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_jaccard_dbscan_is_the_core_chain(device: str) -> None:
    golden = load_golden("jaccard_k30")
    features = torch.as_tensor(golden["features"])
    cameras = torch.as_tensor(golden["cams"])
    clusterer = JaccardDBSCAN(eps=0.55, k1=30, k2=6, device=device)
    clusters = clusterer(features, ImageTable(cameras))
    _, ranks = k_nearest(features, 30)
    expected = dbscan(jaccard_graph(features, ranks, k1=30, k2=6, max_distance=0.55), eps=0.55)
    assert clusters.labels.tolist() == expected.tolist()
    assert clusters.num_clusters == golden["dbscan_num_clusters"][3]
    assert set(clusterer.seconds) == {"neighbors", "jaccard", "dbscan"}


def test_auto_eps_and_camera_norm_are_those_of_core() -> None:
    """Each is set by one config key; features shifted by camera can only be matched again if the camera is known."""
    features, known = blobs(noise=0.15)
    shifted = F.normalize(features + 3.0 * F.one_hot(known.cameras, 16))
    cfg = small_config(**{"CLUSTER.K1": 10, "CLUSTER.AUTO_EPS": True, "CLUSTER.CAMERA_NORM": True, "CLUSTER.EPS": 0.01})
    clusterer = build_clusterer(cfg)
    found = clusterer(shifted, known.without_identities()).labels
    standardised = standardize_by_camera(shifted, known.cameras)
    graph = jaccard_graph(standardised, k_nearest(standardised, 10)[1], k1=10, k2=6)
    eps, _ = choose_eps(graph)
    assert clusterer.scalars == {"eps": eps}
    assert found.tolist() == dbscan(graph, eps=eps).tolist()
    assert set(clusterer.seconds) == {"neighbors", "jaccard", "eps", "dbscan"}
    unknown = clusterer(shifted, replace(known, cameras=None)).labels
    quality = [label_quality(labels, known.identities).adjusted_rand_index for labels in (found, unknown)]
    assert quality[0] > quality[1] + 0.1


@pytest.mark.parametrize("name", ["JaccardDBSCAN", "HDBSCAN"])
def test_auto_k1_is_that_of_core(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The labels are those of the K1 that it chooses, for the images that are clustered."""
    features, known = blobs(noise=0.15)
    for images in (len(features), 40, 3):
        part = features[:images], known[:images]
        k1 = min(choose_k1(images), images - 1)
        with caplog.at_level(logging.INFO, logger="fastreid"):
            clusterer = build_clusterer(small_config(CLUSTER__NAME=name, CLUSTER__AUTO_K1=True, CLUSTER__K1=999))
            found = clusterer(*part)
        plain = build_clusterer(small_config(CLUSTER__NAME=name, CLUSTER__K1=k1))(*part)
        assert found.labels.tolist() == plain.labels.tolist() and clusterer.scalars == {"k1": k1}
        assert f"CLUSTER.AUTO_K1 chose {k1} neighbours for {images} images" in caplog.text
    assert "exceeds" not in caplog.text


def test_k1_grows_with_the_set() -> None:
    chosen = [choose_k1(images) for images in range(1, 40_000)]
    assert chosen == sorted(chosen) and (chosen[0], chosen[-1]) == (2, 30)
    assert [choose_k1(images) for images in (48, 300, 1000, 12_936)] == [12, 17, 21, 28]


@pytest.mark.parametrize("name", ["JaccardDBSCAN", "HDBSCAN"])
def test_camera_aware_distance(name: str) -> None:
    """Set by one config value. If cameras shift their images, it matches people better than the plain distance."""
    features, known = blobs(noise=0.15)
    shifted = F.normalize(features + 1.0 * F.one_hot(known.cameras, 16))
    sizes = {"CLUSTER.CA_JACCARD.K1_INTRA": 3, "CLUSTER.CA_JACCARD.K1_INTER": 7}
    settings = {"CLUSTER.NAME": name, "CLUSTER.K1": 10, "CLUSTER.EPS": 0.6}
    clusterer = build_clusterer(small_config(**settings, **sizes, **{"CLUSTER.DISTANCE": "ca_jaccard"}))
    found = clusterer(shifted, known.without_identities()).labels
    graph = camera_jaccard_graph(shifted, known.cameras, k1_intra=3, k1_inter=7)
    assert found.tolist() == clusterer.partition(graph).tolist()
    plain = build_clusterer(small_config(**settings))(shifted, known).labels
    quality = [label_quality(labels, known.identities).adjusted_rand_index for labels in (found, plain)]
    assert quality[0] > quality[1] + 0.1
    with pytest.raises(InputError, match="CLUSTER.DISTANCE ca_jaccard needs the camera of every image"):
        clusterer(shifted, replace(known, cameras=None))
    for images in (1, 2, 3, 5):
        few = clusterer(shifted[:images], known[:images])
        assert few.labels.shape == (images,)


def test_jaccard_dbscan_finds_clear_people() -> None:
    features, known = blobs()
    clusters = JaccardDBSCAN(eps=0.5, k1=10)(features, known.without_identities())
    assert label_quality(clusters.labels, known.identities).adjusted_rand_index == 1.0


@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_jaccard_dbscan_lowers_k1_for_few_images(images: int) -> None:
    """With fewer images than neighbours there still are labels, noise if there is nothing to compare."""
    features, known = (part[:images] for part in blobs())
    clusters = JaccardDBSCAN(eps=0.5)(features, known)
    assert clusters.labels.shape == (images,)
    if images <= 2:
        assert clusters.num_clusters == 0


def test_k_means_finds_clear_people() -> None:
    features, known = blobs()
    clusters = KMeans(num_clusters=8)(features, known.without_identities())
    assert label_quality(clusters.labels, known.identities).adjusted_rand_index == 1.0
    assert KMeans(num_clusters=500)(features, known).num_clusters <= len(features)


def one_camera(length: int) -> ImageTable:
    return ImageTable(torch.zeros(length, dtype=torch.int64))


@pytest.mark.parametrize(("num_clusters", "expected"), [(1, 1), (2, 2), (6, 6), (50, 6)])
def test_k_means_with_more_clusters_than_images(num_clusters: int, expected: int) -> None:
    clusters = KMeans(num_clusters=num_clusters)(torch.eye(6), one_camera(6))
    assert clusters.num_clusters == expected
    assert clusters.num_noise == 0


@pytest.mark.parametrize("images", [1, 7])
def test_k_means_of_one_image_and_of_copies(images: int) -> None:
    """Copies cannot be distinguished: they are one cluster, for any number of clusters."""
    clusters = KMeans(num_clusters=3)(torch.eye(4)[:1].repeat(images, 1), one_camera(images))
    assert clusters.labels.tolist() == [0] * images


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_k_means_names_features_that_are_not_finite(value: float) -> None:
    features = torch.eye(6)
    features[2, 3] = value
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinite values"):
        KMeans(num_clusters=2)(features, one_camera(6))


def test_k_means_needs_a_cluster() -> None:
    with pytest.raises(ValueError, match="num_clusters must be at least 1, got 0"):
        KMeans(num_clusters=0)


@pytest.mark.parametrize("images", [1, 7])
def test_ground_truth_of_one_person(images: int) -> None:
    clusters = GroundTruth()(torch.eye(7)[:images], ImageTable(identities=torch.full((images,), 5)))
    assert clusters.labels.tolist() == [0] * images


@pytest.mark.parametrize("eps", [0.5, 1.0])
def test_jaccard_dbscan_of_copies_is_one_cluster(eps: float) -> None:
    clusters = JaccardDBSCAN(eps=eps)(torch.eye(4)[:1].repeat(40, 1), one_camera(40))
    assert clusters.labels.tolist() == [0] * 40


def test_approximate_neighbors_give_the_same_clusters() -> None:
    features, known = blobs()
    exact = JaccardDBSCAN(eps=0.5, k1=10)(features, known)
    clusterer = build_clusterer(small_config(CLUSTER__EPS=0.5, CLUSTER__K1=10, CLUSTER__NEIGHBORS="cells"))
    assert clusterer.neighbors == "cells"
    assert torch.equal(clusterer(features, known).labels, exact.labels)


def test_jaccard_dbscan_at_eps_1_is_one_cluster() -> None:
    features, known = blobs()
    assert JaccardDBSCAN(eps=1.0)(features, known).num_clusters == 1


def test_ground_truth_numbers_identities() -> None:
    features, known = blobs()
    clusters = GroundTruth()(features, replace(known, identities=10 * known.identities + 3))
    assert torch.equal(clusters.labels, known.identities)


@pytest.mark.parametrize("name", ["HDBSCAN", "KMeans", "GroundTruth"])
def test_an_unreadable_image_is_left_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no features to cluster, and gets no label, even if its true identity is known."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    settings = {"CLUSTER.NAME": name, "CLUSTER.NUM_CLUSTERS": 6, "DATALOADER.UNREADABLE": "skip"}
    cfg = small_config(OUTPUT_DIR=str(tmp_path / "run"), SOLVER__MAX_EPOCH=1, DATASETS__TESTS=(), **settings)
    Path(build_training_set(cfg).paths[5]).write_bytes(b"broken")
    labels = train(cfg)._hooks[0].labels
    assert labels[5] == -1 and labels.max() > 0


def cluster_in_process(folder: Path) -> None:
    results = {}
    for name, (clusterer, people) in all_clusterers().items():
        clusters = clusterer(*people)
        results[name] = (clusters.labels, sorted(clusterer.seconds))
    torch.save(results, folder / f"{comm.get_rank()}.pt")


def all_clusterers() -> dict[str, tuple[Clusterer, tuple[Tensor, ImageTable]]]:
    """Others, few images and copies: ``fastreid_ice.testing``, in tests/testing."""
    people, many = blobs(noise=0.4), blobs(people=200, noise=0.15)
    return {
        "JaccardDBSCAN": (JaccardDBSCAN(eps=0.5, k1=10), people),
        "JaccardDBSCAN, many images": (JaccardDBSCAN(eps=0.5, k1=10), many),
        "JaccardDBSCAN, approximate, many images": (JaccardDBSCAN(eps=0.5, k1=10, neighbors="cells"), many),
        "KMeans": (KMeans(num_clusters=8), people),
    }


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_get_the_labels_of_one(processes: int, tmp_path: Path) -> None:
    in_processes(cluster_in_process, processes, tmp_path)
    all_found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for name, (clusterer, people) in all_clusterers().items():
        expected = clusterer(*people).labels
        assert "many" not in name or 100 < expected.max() < 300
        for found in all_found:
            assert torch.equal(found[name][0], expected), name
    first, others = all_found[0], all_found[1:]
    assert first["JaccardDBSCAN"][1] == ["dbscan", "jaccard", "neighbors"] and first["KMeans"][1] == ["kmeans"]
    for found in others:
        assert found["JaccardDBSCAN"][1] == ["neighbors"] and found["KMeans"][1] == [], "the rest runs once"


@pytest.mark.parametrize("name", ["JaccardDBSCAN", "HDBSCAN", "KMeans", "GroundTruth"])
def test_build_by_name(name: str) -> None:
    assert type(build_clusterer(small_config(**{"CLUSTER.NAME": name}))).__name__ == name


def test_an_old_signature_is_told_the_new_one() -> None:
    with pytest.raises(InputError, match=r"Old.labels takes features, cameras, identities; write labels\(self, feat"):

        class Old(Clusterer):
            def labels(self, features: Tensor, cameras: Tensor, identities: Tensor) -> Tensor:
                return identities


def test_clusters_hold_what_is_known_but_the_truth() -> None:
    features, known = blobs()
    clusters = JaccardDBSCAN(eps=0.5, k1=10)(features, replace(known, times=torch.arange(96.0, dtype=torch.float64)))
    assert torch.equal(clusters.cameras, known.cameras) and clusters.known.times.tolist() == list(range(96))
    assert (clusters.known.identities == -1).all() and (clusters.known.tracks == -1).all()


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        InputError, match="CLUSTER.NAME: 'OPTICS' is not registered; choose from GroundTruth, HDBSCAN, Jac"
    ):
        build_clusterer(small_config(**{"CLUSTER.NAME": "OPTICS"}))


def crowd(seed: int = 0) -> tuple[Tensor, ImageTable]:
    """20 people who look alike in pairs; in each of 3 cameras both of a pair walk at once, 5 frames each."""
    generator = torch.Generator().manual_seed(seed)
    identities = torch.arange(20).repeat_interleave(15)
    cameras, frames = torch.arange(15).repeat(20) // 5, torch.arange(15).repeat(20) % 5
    centres = torch.randn(10, 16, generator=generator).repeat_interleave(2, 0) + 0.3 * torch.randn(
        20, 16, generator=generator
    )
    features = F.normalize(centres[identities] + 0.25 * torch.randn(300, 16, generator=generator))
    times = (10 * (identities // 2) + frames).double()
    return features, ImageTable(cameras, tracks=identities, times=times, identities=identities)


@pytest.mark.parametrize("distance", ["jaccard", "ca_jaccard"])
@pytest.mark.parametrize("name", ["JaccardDBSCAN", "HDBSCAN"])
def test_tracks_tell_apart_who_walks_at_once(name: str, distance: str) -> None:
    """Set by one key: no cluster holds two tracks of one time and camera, no track is divided, and more is right."""
    features, known = crowd()
    settings = {"CLUSTER.NAME": name, "CLUSTER.DISTANCE": distance, "CLUSTER.K1": 20, "CLUSTER.EPS": 0.7}
    quality = {}
    for tracks in (False, True):
        clusterer = build_clusterer(small_config(**settings, **{"CLUSTER.TRACKS": tracks}))
        labels = clusterer(features, known.without_identities()).labels
        quality[tracks] = label_quality(labels, known.identities).adjusted_rand_index
    assert quality[True] > quality[False] + (0.1 if name == "JaccardDBSCAN" else 0.02)
    assert clusterer.scalars["must_link"] == 60 * 10 and clusterer.scalars["cannot_link"] == 30
    assert clusterer.scalars["violations"] >= clusterer.scalars["repaired"] >= (name == "JaccardDBSCAN")
    assert {"constraints", "repair"} < set(clusterer.seconds)
    tracks = 20 * known.cameras + known.tracks
    assert len(torch.stack((tracks, labels)).unique(dim=1).T) == 60
    for camera, pair in itertools.product(range(3), range(10)):
        both = (known.cameras == camera) & (known.identities // 2 == pair)
        one, other = (labels[both & (known.identities % 2 == half)] for half in (0, 1))
        assert one[0] < 0 or one[0] != other[0]


def test_auto_eps_cuts_at_the_radius_it_chose() -> None:
    """Its graph holds longer distances than the radius; they join nothing."""
    features, known = crowd()
    clusterer = JaccardDBSCAN(eps=0.5, auto_eps=True, k1=20, tracks=True)
    labels = clusterer(features, known).labels
    fixed = JaccardDBSCAN(eps=clusterer.scalars["eps"], k1=20, tracks=True)
    assert torch.equal(fixed(features, known).labels, labels)


@pytest.mark.parametrize("name", ["JaccardDBSCAN", "HDBSCAN"])
def test_tracks_that_are_not_known_are_named(name: str) -> None:
    features, known = crowd()
    clusterer = build_clusterer(small_config(**{"CLUSTER.NAME": name, "CLUSTER.TRACKS": True}))
    with pytest.raises(InputError, match="CLUSTER.TRACKS needs tracks, and no image has one; set it to False, or DATA"):
        clusterer(features, replace(known, tracks=None))


@pytest.mark.parametrize("name", ["JaccardDBSCAN", "HDBSCAN", "KMeans", "GroundTruth"])
def test_every_clusterer_keeps_corrections(name: str) -> None:
    """Two mixed people are cut, one in two clusters is joined, an image of nobody leaves; what is right is unmoved."""
    features, known = blobs()
    identities = known.identities.clone()
    generator = torch.Generator().manual_seed(0)
    features[12:24] = F.normalize(features[0] + 0.05 * torch.randn(12, 16, generator=generator))  # like the first
    wrong = torch.where(identities == 1, 0, identities)
    wrong[60:66] = 8  # what GroundTruth gives
    features[60:66] = F.normalize(features[60:66] - 2 * features[:6])  # far from the rest of person 5
    clusterer = build_clusterer(small_config(**{"CLUSTER.NAME": name, "CLUSTER.NUM_CLUSTERS": 8, "CLUSTER.K1": 12}))
    table = replace(known, identities=wrong)
    before = clusterer(features, table).labels
    assert before[0] == before[12] >= 0 and before[60] != before[66]
    centres = [start + int((part @ part.mean(0)).argmax()) for start in (60, 66) for part in [features[start:][:6]]]
    said = correction_constraints(
        96,
        same=np.array([centres]),
        different=np.array([[i, 12 + j] for i in range(12) for j in range(12)]),
        names=np.where(np.arange(96) == 40, 0, -1),
        nobody=np.arange(96) == 95,
    )
    clusters = clusterer(features, replace(table, corrections=said))
    labels = clusters.labels
    assert not set(labels[:12].tolist()) & set(labels[12:24].tolist()) - {-1} and (labels[:24] >= 0).sum() >= 12
    assert len(labels[60:72].unique()) == 1 and labels[60] >= 0 and labels[95] == -1
    right = torch.cat((torch.arange(24, 60), torch.arange(72, 95)))
    assert len(torch.stack((labels, before), 1)[right].unique(dim=0)) == len(before[right].unique())
    assert clusterer.scalars["corrections_joined"] == 1 and clusterer.scalars["corrections_nobody"] == 1
    on_graph = name in ("JaccardDBSCAN", "HDBSCAN")  # which the forbidden pairs have left before
    assert (clusterer.scalars["violations"], clusterer.scalars["repaired"]) == ((0, 0) if on_graph else (144, 1))


def test_corrections_overrule_tracks() -> None:
    features, known = crowd()
    said = correction_constraints(
        300,
        same=np.array([[0, 15]]),  # of two tracks at once
        different=np.array([[30, 34]]),  # of one track
        names=np.full(300, -1),
        nobody=np.zeros(300, bool),
    )
    clusterer = JaccardDBSCAN(eps=0.7, k1=20, tracks=True)
    labels = clusterer(features, replace(known, corrections=said)).labels
    assert labels[0] == labels[15] >= 0 and (labels[30] != labels[34] or labels[30] < 0)
    assert clusterer.scalars["corrections_overruled"] == 2
    assert clusterer.scalars["must_link"] == 60 * 10 - 10 + 25 and clusterer.scalars["cannot_link"] == 29 - 1 + 1


def test_two_images_that_are_one_person() -> None:
    """Too few for a graph."""
    said = correction_constraints(
        2, same=np.array([[0, 1]]), different=np.empty((0, 2), int), names=np.full(2, -1), nobody=np.zeros(2, bool)
    )
    known = ImageTable(torch.zeros(2, dtype=torch.int64), corrections=said)
    assert JaccardDBSCAN(eps=0.5)(F.normalize(torch.eye(2)), known).labels.tolist() == [0, 0]
