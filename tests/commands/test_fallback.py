"""What a run starts from if its pretrained weights cannot be downloaded: real commands, without a network."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import yaml
from fastreid.config import CfgNode
from fastreid.engine import default_argument_parser

from fastreid_ice import InputError
from fastreid_ice.commands import train
from processes import run_command
from support import ROOT, SMALL

FOLDER = ROOT / "configs" / "ice_folder.yml"
KEPT = ("INPUT.", "DATALOADER.", "CLUSTER.K", "CLUSTER.E", "SOLVER.I", "SOLVER.M", "SOLVER.C", "MODEL.DEV")
OPTIONS = [str(part) for key, value in SMALL.items() if key.startswith(KEPT) for part in (key, value)]
NETWORK = "build_timm_backbone mobilenetv2_100.ra_in1k"
NOTE = "Training starts from OSNet x0_25 and weights of drawn people instead"


@pytest.fixture
def crops(datasets_root: Path) -> Path:
    return next(datasets_root.rglob("bounding_box_train"))


def offline(tmp_path: Path, **changes: str) -> dict[str, str]:
    """What the environment of a process has that may not access the hub, with an empty cache."""
    return {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"} | changes


def run(tmp_path: Path, crops: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """The command, in a separate process, since timm's client reads its environment once."""
    output = ["DATASETS.ROOT", crops, "OUTPUT_DIR", tmp_path / "run"]
    flags = [argument for argument in arguments if argument.startswith("--")]
    others = [argument for argument in arguments if not argument.startswith("--")]
    settings = [*flags, *OPTIONS, *output, *others]
    environment = offline(tmp_path, **changes)
    return run_command("train", "--config-file", FOLDER, *settings, folder=tmp_path, environment=environment)


def backbone_of(tmp_path: Path) -> str:
    return yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["MODEL"]["BACKBONE"]["NAME"]


@pytest.mark.slow
def test_a_run_without_a_network_says_what_it_starts_from_and_is_resumed(tmp_path: Path, crops: Path) -> None:
    done = run(tmp_path, crops, "SOLVER.MAX_EPOCH", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    (warning,) = [line for line in done.stdout.splitlines() if "WARNING" in line and NOTE in line]
    assert f"the weights of {NETWORK} cannot be downloaded (https://huggingface.co is not to be asked" in warning
    assert f"WARNING: {warning.partition(']: ')[2]}\n" in (tmp_path / "run" / "log.txt").read_text()
    assert backbone_of(tmp_path) == "build_osnet_backbone"
    # The same command continues with the network of the run.
    again = run(tmp_path, crops, "--resume", "SOLVER.MAX_EPOCH", "2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert not [line for line in again.stdout.splitlines() if "WARNING" in line]
    assert "Starting training from epoch 2" in again.stdout
    assert backbone_of(tmp_path) == "build_osnet_backbone"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A hub that accepts every connection and never answers."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in taken:
        connection.close()


@pytest.mark.slow
def test_a_hub_that_never_answers_is_left(tmp_path: Path, crops: Path, silent_server: str) -> None:
    start = time.monotonic()
    changes = {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": silent_server}
    done = run(tmp_path, crops, "MODEL.FALLBACK.CONFIG", "", "DATALOADER.NUM_WORKERS", "0", **changes)
    assert done.returncode == 1 and time.monotonic() - start < 90
    assert done.stderr.splitlines()[-1].startswith("error: MODEL.BACKBONE.PRETRAIN: the weights of ")
    assert f"{NETWORK} cannot be downloaded ({silent_server} does not answer" in done.stderr


def setup(*arguments: str) -> tuple[CfgNode, str]:
    """The config that a run would have, and the text for its log."""
    parsed = default_argument_parser().parse_args(["--config-file", str(FOLDER), *arguments])
    return train.setup(parsed), parsed.notice


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process may not access the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("no_hub")
class TestChoice:
    def test_without_the_weights(self) -> None:
        cfg, notice = setup()
        assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FEAT_DIM) == ("build_osnet_backbone", 128)
        assert Path(cfg.MODEL.WEIGHTS).resolve() == ROOT / "configs" / "source_osnet_x0_25.pth"
        assert cfg.OUTPUT_DIR == "logs/ice_folder" and not cfg.MODEL.FALLBACK.CONFIG
        assert NETWORK in notice and NOTE in notice and "\n" not in notice

    def test_a_network_that_the_user_names_is_not_replaced(self) -> None:
        cfg, notice = setup("MODEL.BACKBONE.DEPTH", "resnet18")
        assert (cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.PRETRAIN, notice) == ("resnet18", True, "")

    def test_a_file_serves_as_well(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save(timm.create_model("mobilenetv2_100").state_dict(), path)
        cfg, notice = setup("MODEL.BACKBONE.PRETRAIN_PATH", str(path))
        assert (cfg.MODEL.BACKBONE.NAME, notice) == ("build_timm_backbone", "")

    def test_a_checkpoint_tells_its_network(self, tmp_path: Path) -> None:
        cfg, notice = setup("MODEL.WEIGHTS", "configs/source_osnet_x0_25.pth")
        assert (cfg.MODEL.BACKBONE.NAME, notice) == ("build_osnet_backbone", "")
        own = {
            f"backbone.net.{name}": value for name, value in timm.create_model("mobilenetv2_100").state_dict().items()
        }
        torch.save({"model": own}, tmp_path / "model_final.pth")
        cfg, notice = setup("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
        assert (cfg.MODEL.BACKBONE.NAME, notice) == ("build_timm_backbone", "") and not cfg.MODEL.BACKBONE.PRETRAIN
        (tmp_path / "last_checkpoint").write_text("model_final.pth")
        cfg, notice = setup("--resume", "OUTPUT_DIR", str(tmp_path))
        assert (cfg.MODEL.BACKBONE.NAME, notice) == ("build_timm_backbone", "") and not cfg.MODEL.BACKBONE.PRETRAIN

    def test_a_fallback_that_is_no_config(self) -> None:
        with pytest.raises(InputError, match="nothing.yml"):
            setup("MODEL.FALLBACK.CONFIG", "nothing.yml")
