"""Finding config files, their bases and the files that they import, and the errors if they are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fastreid.config import CfgNode, get_cfg

from fastreid_ice import InputError, add_ice_config
from fastreid_ice.config import CONFIGS, Run, import_files, merge_config_file, merge_options, shipped_file
from support import small_config


def read(path: Path | str) -> CfgNode:
    cfg = get_cfg()
    add_ice_config(cfg)
    merge_config_file(cfg, str(path))
    return cfg


def test_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = str(CONFIGS / "ice_demo.yml")
    assert shipped_file("ice_demo.yml") == shipped_file("configs/ice_demo.yml") == shipped
    for path in ("", "configs", "configs/nothing.yml", "other/ice_demo.yml", "/configs/ice_demo.yml"):
        assert shipped_file(path) == path
    (tmp_path / "ice_demo.yml").touch()
    assert shipped_file("ice_demo.yml") == "ice_demo.yml", "the user's own has priority"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yml")), ids=lambda path: path.stem)
def test_every_config_is_read_as_fast_reid_reads_it(path: Path) -> None:
    theirs = get_cfg()
    add_ice_config(theirs)
    theirs.merge_from_file(str(path))
    assert read(path) == theirs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!b]*.yml")), ids=lambda path: path.stem)
def test_published_recipes_normalise_as_on_their_gpus(path: Path) -> None:
    """On the published batch; the other configs, for your own or drawn data, have no published recipe."""
    cfg = read(path)
    recipe = (cfg.MODEL.BN_SPLITS, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE)
    if cfg.CLUSTER.AUTO_EPS or not set(cfg.DATASETS.NAMES) <= {"Market1501", "DukeMTMC", "MSMT17", "VeRi"}:
        assert recipe[0] == 1
    elif "OfflineOnlineProxyLoss" in cfg.MODEL.LOSSES.NAME:
        assert recipe == (1, 32, 4), "O2CAP, on one GPU"
    elif "HardInstanceLoss" in cfg.MODEL.LOSSES.NAME:
        assert recipe == (4, 32, 4), "ICE"
    elif cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
        assert recipe == (4 if cfg.DATASETS.NAMES == ("Market1501",) else 2, 256, 8), "TransReID-SSL"
    else:
        assert recipe == (4, 256, 16), "DCMIP and Cluster Contrast"


def test_bases_and_imports_count_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "near.yml").write_text("_BASE_: ice_demo.yml\nSEED: 3\nMODEL: {LOSSES: {MINE: {SCALE: 2.0}}}\n")
    (tmp_path / "deep" / "mine.yml").write_text(
        '_BASE_: ../near.yml\nIMPORTS: ("a.py", "../b.py")\nMODEL: {LOSSES: {MINE: {MARGIN: 0.1}}}\n'
    )
    cfg = read(tmp_path / "deep" / "mine.yml")
    assert (cfg.SEED, cfg.CLUSTER.K1) == (3, 15)
    assert cfg.MODEL.LOSSES.MINE == {"SCALE": 2.0, "MARGIN": 0.1}
    assert tuple(cfg.IMPORTS) == (str(tmp_path / "deep" / "a.py"), str(tmp_path / "b.py"))


@pytest.mark.parametrize("folder", ["", "configs"])
def test_a_config_over_the_shipped_one_of_its_name(tmp_path: Path, monkeypatch, folder: str) -> None:
    """Named by the file's own name, and from the folder in which users run it."""
    monkeypatch.chdir(tmp_path)
    mine = Path(folder, "ice_demo.yml")
    mine.parent.mkdir(exist_ok=True)
    for base in ("ice_demo.yml", "configs/ice_demo.yml"):
        mine.write_text(f"_BASE_: {base}\nSEED: 3\n")
        cfg = read(mine)
        assert (cfg.SEED, cfg.CLUSTER.K1) == (3, 15)
    Path(folder, "near.yml").write_text("_BASE_: ice_demo.yml\nSEED: 4\n")
    mine.write_text("_BASE_: near.yml\n")
    cfg = read(mine)
    assert (cfg.SEED, cfg.CLUSTER.K1) == (4, 15), "through another file"


def test_configs_in_a_circle(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")):
        (tmp_path / f"{name}.yml").write_text(f"_BASE_: {base}.yml\n")
    with pytest.raises(InputError, match=r"c.yml: its _BASE_ leads back to .*/a.yml; .*") as error:
        read(tmp_path / "a.yml")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"self.yml: its _BASE_ leads back to .*/self.yml"):
        read(tmp_path / "self.yml")


@pytest.mark.parametrize("base", ["5", "[ice_demo.yml]", "true", "{a: b}"])
def test_a_base_is_a_file_name(tmp_path: Path, base: str) -> None:
    (tmp_path / "mine.yml").write_text(f"_BASE_: {base}\n")
    with pytest.raises(InputError, match="mine.yml: _BASE_ .* must be the name of a config file"):
        read(tmp_path / "mine.yml")


@pytest.mark.parametrize(
    ("text", "error"),
    [("- SEED", "is not a mapping"), ("SEED: [", "is not YAML"), ("_BASE_: nothing.yml", "nothing.yml")],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(InputError, match=error):
        read(tmp_path / "mine.yml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "is not a mapping"),
        ("MODEL: 5", "config .*mine.yml: MODEL must hold keys, not 5$"),
        ("MODEL:\n  LOSSES:", "config .*mine.yml: MODEL.LOSSES must hold keys, not None$"),
        ("5: 3", "config .*mine.yml: 5 is not a config key$"),
        ("NOPE: 1", "config .*mine.yml: Non-existent config key: NOPE$"),
        ("SEED: x", "config .*mine.yml: Type mismatch .* SEED$"),
    ],
)
def test_a_file_of_keys_that_do_not_fit(tmp_path: Path, text: str, error: str) -> None:
    """One sentence, also if it is the config file of a run."""
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(InputError, match=error) as raised:
        read(tmp_path / "mine.yml")
    assert "\n" not in str(raised.value)
    for content in (text, "MODEL: [", "\0", "- a", "_BASE_: 5", "!!python/object:a.b {}"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(InputError, match=r"/config\.yaml") as raised:
            Run.read(tmp_path)
        assert "\n" not in str(raised.value)


def test_a_whole_number_is_a_float_where_one_is_expected(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("CLUSTER: {EPS: 1}\nMODEL: {LOSSES: {CROSS_CAMERA: {SCALE: 2}}}\n")
    cfg = read(tmp_path / "mine.yml")
    merge_options(cfg, ["MODEL.MOMENTUM.ALPHA", "1", "CLUSTER.K1", "20"])
    values = (cfg.CLUSTER.EPS, cfg.MODEL.LOSSES.CROSS_CAMERA.SCALE, cfg.MODEL.MOMENTUM.ALPHA, cfg.CLUSTER.K1)
    assert values == (1.0, 2.0, 1.0, 20) and [type(value) for value in values] == [float, float, float, int]
    cfg.STAGES = ({"CLUSTER": {"EPS": 0}},)
    (stage,) = Run(cfg).stages
    assert stage.cfg.CLUSTER.EPS == 0.0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["SEED", "1", "--resume"], "^--resume comes after a config key: options come before keys and values$"),
        (["--num-gpus", "2"], "^--num-gpus comes after"),
        (["SEED", "1", "CLUSTER.K1"], "^CLUSTER.K1: a value is missing; .*KEY VALUE"),
        (["SEED"], "^SEED: a value is missing"),
        (["MODEL", "5"], "^MODEL must hold keys, not 5$"),
        (["CLUSTER.EPSILON", "5"], "CLUSTER.EPSILON"),
    ],
)
def test_options_that_do_not_fit(options: list[str], error: str) -> None:
    with pytest.raises(InputError, match=error) as raised:
        merge_options(small_config(), options)
    assert "\n" not in str(raised.value)


def test_a_file_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "imported_once.py"
    path.write_text(f"with open({str(tmp_path / 'count')!r}, 'a') as file:\n    file.write('x')\n")
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    import_files([str(path), str(path)])
    assert (tmp_path / "count").read_text() == "x"
    with pytest.raises(InputError, match=r"IMPORTS: no Python file .*nothing\.py"):
        import_files([str(tmp_path / "nothing.py")])
    (tmp_path / "json.py").touch()
    with pytest.raises(InputError, match="another module"):
        import_files([str(tmp_path / "json.py")])
