"""The report of a run: its content, and how it looks and works in a real browser."""

from __future__ import annotations

import html
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from PIL import Image

from browser import CHROMIUM, Browser
from fastreid_ice import InputError
from fastreid_ice.commands import report
from fastreid_ice.config import Run
from fastreid_ice.engine import train_stages
from fastreid_ice.losses import LOSS_REGISTRY
from fastreid_ice.reporting import PseudoLabels, centroid_distances, read_epochs, write_left_report, write_report
from fastreid_ice.reporting.report import _tile_size
from fastreid_ice.reporting.sheets import Picture, contact_sheets, shown, small_pictures
from reported import clustering_of, make_run, write_left

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome found")
EVIL = '"><img src=x onerror=window.injected=1>.jpg'  # would leave an attribute
SECTIONS = ["Largest clusters", "Random clusters", "Most cross-camera clusters", "Most doubtful clusters", "Noise"]

# Writes into the page what a visitor would see: pictures, then for each query the remaining tiles and rows.
PROBE = """<script>addEventListener("load", async () => {
  const wait = () => new Promise((done) => setTimeout(done, 300));
  const visible = (selector) => [...document.querySelectorAll(selector)].filter((item) => item.offsetParent);
  const look = () => ({
    tiles: visible("[data-row]").map((item) => +item.dataset.row), sheets: visible(".sheet h2").map((h) => h.innerText),
    rows: visible("#found tbody tr").map((row) => [...row.cells].slice(1).map((td) => td.innerText)),
    answer: document.getElementById("answer").innerText,
  });
  await wait();
  const pictures = [...document.querySelectorAll("img")], charts = document.querySelectorAll(".chart svg");
  const seen = {pictures: pictures.length, loaded: pictures.filter((i) => i.complete && i.naturalWidth > 0).length,
    charts: [...charts].filter((svg) => svg.getBoundingClientRect().height > 50).length, injected: !!window.injected,
    overflow: document.documentElement.scrollWidth > innerWidth, start: look(), answers: []};
  for (const query of QUERIES) {
    document.getElementById("search").reset();
    await wait();
    for (const [id, value] of Object.entries(query)) document.getElementById(id).value = value;
    document.getElementById("search").dispatchEvent(new Event("input"));
    seen.answers.push(look());
  }
  document.querySelector("button[data-cluster]")?.click();
  await wait();
  seen.clicked = look();
  document.documentElement.dataset.seen = JSON.stringify(seen);
});</script>"""


# What has the focus, what the search found, and the title and the words of each chart.
FOCUSED = "((at) => at.id.replace('found', '') || at.ariaLabel || at.innerText)(document.activeElement)"
ANSWER = "document.getElementById('answer').innerText"
CAPTIONS = """[...document.querySelectorAll(".chart")].map((chart) => [
  chart.querySelector("h2").innerText, chart.querySelector("figcaption").innerText])"""


def visit(page: Path, tmp_path: Path, queries: list[dict[str, str]], *, width: int = 1280) -> dict:
    """Opens a copy of the page in a browser without a network, and returns the result of PROBE."""
    copy = tmp_path / "visited.html"
    copy.write_text(page.read_text(encoding="utf-8") + PROBE.replace("QUERIES", json.dumps(queries)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    offline = ["--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path / 'browser'}"]
    size = [f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom"]
    command = [CHROMIUM, *flags, *offline, *size, copy.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = re.search(r'<html[^>]* data-seen="([^"]*)"', done.stdout)
    assert seen, done.stdout[:300] + done.stderr
    return json.loads(html.unescape(seen[1]))


@pytest.fixture
def crops(tmp_path: Path) -> list[Path]:
    """Twelve pictures of different shapes, with unusual names."""
    names = [
        "plain.jpg",
        "with space.png",
        EVIL,
        'quote".jpg',
        "ünï人.jpg",
        "$a{b}",
    ]
    paths = [tmp_path / "crops" / folder / name for folder in ("a & b", "c") for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        size = [(32, 64), (300, 90), (10, 400)][number % 3]
        Image.new("RGB", size, (20 * number, 90, 200)).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    return paths


class TestRun:
    """Real runs."""

    @pytest.mark.slow
    def test_writes_what_was_clustered_and_a_page(self, cfg: CfgNode, tmp_path: Path) -> None:
        cfg.SOLVER.MAX_EPOCH = 1
        Path(cfg.OUTPUT_DIR).mkdir()
        train_stages(cfg)
        clustering = PseudoLabels.read(Path(cfg.OUTPUT_DIR, "labels.csv"))
        assert len(clustering.paths) == 54 and set(clustering.cameras) == {"0", "1", "2"}
        assert all(map(os.path.isabs, clustering.paths)) and all(map(os.path.isfile, clustering.paths))
        clustered = clustering.labels >= 0
        lines = map(json.loads, Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines())
        logged = next(line for line in lines if "cluster/number" in line)
        assert len(set(clustering.labels[clustered])) == logged["cluster/number"] > 0
        assert ((clustering.distances >= 0) & (clustering.distances <= 1)).all()
        page = Path(cfg.OUTPUT_DIR, "report.html")
        if CHROMIUM:
            seen = visit(page, tmp_path, [])
            assert seen["charts"] == 6 and seen["pictures"] == seen["loaded"] > 10 and not seen["overflow"]
            assert seen["start"]["sheets"] == SECTIONS
        assert not list(Path(cfg.OUTPUT_DIR).glob(".*")), "nothing half written is left"

    def test_a_run_that_an_error_ends_has_its_page(self, cfg: CfgNode, monkeypatch) -> None:
        """If it completed an epoch; the error itself is unchanged."""
        cls = LOSS_REGISTRY.get("HardInstanceLoss")
        forward, steps = cls.forward, []

        def broken(self, batch) -> torch.Tensor:
            steps.append(batch)
            return forward(self, batch) * (math.nan if len(steps) > broken_after else 1)

        monkeypatch.setattr(cls, "forward", broken)
        page = Path(cfg.OUTPUT_DIR, "report.html")
        page.parent.mkdir()
        for broken_after in (1, 2):
            steps.clear()
            with pytest.raises(InputError, match=f"loss_hard_instance is nan at iteration {broken_after} "):
                train_stages(cfg)
            assert page.exists() == (broken_after == 2), "one epoch has two iterations"
        assert "<small>epoch 1</small>" in page.read_text() and "Largest clusters" in page.read_text()

    def test_what_ended_processes_have_left_is_reported(self, cfg: CfgNode, crops: list[Path]) -> None:
        """Unless there is nothing, or another run is already writing there."""
        folder = Path(cfg.OUTPUT_DIR)
        write_left_report(Run(cfg))
        assert not folder.exists()
        make_run(cfg, clustering_of(crops, [0] * 12), 2, {})
        hold = f"import fcntl; file = open({str(folder / '.lock')!r}, 'ab'); fcntl.lockf(file, fcntl.LOCK_EX)"
        with subprocess.Popen(
            [sys.executable, "-c", f"{hold}; print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            other.stdout.readline()
            write_left_report(Run(cfg))
            assert not (folder / "report.html").exists()
            other.communicate(b"\n")
        write_left_report(Run(cfg))
        assert "<dt>epochs</dt><dd>2</dd>" in (folder / "report.html").read_text()

    def test_a_folder_that_cannot_take_the_page_costs_nothing(self, cfg: CfgNode, caplog) -> None:
        cfg.SOLVER.MAX_EPOCH = 1
        Path(cfg.OUTPUT_DIR, "report.html", "taken").mkdir(parents=True)
        train_stages(cfg)
        assert "No report: " in caplog.text and "report.html: Is a directory" in caplog.text

    def test_stages_share_one_page(self, cfg: CfgNode, crops: list[Path]) -> None:
        cfg.STAGES = ({"SOLVER": {"MAX_EPOCH": 2}}, {"SOLVER": {"MAX_EPOCH": 3}})
        folder = Path(cfg.OUTPUT_DIR)
        for stage, (labels, epochs) in zip(Run(cfg).stages, (([0] * 12, 2), ([1] * 12, 3)), strict=True):
            make_run(stage.cfg, clustering_of(crops, labels), epochs, {"mAP": 50.0 + epochs, "start/mAP": 40.0})
        (folder / "config.yaml").write_text(cfg.dump())
        moved = folder.rename(folder.with_name("moved"))
        page = write_report(Run.read(moved)).read_text()
        assert page.count("stage 2</text>") == 4, "in each chart"
        assert "mAP, epoch 5: 53" in page and "mAP, epoch 0: 40" in page and "epoch 6" not in page
        assert 'data-cluster="1"' in page and 'data-cluster="0"' not in page, "the last clustering"


@needs_browser
class TestInTheBrowser:
    def test_search_and_names_of_every_kind(self, cfg: CfgNode, crops: list[Path], tmp_path: Path) -> None:
        cameras = ["front door", "<b>2", "", "10"] * 3
        labels = [0] * 4 + [1] * 3 + [7] * 2 + [-1] * 3
        page = write_left(cfg, clustering_of(crops, labels, cameras))
        queries = [{"name": "A & B/"}, {"name": "ONERROR"}, {"cluster": "7"}, {"cluster": "noise"}, {"cluster": "1x"}]
        queries += [{"camera": "1", "cluster": "0"}, {"name": "nowhere"}, {}]
        seen = visit(page, tmp_path, queries.copy(), width=500)
        assert not seen["injected"] and not seen["overflow"]
        assert seen["pictures"] == seen["loaded"] and seen["start"]["rows"] == []
        everything = seen["start"]["tiles"]
        assert set(everything) == set(range(12))
        found = [{int(row) for row in answer["tiles"]} for answer in seen["answers"]]
        assert found == [set(range(6)), {2, 8}, {7, 8}, {9, 10, 11}, set(), {1}, set(), set(range(12))]
        rows = [answer["rows"] for answer in seen["answers"]]
        assert rows[2] == [["c/with space.png", "7", "10", "0.609"], [rows[1][1][0], "7", "front door", "0.682"]]
        assert rows[1][0][0] == f"a & b/{EVIL}"
        assert seen["answers"][3]["sheets"] == ["Noise"] and rows[3][0][1] == "noise"
        assert seen["answers"][5]["rows"] == [["a & b/with space.png", "0", "<b>2", "0.173"]], "cameras: 10, <b>2, ..."
        assert seen["answers"][6]["answer"] == "0 of 12 images" and seen["answers"][7]["tiles"] == everything
        assert set(seen["clicked"]["tiles"]) == {0, 1, 2, 3}, "the largest cluster, whose name was clicked"

    def test_pictures_of_all_that_is_found_and_the_marks_of_the_page(self, cfg: CfgNode, tmp_path: Path) -> None:
        """Also of images on no sheet; the pictures on sheets have the shape of the crops, which are square here."""
        (tmp_path / "crops").mkdir()
        paths = [tmp_path / "crops" / f"{number:03d}.png" for number in range(80)]
        for number, path in enumerate(paths):
            Image.new("RGB", (50, 50), (3 * number, 90, 200)).save(path)
        clustering = clustering_of(paths, [0] * 79 + [1])
        on_sheets = shown(contact_sheets(clustering, seed=cfg.SEED))
        page = write_left(cfg, clustering)
        assert len(on_sheets) < 20 and "To keep this page small" not in page.read_text()
        with Browser(page, tmp_path / "browser") as browser:
            browser.wait_for("document.getElementById('answer') && 'DecompressionStream' in window")
            browser.ask("document.getElementById('name').value = '.png'")
            browser.wait_for(f"(document.getElementById('search').dispatchEvent(new Event('input')), {ANSWER} !== '')")
            found = "[...document.querySelectorAll('#found tbody img')]"
            browser.wait_for(f"{found}.length === 80 && {found}.every((image) => image.naturalWidth > 0)")
            assert browser.ask("document.querySelectorAll('main').length") == 1
            assert browser.ask("[...document.querySelectorAll('th')].every((head) => head.scope)")
            assert browser.ask("document.querySelectorAll('#found th[scope=row]').length") == 80
            size = (
                "(({width, height}) => [width, height])(document.querySelector('.tiles img').getBoundingClientRect())"
            )
            assert browser.ask(size) == [103, 103]

    def test_without_clusters_truth_and_pictures(self, cfg: CfgNode, crops: list[Path], tmp_path: Path) -> None:
        crops[0].unlink()
        crops[1].write_bytes(b"")
        crops[2].write_bytes(crops[2].read_bytes()[:400])
        folder = make_run(cfg, clustering_of(crops, [-1] * 12), epochs=1)
        seen = visit(write_report(Run(cfg)), tmp_path, [{"cluster": "noise"}])
        assert seen["charts"] == 3 and seen["start"]["sheets"] == SECTIONS
        assert len(seen["start"]["tiles"]) == 12 and seen["pictures"] == seen["loaded"] == 9
        assert "3 of the 12 images shown are missing or cannot be read" in (folder / "report.html").read_text()
        assert len(seen["answers"][0]["rows"]) == 12

    def test_before_the_first_clustering(self, cfg: CfgNode, tmp_path: Path) -> None:
        make_run(cfg, None, epochs=0)
        seen = visit(write_report(Run(cfg)), tmp_path, [{"name": "a"}])
        assert seen["charts"] == 0 and seen["answers"][0]["answer"] == "0 of 0 images"

    def test_all_by_keyboard(self, cfg: CfgNode, crops: list[Path], tmp_path: Path) -> None:
        """Tab reaches every control, the focus is visible, and Enter and letters use it."""
        cameras = ["1", "2", "2"] * 4
        page = write_left(cfg, clustering_of(crops, [0] * 5 + [1] * 4 + [-1] * 3, cameras))
        form = ["name", "cluster", "camera", "Clear"]
        sheets = [*["Cluster 0", "Cluster 1"] * 3, "Cluster 1", "Cluster 0", "Noise"]
        with Browser(page, tmp_path / "browser") as browser:
            browser.wait_for("document.getElementById('camera').length === 3")  # once the search has its index

            def tab(times: int = 1) -> list[str]:
                reached = []
                for _ in range(times):
                    browser.press("Tab")
                    assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                    reached.append(browser.ask(FOCUSED))
                return reached

            assert tab(15) == ["All values by epoch", *form, "correct", *sheets]
            browser.ask("document.querySelector('summary').focus()")
            browser.press("Enter")
            assert browser.ask("document.querySelector('details').open") and tab() == ["All values by epoch"]

            tab(2)
            browser.press(*"noise")
            assert browser.ask(ANSWER) == "3 of 12 images"
            assert tab(3) == ["camera", "Clear", "Images found"]
            browser.ask("document.querySelector('[type=reset]').focus()")
            browser.press(" ")
            browser.wait_for(f"{ANSWER} === ''")
            assert tab(3) == ["correct", "Cluster 0", "Cluster 1"]
            browser.press("Enter")
            browser.wait_for(f"{ANSWER} === '4 of 12 images'")
            browser.wait_for(f"{FOCUSED} === 'answer'")  # a moment after the answer
            assert tab() == ["Images found"], "what was found is next"
            browser.ask("document.getElementById('camera').focus()")
            browser.press("ArrowDown")
            browser.wait_for(f"{ANSWER} === '1 of 12 images'")

    def test_says_in_words_what_charts_show(self, cfg: CfgNode, crops: list[Path], tmp_path: Path) -> None:
        """Each drawing is an image whose name is its title, with the words below it."""
        page = write_left(cfg, clustering_of(crops, [0] * 4 + [1] * 4 + [2] * 3 + [-1]))
        with Browser(page, tmp_path / "browser") as browser:
            found = browser.ask(CAPTIONS)
            nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        images = [node["name"]["value"] for node in nodes if node["role"]["value"] in ("image", "img")]
        assert images[: len(found)] == [title for title, _ in found]
        assert found == [
            ["Clusters", "clusters rose from 5 after epoch 1 to 7 after epoch 3."],
            ["Noise and churn, in %", "noise stood at 10 after epoch 1 and after epoch 3."],
            ["Losses", "cluster proxy fell from 2 after epoch 1 to 0 after epoch 3."],
            [
                "Clusters by size",
                "2 of 3 clusters have 4–5 images, the most common size; the smallest have 3, the largest 4–5.",
            ],
        ]


@pytest.mark.slow
def test_size_at_50000_images(cfg: CfgNode, datasets_root: Path, tmp_path: Path) -> None:
    """Names with nothing in common, which compress least, of real pictures."""
    rng = np.random.default_rng(0)
    pictures = sorted(datasets_root.rglob("*.jpg"))[:40]
    (tmp_path / "crops").mkdir()
    paths = [tmp_path / "crops" / f"{rng.bytes(16).hex()}.jpg" for _ in range(50_000)]
    labels = rng.integers(-1, 2000, 50_000)
    clustering = PseudoLabels(
        list(map(str, paths)), [str(camera) for camera in rng.integers(0, 15, 50_000)], labels, rng.random(50_000)
    )
    for number, row in enumerate(shown(contact_sheets(clustering, seed=cfg.SEED))):
        paths[row].symlink_to(pictures[number % len(pictures)])
    page = write_left(cfg, clustering)
    assert "are missing or cannot be read" not in page.read_text()
    assert page.stat().st_size < 10e6
    if CHROMIUM:
        seen = visit(page, tmp_path, [{"name": paths[77].name[:12]}, {"camera": "3"}])
        assert seen["pictures"] == seen["loaded"] > 300
        assert seen["answers"][0]["rows"][0][:2] == [paths[77].name, "noise" if labels[77] < 0 else str(labels[77])]
        assert len(seen["answers"][1]["rows"]) == 100 and "the first 100" in seen["answers"][1]["answer"]


def test_sheets_hold_what_they_say() -> None:
    labels = np.repeat([0, 1, 2, 3, -1], [30, 4, 6, 5, 3])
    cameras = ["1"] * 29 + ["2"] + ["1", "2", "1", "2"] + ["1", "2", "3"] * 2 + [""] * 5 + ["1"] * 3
    distances = np.concatenate([np.linspace(0, 0.3, 30)[::-1], [0.1] * 4, [0.2] * 6, [0.8] * 5, [0.5] * 3])
    clustering = PseudoLabels([str(i) for i in range(48)], cameras, labels, distances)
    sheets = dict(zip(SECTIONS, contact_sheets(clustering, seed=0), strict=True))
    chosen = {title: [group.label for group in sheet.groups] for title, sheet in sheets.items()}
    assert [sheet.title for sheet in sheets.values()] == SECTIONS
    assert chosen["Largest clusters"] == [0, 2, 3, 1] and chosen["Random clusters"] == [0, 1, 2, 3]
    assert chosen["Most cross-camera clusters"] == [2, 1, 0], "three even cameras, two, two uneven; not the unknown"
    assert chosen["Most doubtful clusters"] == [3, 2, 0, 1]
    largest = sheets["Largest clusters"].groups[0]
    assert largest.images[0] == 29 and largest.images[-1] == 0 and len(largest.images) == 14
    assert (
        np.diff(distances[largest.images]) > 0
    ).all() and largest.caption == "30 images, 2 cameras, mean distance 0.150"
    assert sorted(sheets["Noise"].groups[0].images) == [45, 46, 47]
    many = PseudoLabels([""] * 900, [""] * 900, np.arange(900) // 3, np.zeros(900))
    draws = [[group.label for group in contact_sheets(many, seed=seed)[1].groups] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(draws[0]) == 6


def test_small_pictures_fit_and_every_cluster_has_some(crops: list[Path]) -> None:
    clustering = clustering_of(crops, [5] * 6 + [2] * 3 + [-1] * 3)
    crops[6].unlink()  # the first of cluster 2
    every, complete = small_pictures(clustering)
    assert complete and sorted(every) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    without, _ = small_pictures(clustering, without={0, 9})
    assert without == {row: picture for row, picture in every.items() if row not in (0, 9)}
    few, complete = small_pictures(clustering, total=sum(len(every[row]) for row in (9, 0, 10, 7)))
    assert not complete and list(few) == [9, 0, 10, 7], "noise, 2, 5 take turns"
    assert small_pictures(clustering_of([], [])) == ({}, True)


@pytest.mark.parametrize(
    ("sizes", "tile"), [([(64, 128)] * 3, (73, 146)), ([(90, 60)] * 2, (126, 84)), ([], (73, 146))]
)
def test_tiles_have_the_shape_of_the_crops(sizes: list, tile: tuple[int, int]) -> None:
    assert _tile_size([Picture("", width / height) for width, height in sizes]) == tile
    assert _tile_size([Picture("", 0.01)]) == _tile_size([Picture("", 0.4)]), "not thinner"


def test_distances_are_those_of_a_loop() -> None:
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(5000, 8))
    features[[3, 4]] = 0  # images that could not be read
    labels = torch.randint(-1, 40, (5000,))
    labels[[3, 4]] = -1
    means = [features[labels == label].mean(0) for label in range(40)]
    for row, distance in enumerate(centroid_distances(features, labels)):
        cosines = [torch.cosine_similarity(features[row], mean, dim=0) for mean in means]
        expected = 1 - (max(cosines) if labels[row] < 0 else cosines[labels[row]])
        assert distance.isnan() if row in (3, 4) else abs(distance - expected) < 1e-5
        if row > 300:
            break
    assert centroid_distances(features, torch.full((5000,), -1)).isnan().all()


def test_bad_input_is_one_sentence(cfg: CfgNode, tmp_path: Path, monkeypatch) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(SystemExit) as stopped, monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["report.py", str(folder)])
            report.main()
        assert "\n" not in str(stopped.value)
        return str(stopped.value)

    assert message(tmp_path / "nowhere").endswith("holds no config.yaml; it must be the OUTPUT_DIR of a run")
    folder = make_run(cfg, None)
    (folder / "labels.csv").write_text("path,label\na.jpg,3\n")
    assert "labels.csv is not a file of labels: its first line must be path,camera,label," in message(folder)
    (folder / "labels.csv").write_text("path,camera,label,distance_to_centroid\na.jpg,,3,0.1\nb.jpg,,many,\n")
    assert "labels.csv, line 3 is not path,camera,label,distance_to_centroid: invalid literal" in message(folder)
    (folder / "labels.csv").unlink()
    (folder / "metrics.json").write_text("nothing\n")
    assert "metrics.json is not a file of scalars as a run writes it" in message(folder)
    (folder / "config.yaml").write_text("SOLVER: {SPEED: 3}\n")
    assert "config.yaml: Non-existent config key: SOLVER.SPEED" in message(folder)
    assert not (folder / "report.html").exists()


def test_scalars_cut_off_by_a_kill(cfg: CfgNode, monkeypatch, capsys) -> None:
    """At any byte: the last line is ignored. Anywhere else an incomplete line is an error."""
    folder = make_run(cfg, None)
    path = folder / "metrics.json"
    whole = path.read_bytes()
    expected = list(read_epochs(str(path), cfg.SOLVER.ITERS_PER_EPOCH).values())
    assert len(expected) == 3
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        found = list(read_epochs(str(path), cfg.SOLVER.ITERS_PER_EPOCH).values())
        np.testing.assert_equal(found, expected[:2])
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder)])
    report.main()
    assert "<dt>epochs</dt><dd>2</dd>" in Path(capsys.readouterr().out.strip()).read_text()
    path.write_bytes(whole[: last - 5] + b"\n" + whole[last:])
    with pytest.raises(SystemExit, match="metrics.json is not a file of scalars as a run writes it"):
        report.main()


@pytest.mark.parametrize("clusters", [True, False], ids=["with clusters", "with labels"])
def test_the_scalars_of_each_epoch(tmp_path: Path, clusters: bool) -> None:
    """A run that clusters may be evaluated once more, after its last iteration; that belongs to its last epoch."""
    lines = [{"iteration": step, "mAP": step} for step in (3, 7)]
    if clusters:
        lines = [{"iteration": 0, "cluster/number": 9}, {"iteration": 4, "cluster/number": 8}, *lines[:1]]
        lines.append({"iteration": 8, "mAP": 7})
    file = tmp_path / "metrics.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    epochs = read_epochs(str(file), 4)
    assert {epoch: scalars["mAP"] for epoch, scalars in epochs.items()} == {0: 3, 1: 7}


def test_labels_survive_a_file(tmp_path: Path) -> None:
    names = ["plain.jpg", "a,b.jpg", 'quote".jpg', "line\nbreak.jpg", os.fsdecode(b"bytes\xff.jpg"), "人.jpg"]
    clustering = PseudoLabels(
        names, ["", "1", "x,y", "", "", "ü"], np.array([0, 1, -1, 0, 1, -1]), np.linspace(0, 1, 6)
    )
    clustering.distances[3] = np.nan
    clustering.write(tmp_path / "labels.csv")
    read = PseudoLabels.read(tmp_path / "labels.csv")
    assert list(read.paths) == names and list(read.cameras) == clustering.cameras
    np.testing.assert_array_equal(read.labels, clustering.labels)
    np.testing.assert_allclose(read.distances, clustering.distances, atol=1e-6)


def test_labels_saved_by_a_spreadsheet(tmp_path: Path) -> None:
    """With a byte order mark at the front, carriage returns, and blank lines at the end."""
    text = "path,camera,label,distance_to_centroid\na.jpg,,3,0.1\nb.jpg,1,-1,\n"
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n,,,\r\n")
    read = PseudoLabels.read(path)
    assert list(read.paths) == ["a.jpg", "b.jpg"] and read.labels.tolist() == [3, -1]


@pytest.mark.parametrize("number", [3_000_000_000, 10**15])
def test_a_page_of_labels_with_large_numbers(cfg: CfgNode, crops: list[Path], number: int) -> None:
    """Memory depends on the number of images, not on the largest label: 22 GiB, or more than any machine has."""
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, -1, -1])
    pages = []
    for step in (1, number):
        cfg.OUTPUT_DIR += "+"
        clustering = clustering_of(crops, np.where(labels < 0, -1, labels * step).tolist(), ["1", "2", "1"] * 4)
        folder = make_run(cfg, clustering)
        pages.append(write_report(Run.read(folder)).read_text())
    for label in (1, 2):
        pages[1] = pages[1].replace(f"Cluster {label * number}<", f"Cluster {label}<")
        pages[1] = pages[1].replace(f'data-cluster="{label * number}"', f'data-cluster="{label}"')
    visible = [re.sub("[A-Za-z0-9+/=]{200,}", "", page) for page in pages]  # all but pictures and the index
    assert visible[0] == visible[1].replace("run++", "run+")


def test_reading_errors_name_the_file(tmp_path: Path) -> None:
    for label in ("1" + "0" * 30, "-2"):
        (tmp_path / "labels.csv").write_text(f"path,camera,label,distance_to_centroid\na.jpg,,{label},0.1\n")
        with pytest.raises(InputError, match="labels.csv, line 2 is not .*: a label must be"):
            PseudoLabels.read(tmp_path / "labels.csv")
    with pytest.raises(InputError, match="nothing.csv: No such file"):
        PseudoLabels.read(tmp_path / "nothing.csv")
