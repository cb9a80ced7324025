"""The losses and their gradients against the reference, and against loops where they differ from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.core import (
    cluster_proxy_loss,
    cross_camera_loss,
    discrepant_proxy_loss,
    hard_instance_loss,
    multi_instance_loss,
    soft_consistency_loss,
)
from golden import load_golden

ICE_FILES = ["base", "fewneg", "partialneg", "singlecam", "onecamera", "hyper", "unitnorm"]
ENOUGH_NEGATIVES = ["base", "singlecam", "onecamera", "hyper", "unitnorm"]
DCMIP_FILES = ["easy", "pk4", "pk16", "uneven"]
PRECISIONS = pytest.mark.parametrize("suffix", ["", "_f64"])


class Golden:
    """The arrays of a file as tensors in the precision of ``suffix``, hyper-parameters as numbers."""

    def __init__(self, name: str, suffix: str) -> None:
        self.arrays, self.suffix = load_golden(name), suffix
        self.dtype = torch.float64 if suffix else torch.float32

    def __getitem__(self, name: str):
        value = torch.as_tensor(self.arrays[name])
        if value.dim() == 0:
            return value.item()
        return value.to(self.dtype) if value.is_floating_point() else value

    def expected(self, name: str) -> torch.Tensor:
        return torch.as_tensor(self.arrays[name + self.suffix])


def check(loss_of, features, loss, gradient, *, loss_tolerance, gradient_tolerance):
    """Compares ``loss_of(features)`` within a relative tolerance, its gradient within an absolute one."""
    features = features.clone().requires_grad_()
    value = loss_of(features)
    assert value.dtype == features.dtype
    assert value.item() == pytest.approx(loss.item(), rel=loss_tolerance, abs=loss_tolerance / 10)
    (found,) = torch.autograd.grad(value, features)
    torch.testing.assert_close(found, gradient.to(found.dtype), rtol=0, atol=gradient_tolerance)


def check_ice(golden, term, loss_of, weight=1.0):
    loss, gradient = golden.expected(f"loss_{term}"), golden.expected(f"grad_{term}")
    tolerance = 1e-9 if golden.suffix else 1e-5
    scale = gradient.abs().max().item()
    check(
        lambda f: weight * loss_of(f),
        golden["f"],
        loss,
        gradient,
        loss_tolerance=tolerance,
        gradient_tolerance=1e-9 if golden.suffix else 2e-5 * scale,
    )


@PRECISIONS
@pytest.mark.parametrize("name", ICE_FILES)
def test_cluster_proxy_loss_equals_the_reference(name, suffix):
    golden = Golden(f"ice_losses_{name}", suffix)
    constants = {"temperature": golden["tau_c"], "label_smoothing": golden["label_smoothing"]}
    check_ice(golden, "ccl", lambda f: cluster_proxy_loss(f, golden["centers"], golden["labels"], **constants))


@PRECISIONS
@pytest.mark.parametrize("name", ICE_FILES)
def test_hard_instance_loss_equals_the_reference(name, suffix):
    golden = Golden(f"ice_losses_{name}", suffix)
    keys, labels, temperature = golden["m_view2"], golden["labels"], golden["tau_v"]
    check_ice(golden, "vcl", lambda f: hard_instance_loss(f, keys, labels, temperature=temperature))


@PRECISIONS
@pytest.mark.parametrize("name", ICE_FILES)
def test_soft_consistency_loss_equals_the_reference(name, suffix):
    golden = Golden(f"ice_losses_{name}", suffix)
    keys, weak, temperature = golden["m_view2"], golden["m_weak"], golden["scale_kl"]
    check_ice(golden, "kl", lambda f: soft_consistency_loss(f, keys, weak, temperature=temperature), weight=10)


@PRECISIONS
@pytest.mark.parametrize("normalised_by", ["coordinate", "row"])
@pytest.mark.parametrize("name", ENOUGH_NEGATIVES)
def test_cross_camera_loss_equals_the_reference(name, normalised_by, suffix):
    """If every image has ``num_negatives`` foreign proxies; otherwise the reference uses positives as negatives."""
    golden = Golden(f"ice_losses_{name}", suffix)
    proxies = F.normalize(golden["proxies"], dim=0 if normalised_by == "coordinate" else 1)
    labels, cameras, proxy_labels = golden["labels"], golden["cams"], golden["proxy_labels"]
    constants = {"temperature": golden["beta"], "num_negatives": golden["bg_knn"]}
    term = "cam" if normalised_by == "coordinate" else "cam_axisfix"
    check_ice(
        golden, term, lambda f: cross_camera_loss(f, labels, cameras, proxies, proxy_labels, **constants), weight=0.5
    )


@PRECISIONS
@pytest.mark.parametrize("name", ENOUGH_NEGATIVES)
def test_the_whole_of_ice_equals_the_reference(name, suffix):
    golden = Golden(f"ice_losses_{name}", suffix)
    labels, keys = golden["labels"], golden["m_view2"]
    proxies = F.normalize(golden["proxies"], dim=0)
    across = {"temperature": golden["beta"], "num_negatives": golden["bg_knn"]}

    def total(f):
        return (
            cluster_proxy_loss(f, golden["centers"], labels, temperature=golden["tau_c"])
            + 0.5 * cross_camera_loss(f, labels, golden["cams"], proxies, golden["proxy_labels"], **across)
            + hard_instance_loss(f, keys, labels, temperature=golden["tau_v"])
            + 10 * soft_consistency_loss(f, keys, golden["m_weak"], temperature=golden["scale_kl"])
        )

    check_ice(golden, "total", total)


def loop_cross_camera(features, labels, cameras, proxies, proxy_labels, temperature, num_negatives, proxy_cameras):
    """The cross-camera loss, image by image and camera by camera."""
    by_camera: dict[int, list[torch.Tensor]] = {}
    for f, label, camera in zip(features, labels.tolist(), cameras.tolist(), strict=True):
        similarities = F.normalize(f, dim=0) @ proxies.T
        positives = [p for p in range(len(proxies)) if proxy_labels[p] == label]
        negatives = [p for p in range(len(proxies)) if proxy_labels[p] != label]
        if proxy_cameras is not None:
            positives = [p for p in positives if proxy_cameras[p] != camera] or positives
        negatives = sorted(negatives, key=lambda p, s=similarities: -s[p].item())[:num_negatives]
        exponentials = (similarities / temperature).exp()
        total = sum(exponentials[p] for p in positives + negatives)
        loss = -sum((exponentials[p] / total).log() for p in positives) / len(positives)
        by_camera.setdefault(camera, []).append(loss)
    return sum(sum(losses) / len(losses) for losses in by_camera.values())


@pytest.mark.parametrize("other_cameras_only", [False, True])
@pytest.mark.parametrize("name", ICE_FILES)
def test_cross_camera_loss_equals_a_loop(name, other_cameras_only):
    """Includes the files with fewer foreign proxies than ``num_negatives``: all are negatives, and no positive is."""
    golden = Golden(f"ice_losses_{name}", "_f64")
    arguments = [golden[key] for key in ("labels", "cams", "proxies", "proxy_labels")]
    proxy_cameras = golden["proxy_cams"] if other_cameras_only else None
    expected = golden["f"].clone().requires_grad_()
    loss = loop_cross_camera(expected, *arguments, 0.07, 50, proxy_cameras)
    (gradient,) = torch.autograd.grad(loss, expected)
    check(
        lambda f: cross_camera_loss(f, *arguments, proxy_cameras=proxy_cameras),
        golden["f"],
        loss,
        gradient,
        loss_tolerance=1e-9,
        gradient_tolerance=1e-9,
    )


def check_dcmip(golden, term, step, loss_of):
    loss, gradient = golden.expected(f"{term}_loss")[step], golden.expected(f"{term}_grad")[step]
    check(
        loss_of,
        golden["inputs"][step],
        loss,
        gradient,
        loss_tolerance=1e-9 if golden.suffix else 1e-5,
        gradient_tolerance=1e-9 if golden.suffix else 1e-4 * gradient.abs().max().item() + 1e-6,
    )


@PRECISIONS
@pytest.mark.parametrize("name", DCMIP_FILES)
@pytest.mark.parametrize(
    ("term", "start", "memory", "margins"),
    [
        ("cc_plain", "init_uni", "cc_plain_mem", None),
        ("cc_hard", "init_uni", "cc_hard_mem", None),
        ("cm", "init_uni", "cm_mem", None),
        ("hybrid_every", "init_hybrid", "hybrid_every_mem", (0.2, 0)),
        ("hybrid_hardest", "init_hybrid", "hybrid_hardest_mem", (0.2, 0)),
        ("cmhard_enc", "init_hybrid", "cmhard_mem_cluster", (0.2, 0)),
    ],
)
def test_discrepant_proxy_loss_equals_the_reference(name, term, start, memory, margins, suffix):
    golden = Golden(f"dcmip_memory_{name}", suffix)
    memories = [golden[start], *golden.expected(memory)]
    for step, labels in enumerate(golden["targets"]):
        proxies = memories[step].unflatten(0, (-1, golden["num_clusters"]))
        constants = {"temperature": golden["temp"], "margins": margins}
        check_dcmip(golden, term, step, lambda q, p=proxies, y=labels, c=constants: discrepant_proxy_loss(q, p, y, **c))


@PRECISIONS
@pytest.mark.parametrize("name", DCMIP_FILES)
def test_multi_instance_loss_equals_the_reference(name, suffix):
    golden = Golden(f"dcmip_memory_{name}", suffix)
    memories = [golden["init_instance"], *golden.expected("cmhard_mem_instance")]
    for step, labels in enumerate(golden["targets"]):
        bank = memories[step].unflatten(0, (golden["num_instances"], golden["num_clusters"])).transpose(0, 1)
        temperature = golden["temp"]
        check_dcmip(
            golden,
            "cmhard_ema",
            step,
            lambda q, b=bank, y=labels, t=temperature: multi_instance_loss(q, b, y, temperature=t),
        )
