"""After training: the commands take the folder of a run, with its own config and weights."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fastreid.config import CfgNode

from fastreid_ice import InputError
from fastreid_ice.commands import export, label, recluster, report
from fastreid_ice.config import Run
from fastreid_ice.engine import build_trained_config
from fastreid_ice.reporting import PseudoLabels
from processes import run_command
from support import ROOT, SMALL, small_config

KEPT = ("INPUT.", "DATALOADER.", "CLUSTER.K", "SOLVER.", "TEST.", "MODEL.")
OPTIONS = [str(part) for key, value in SMALL.items() if key.startswith(KEPT) for part in (key, value)]
OPTIONS += ["SOLVER.MAX_EPOCH", "1", "CLUSTER.AUTO_EPS", "False", "CLUSTER.EPS", "0.6"]


@pytest.fixture(scope="module")
def trained(datasets_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ice_folder.yml whose size, network and weights stand only in its own folder, which was moved."""
    work = tmp_path_factory.mktemp("work")
    crops = ["DATASETS.ROOT", next(datasets_root.rglob("bounding_box_train")), "OUTPUT_DIR", "logs"]
    done = run_command("train", "--config-file", ROOT / "configs" / "ice_folder.yml", *OPTIONS, *crops, folder=work)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fastreid-ice recluster, export, report and label find them by --run logs" in done.stdout
    return (work / "logs").rename(work / "2024")


def run(monkeypatch: pytest.MonkeyPatch, command: object, *arguments: object) -> None:
    """The command, in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    command.main()


def refusal(monkeypatch: pytest.MonkeyPatch, command: object, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, command, *arguments)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def labels_in(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["label"] for row in csv.DictReader(file)]


def test_reclusters_the_images_of_the_run(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """With the features that the old way gives if everything is repeated; keys may still follow."""
    monkeypatch.chdir(trained.parent)
    root = yaml.safe_load((trained / "config.yaml").read_text())["DATASETS"]["ROOT"]
    old = ["--images", root, "--config-file", ROOT / "configs" / "ice_folder.yml", "--output", tmp_path / "old.csv"]
    run(monkeypatch, recluster, *old, *OPTIONS, "MODEL.WEIGHTS", trained / "model_final.pth")
    run(monkeypatch, recluster, "--run", trained.name, "--output", tmp_path / "run.csv")
    run(monkeypatch, recluster, "--run", trained, "--images", root, "--output", tmp_path / "images.csv")
    run(monkeypatch, recluster, "--run", trained, "--output", tmp_path / "radius.csv", "CLUSTER.EPS", "0.2")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("54 images, ")]
    assert len(said) == 4
    found = labels_in(tmp_path / "run.csv")
    assert found == labels_in(tmp_path / "old.csv") == labels_in(tmp_path / "images.csv")
    assert found != labels_in(tmp_path / "radius.csv") and len(set(found)) > 2


def test_corrections_are_those_of_the_images(trained: Path, tmp_path: Path, monkeypatch) -> None:
    """Named for the images of a run, in any folder; those in its config are not for other images."""
    monkeypatch.chdir(trained.parent)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    run(monkeypatch, recluster, "--run", trained, "--output", tmp_path / "before.csv")
    before = PseudoLabels.read(tmp_path / "before.csv")
    one, other = (
        int(np.where(before.labels == label, before.distances, 2).argmin()) for label in (0, 1)
    )  # the centres
    said = f"image,relation,other\n{before.paths[one]},same,{before.paths[other]}\n"
    Path("said.csv").write_text(said)
    run(monkeypatch, recluster, "--run", trained, "--output", tmp_path / "after.csv", "CORRECTIONS", "said.csv")
    after = PseudoLabels.read(tmp_path / "after.csv")
    assert after.labels[one] == after.labels[other] >= 0 and after.labels.max() == before.labels.max() - 1

    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"CORRECTIONS": str(tmp_path / "gone.csv")}))
    (copy / "model_final.pth").symlink_to(trained / "model_final.pth")
    images = ["--images", config["DATASETS"]["ROOT"], "--output", tmp_path / "images.csv"]
    run(monkeypatch, recluster, "--run", copy, *images)
    assert PseudoLabels.read(tmp_path / "images.csv").labels.tolist() == before.labels.tolist()
    assert "gone.csv: No such file" in refusal(monkeypatch, recluster, "--run", copy, "--output", tmp_path / "own.csv")


def test_features_need_no_weights(tmp_path: Path, monkeypatch, capsys) -> None:
    """Only the clusterer of the run is used."""
    cfg = small_config(CLUSTER__NAME="KMeans", CLUSTER__NUM_CLUSTERS=5, MODEL__WEIGHTS="gone.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    monkeypatch.chdir(tmp_path)
    np.save("f.npy", np.random.default_rng(0).normal(size=(40, 8)))
    run(monkeypatch, recluster, "--run", ".", "--features", "f.npy")
    assert "40 images, 5 clusters" in capsys.readouterr().out


def test_exports_the_encoder_of_the_run(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    run(monkeypatch, export, "--run", trained, "--output", tmp_path / "exported")
    assert f"encoder of {trained / 'model_final.pth'}, " in capsys.readouterr().out
    path = str(tmp_path / "exported" / "encoder.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, *SMALL["INPUT.SIZE_TEST"]], "not that of ice_folder.yml"


def test_labels_and_report_of_the_run(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run(monkeypatch, label, "--run", trained, "--format", "folder", "--output", tmp_path / "links")
    named = capsys.readouterr().out
    run(monkeypatch, label, trained, "--format", "folder", "--output", tmp_path / "links")
    assert capsys.readouterr().out == named and f"Would write {tmp_path / 'links'}" in named
    run(monkeypatch, report, "--run", trained)
    assert capsys.readouterr().out == f"{trained / 'report.html'}\n"


def test_the_weights_of_the_last_stage_that_has_any(tmp_path: Path) -> None:
    """The best if it was evaluated, else the last, else a checkpoint; always with the config of that stage."""
    cfg = small_config(OUTPUT_DIR="elsewhere", TEST__ENCODER="online", MODEL__WEIGHTS="gone.pth")
    cfg.STAGES = ({"CLUSTER": {"K1": 7}}, {"CLUSTER": {"K1": 8}, "TEST": {"ENCODER": "momentum"}})
    folder = tmp_path / "2024"
    for stage in ("stage1", "stage2"):
        (folder / stage).mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())

    def found(*options: str) -> tuple[CfgNode, str]:
        return build_trained_config("", folder, options)

    with pytest.raises(InputError, match=f"^--run {folder}: no weights there yet; wait for its first checkpoint"):
        found()
    assert Run.read(folder).trained is None
    for name in ("model_0001.pth", "model_final.pth", "model_best.pth"):
        (folder / "stage1" / name).touch()
        (folder / "stage1" / "last_checkpoint").write_text("model_0001.pth")
        first, weights = found()
        assert weights == str(folder / "stage1" / name)
        assert (first.CLUSTER.K1, first.TEST.ENCODER) == (7, "online")
    (folder / "stage2" / "model_final.pth").touch()
    second, weights = found("CLUSTER.K1", "9")
    assert weights == str(folder / "stage2" / "model_final.pth")
    assert (second.CLUSTER.K1, second.TEST.ENCODER) == (9, "momentum")
    assert found("MODEL.WEIGHTS", str(folder / "stage1" / "model_best.pth"))[1].endswith("stage1/model_best.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_run_of_a_machine_with_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(small_config(MODEL__DEVICE="cuda").dump())
    (tmp_path / "model_best.pth").touch()
    assert build_trained_config("", tmp_path)[0].MODEL.DEVICE == "cpu"


def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    away = ["--run", tmp_path]
    for command, arguments in ((recluster, away), (report, away), (label, [*away, "--output", "a.csv"])):
        assert "holds no config.yaml; it must be the OUTPUT_DIR of a run" in refusal(monkeypatch, command, *arguments)
    assert "holds no config.yaml" in refusal(monkeypatch, export, *away, "--output", tmp_path / "exported")
    for command, arguments, message in (
        (recluster, [], "nothing to cluster: name a run with --run"),
        (recluster, ["--images", "crops"], "--images needs --run or --config-file"),
        (recluster, [*away, "--config-file", "ice_demo.yml"], "not allowed with argument --run"),
        (recluster, [*away, "--paths", "names.txt"], "--paths names the rows of --features"),
        (export, ["--output", "exported"], "one of the arguments --run --config-file is required"),
        (label, [*away, "labels.csv", "--output", "links"], "not allowed with argument --run"),
        (report, [], "one of the arguments --run OUTPUT_DIR is required"),
    ):
        refusal(monkeypatch, command, *arguments)
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
