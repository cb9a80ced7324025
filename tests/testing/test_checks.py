"""``fastreid_ice.testing`` passes our own classes and finds the fault in classes with one fault each."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import wrong
from fastreid_ice import InputError
from fastreid_ice.clusterers import CLUSTERER_REGISTRY, HDBSCAN, JaccardDBSCAN
from fastreid_ice.data.samplers import SAMPLINGS, IdentitySampler
from fastreid_ice.losses import (
    LOSS_REGISTRY,
    CrossCameraLoss,
    DiscrepantProxyLoss,
    MultiInstanceLoss,
    OfflineOnlineProxyLoss,
)
from fastreid_ice.testing import check_clusterer, check_loss, check_sampler
from fastreid_ice.testing.checks import name_of
from support import ROOT

LOSSES = [
    *LOSS_REGISTRY._obj_map.values(),
    partial(CrossCameraLoss, proxy_norm="coordinate", positives="all"),
    partial(DiscrepantProxyLoss, updates=("each",)),
    partial(DiscrepantProxyLoss, updates=("hardest", "mean", "each"), margins=(0.2, 0.0, 0.1)),
    partial(MultiInstanceLoss, positive="batch", num_instances=2),
    partial(MultiInstanceLoss, repetition="always"),
    partial(OfflineOnlineProxyLoss, parts=("online",)),
]
CLUSTERERS = [
    *CLUSTERER_REGISTRY._obj_map.values(),
    partial(JaccardDBSCAN, eps=0.5, k1=10, neighbors="cells"),
    partial(JaccardDBSCAN, eps=0.5, auto_eps=True, camera_norm=True),
    partial(JaccardDBSCAN, eps=0.5, camera_sizes={"k1_intra": 5, "k1_inter": 20, "k2_intra": 2, "k2_inter": 4}),
    partial(JaccardDBSCAN, eps=0.5, tracks=True),
    partial(HDBSCAN, tracks=True),
]

WRONG_LOSSES = {
    "NoTerm": "'declarations': it returns a NoTerm, not a LossTerm",
    "ViewsInASet": "'declarations': views is {.*}, not a frozenset",
    "UnknownView": "'declarations': views contains 'weak'; choose from online, momentum, momentum_weak",
    "WithoutOnline": "'declarations': views lacks 'online'",
    "NodeInSmallLetters": "'declarations': node is 'right', not an upper-case name",
    "NeedsMomentumFeatures": "'momentum features': without momentum_features in the clusters, begin_epoch raised Attri",
    "LooksWhetherMomentumFeaturesAreThere": "'momentum features': the buffer proxies depends on momentum_features",
    "OneLossPerImage": r"'a scalar with a gradient': forward returns a tensor of shape \(12,\), not a scalar",
    "Detached": "'a scalar with a gradient': the online features get no gradient",
    "Infinite": "'a scalar with a gradient': the loss is inf",
    "Flat": "'a scalar with a gradient': the gradient with respect to the online features is zero",
    "SinglePrecision": "'a scalar with a gradient': features of torch.float64 give a loss of torch.float32",
    "ChangesFeatures": "'inputs unchanged': begin_epoch changes Clusters.features",
    "ChangesAView": "'inputs unchanged': forward changes Step.momentum",
    "MemoryIsTheClustersOwn": "'inputs unchanged': after_step changes Clusters.features",
    "PlainTensor": "'memory in buffers': begin_epoch keeps the tensor proxies outside buffers; use self.remember",
    "TensorsInAList": r"'memory in buffers': after_step keeps the tensor queue\[0\]\['seen'\] outside buffers",
    "InCheckpoints": "'memory in buffers': begin_epoch puts proxies into checkpoints; use self.remember",
    "HoldsAGraph": "'memory in buffers': the buffer last keeps the graph of a step",
    "WritesInForward": "'memory changes only in after_step': forward changes the buffer proxies",
    "WritesInBackward": "'memory changes only in after_step': backward changes the buffer proxies",
    "ReadsAnUndeclaredView": "'views .*': without momentum, momentum_weak, not declared in views, it raised Attri",
    "LooksWhetherAViewIsThere": "'views .*': the loss depends on momentum_weak, not declared in views",
    "DeclaresAViewTooMany": "'views .*': it declares momentum_weak, .* but does not read it",
    "StopsAGradient": "'gradient equals finite differences': .* pass exact_gradient=False",
    "OtherInSinglePrecision": "'float32 agrees with float64': the (loss|gradient) differs by more than a thousandth",
    "IgnoresScale": "'scale multiplies': three times the scale is not three times the loss",
    "TakesNoScale": "'scale multiplies': it cannot be built from a scale alone .*scale",
    "MixesWithTheLastEpoch": "'each epoch starts fresh': .* another memory: the buffer proxies",
    "CountsEpochs": "'resume': after a resume, the loss differs from that of an uninterrupted run",
    "NeedsAnotherIdentity": "'degenerate batches, one identity': the loss is nan",
    "DoesNotSayThatItNeedsCameras": "'degenerate batches, unknown cameras': it raised RuntimeError: ",
}
WRONG_CLUSTERERS = {
    "NoClusterer": "'labels': it returns a NoClusterer, not a Clusterer",
    "Int32": r"'labels': labels of 320 images are torch.int32 of shape \(320,\), not int64",
    "OneLabelShort": r"'labels': labels of 320 images are torch.int64 of shape \(319,\)",
    "NoiseIsMinusTwo": "'labels': labels contain -2; noise is -1",
    "Gaps": "'labels': labels have gaps: they go up to 14, but no image has 1, 3, 5, 7, 9, 11, 13",
    "Unseeded": "'labels': calling it gives other labels",
    "ObjectsDiffer": "'equal seeds, equal labels': two objects give different labels",
    "KeepsItsFirstRadius": "'equal seeds, equal labels': labels depend on what the object clustered before",
    "ScalesFeatures": "'inputs unchanged': it changes the features",
    "ScalesTimes": "'inputs unchanged': it changes the times",
    "DoesNotSayThatItNeedsTracks": "'degenerate sets, unknown tracks': it raised ValueError: no track",
    "KnowsTheTruth": "'identities unread': labels depend on the true identities",
    "ByPosition": "'order of the images': the order .* set order_matters = True",
    "SinglePrecisionOnly": "'float32 agrees with float64': .* different clusters",
    "NeedsTwoImages": r"'degenerate sets, 1 image\(s\)': it raised RuntimeError: ",
}
WRONG_SAMPLERS = {
    "Ends": "'endless stream': the stream ends after 73 images",
    "NumpyIntegers": "'endless stream': it yields .* of <class 'numpy.int64'>, not an int",
    "CountsFromOne": "'(endless stream|batches of P x K)': ",
    "DrawsNoise": "'batches of P x K': it draws noise, images without a label",
    "ImagesOfAnIdentityApart": r"'batches of P x K': 4 images in a row \(num_instances\) are of several identities",
    "OneIdentityABatch": r"'batches of P x K': a batch contains an identity twice: \[",
    "ForgetsAnIdentity": r"'every identity is drawn': .* it never draws \[10\]",
    "IgnoresTheSeed": r"'equal seeds, equal streams': seeds \(3, 0\) and \(4, 0\) give the same stream",
    "IgnoresTheEpoch": r"'equal seeds, equal streams': seeds \(3, 0\) and \(3, 1\), the next epoch, give the same",
    "GoesOn": "'equal seeds, equal streams': a second iterator does not restart the stream",
    "ByTheGlobalGenerator": "'global generators unused': the stream depends on global generators",
    "DrawsAnUnusedNumber": "'global generators unused': it draws from the global generator of torch",
    "RenamesNoise": "'inputs unchanged': it changes the labels",
    "IgnoresTheRank": "'batches shared by 2 processes': two processes have the same identity in batch 0",
    "SkipsABatchAmongSeveral": "'batches shared by 2 processes': the parts of the processes do not add up to",
    "NeedsAFullBatch": "'degenerate sets, one image': it raised ValueError: too few identities",
}


@pytest.mark.parametrize("loss", LOSSES, ids=name_of)
def test_our_losses(loss: Callable[..., Any]) -> None:
    check_loss(loss, processes=1)


@pytest.mark.parametrize("clusterer", CLUSTERERS, ids=name_of)
def test_our_clusterers(clusterer: Callable[..., Any]) -> None:
    check_clusterer(clusterer, processes=1)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_our_sampler(sampling: str) -> None:
    check_sampler(partial(IdentitySampler, sampling=sampling), by_camera=sampling == "camera")


@pytest.mark.parametrize(
    ("sampling", "by_camera", "sentence"),
    [("camera", False, "a batch contains an identity twice"), ("spread", True, ".* are of several identities")],
)
def test_what_counts_as_an_identity_matters(sampling: str, by_camera: bool, sentence: str) -> None:
    with pytest.raises(AssertionError, match=f"sampling='{sampling}'.* fails 'batches of P x K': {sentence}"):
        check_sampler(partial(IdentitySampler, sampling=sampling), by_camera=by_camera)


def test_right_classes() -> None:
    check_loss(wrong.Right, wrong.NeedsCameras, wrong.CountsStepsInCheckpoints, processes=1)
    check_loss(wrong.StopsAGradient, exact_gradient=False, processes=1)
    check_clusterer(wrong.RightClusterer, wrong.ByPositionAsDeclared, processes=1)


def assert_found(check: Callable[..., None], name: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{name} fails {sentence}") as found:
        check(getattr(wrong, name))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("name", "sentence"), WRONG_LOSSES.items())
def test_wrong_losses(name: str, sentence: str) -> None:
    assert_found(partial(check_loss, processes=1), name, sentence)


@pytest.mark.parametrize(("name", "sentence"), WRONG_CLUSTERERS.items())
def test_wrong_clusterers(name: str, sentence: str) -> None:
    assert_found(partial(check_clusterer, processes=1), name, sentence)


@pytest.mark.parametrize(("name", "sentence"), WRONG_SAMPLERS.items())
def test_wrong_samplers(name: str, sentence: str) -> None:
    assert_found(check_sampler, name, sentence)


@pytest.mark.parametrize(
    ("file", "wrongs"),
    [("losses.py", WRONG_LOSSES), ("clusterers.py", WRONG_CLUSTERERS), ("samplers.py", WRONG_SAMPLERS)],
)
def test_every_check_is_seen_to_fail(file: str, wrongs: dict[str, str]) -> None:
    source = (ROOT / "fastreid_ice" / "testing" / file).read_text()
    names = re.findall(r'yield f?"([^"{]+)', source)
    seen = " ".join(wrongs.values()).replace("'views .*'", "'views declared are views read'")
    assert len(names) > 6 and not [name for name in names if f"'{name}" not in seen]


def test_the_caller_keeps_its_generators() -> None:
    for seed in (1, 2):
        for generator in (random, np.random):
            generator.seed(seed)
        torch.manual_seed(seed)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        check_loss(wrong.Right, processes=1)
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@pytest.mark.slow
def test_our_losses_in_two_processes() -> None:
    check_loss(*LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_our_clusterers_in_several_processes(processes: int) -> None:
    check_clusterer(*CLUSTERERS, processes=processes)


@pytest.mark.slow
def test_what_differs_between_processes_is_found() -> None:
    check = "fails '2 processes equal one':"
    with pytest.raises(AssertionError, match=f"^DrawsInEachProcess {check} the buffer proxies of step 1 differs in pr"):
        check_loss(wrong.Right, wrong.DrawsInEachProcess)
    with pytest.raises(AssertionError, match=f"^KnowsItsProcesses {check} the labels of .* differs in process 0"):
        check_clusterer(wrong.RightClusterer, wrong.KnowsItsProcesses)
    with pytest.raises(AssertionError, match=f"^FailsAmongSeveral {check} process 1 failed: ValueError: a slip of its"):
        check_loss(wrong.FailsAmongSeveral)


def test_a_class_within_a_function_is_for_one_process() -> None:
    class Local(wrong.Right):
        pass

    check_loss(Local, processes=1)
    with pytest.raises(InputError, match="^Local cannot be sent to the processes .* or pass processes=1 to skip"):
        check_loss(Local)


@pytest.mark.slow
def test_the_method_of_contributing_keeps_the_protocol(tmp_path: Path) -> None:
    """Imported by its path, as a config does, in a script without pytest; the other processes find it too."""
    (block,) = re.findall(r"```python\n(import numpy.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "margin.py").write_text(block)
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "elsewhere" / "check.py"
    script.write_text(
        f"""
import sys
from fastreid_ice.config import import_files
from fastreid_ice.testing import check_clusterer, check_loss

if __name__ == "__main__":
    import_files([{str(tmp_path / "margin.py")!r}])
    from margin import MarginLoss, MiniBatchKMeans
    check_loss(MarginLoss)
    check_clusterer(MiniBatchKMeans, processes=1)
    assert "pytest" not in sys.modules
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
