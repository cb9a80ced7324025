"""The report page as a place to correct: what it offers to save, in a real browser, without a server."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fastreid.config import CfgNode
from PIL import Image

from browser import CHROMIUM, Browser
from fastreid_ice.data import read_corrections, read_rows
from fastreid_ice.reporting import PseudoLabels
from reported import clustering_of, write_left

SAID = "document.getElementById('said').innerText"
MARKS = "[...document.querySelectorAll(`[data-row='${ROW}'] .mark`)].map((mark) => mark.innerText)"


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Of two clusters of five and three, of two images of noise; with names that a CSV file must quote or escape."""
    names = [f"{number}.jpg" for number in range(10)]
    names[1], names[3], names[6] = 'a, "b".jpg', os.fsdecode(b"bytes\xff.jpg"), "😀.jpg"
    found = [tmp_path / "crops" / name for name in names]
    found[0].parent.mkdir()
    for number, path in enumerate(found):
        Image.new("RGB", (32, 64), (20 * number, 90, 200)).save(path)
    return found


@pytest.fixture
def page(cfg: CfgNode, paths: list[Path]) -> Path:
    """In which images are the nearer to a centroid the smaller their number."""
    return write_left(cfg, clustering_of(paths, [4] * 5 + [8] * 3 + [-1] * 2))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome found")
def test_corrections_by_mouse_and_keys(page: Path, paths: list[Path], tmp_path: Path) -> None:
    with Browser(page, tmp_path / "browser") as browser:
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
        browser.wait_for("document.getElementById('correction').offsetParent !== null")
        assert browser.ask("document.getElementById('bar').offsetParent === null"), "a report, until it is turned on"
        browser.press("w", "x", "s")
        browser.ask("document.getElementById('correct').click()")
        browser.wait_for("document.getElementById('bar').offsetParent !== null")

        def saved() -> list[list[str]]:
            path = tmp_path / "saved" / "corrections.csv"
            path.unlink(missing_ok=True)
            browser.press("s")
            end = time.monotonic() + 30
            while not (path.is_file() and path.stat().st_size):
                assert time.monotonic() < end
                time.sleep(0.05)
            rows = [list(row[1:]) for row in read_rows(str(path))]
            known = read_corrections(str(path), [str(image) for image in paths])
            assert known.groups[5] == known.groups[0] and known.nobody.nonzero()[0].tolist() == [8]
            return rows

        def tile(row: int) -> str:
            return f"document.querySelector('.sheet [data-row=\"{row}\"]')"

        def choose(*rows: int) -> None:
            for row in rows:
                browser.ask(f"{tile(row)}.click()")
            assert browser.ask("document.querySelectorAll('.sheet [aria-pressed=true]').length") >= len(rows)

        def write(key: str, text: str) -> None:
            browser.press(key)
            assert browser.ask("document.activeElement.value") == "", "the key of a field is not written in it"
            browser.call("Input.insertText", text=text)
            browser.press("Enter")

        # By keys: the first tile of the first group is a stop of the Tab key, the arrow keys lead on.
        browser.ask("document.querySelector('h3 button').focus()")
        browser.press("Tab")
        assert browser.ask("+document.activeElement.dataset.row") == 0
        assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        browser.press("ArrowRight", "ArrowRight", "ArrowRight")
        assert browser.ask("+document.activeElement.dataset.row") == 3
        browser.press(" ")
        assert browser.ask(SAID) == "1 chosen"
        browser.press("w")
        assert browser.ask(SAID) == "1 wrong."
        assert set(browser.ask(MARKS.replace("${ROW}", "3"))) == {"different"}, "on each sheet"
        browser.press("ArrowLeft", "Enter")
        choose(4)
        browser.press("x")
        assert browser.ask(SAID) == "two persons."
        browser.press("Tab")
        assert browser.ask("document.activeElement.innerText") == "Cluster 8", "the rest of a group is no stop"

        # By mouse, and by what the fields take.
        choose(8)
        write("g", "4")
        assert browser.ask(SAID) == "Choose an image of the cluster first.", "noise is no cluster"
        browser.ask("document.getElementById('nobody').click()")
        assert browser.ask(SAID) == "1 without a person."
        browser.press("w")
        assert browser.ask(SAID).startswith("Choose images of a cluster first")
        choose(7)
        write("g", "5")
        assert browser.ask(SAID) == "There is no cluster 5."
        write("g", "8")
        assert browser.ask(SAID) == "This is the same cluster."
        write("g", "4")
        assert browser.ask(SAID) == "Clusters 8 and 4 are one person."
        choose(6, 5)
        write("t", ' Anna "née" Ö ')
        choose(9)
        browser.press("p", "u")
        assert browser.ask(SAID) == "The last correction was taken back."
        assert browser.ask("document.getElementById('rows').innerText") == "5 corrections"
        name = [str(path) for path in paths]
        expected = [
            [name[3], "different", name[0]],
            [name[2], "different", name[4]],
            [name[8], "nobody", ""],
            [name[5], "same", name[0]],
            [name[5], "person", 'Anna "née" Ö'],
        ]
        assert saved() == expected

        # Rows outlast the page; without the mode it is the report that it was.
        browser.ask("window.earlier = true")
        browser.call("Page.reload")
        browser.wait_for("!window.earlier && document.getElementById('rows')?.innerText === '5 corrections'")
        assert browser.ask("document.querySelectorAll('[role=button], [aria-pressed=true]').length") == 0
        browser.press("c", "u")
        expected.pop()
        browser.wait_for("document.getElementById('rows').innerText === '4 corrections'")
        assert saved() == expected
        browser.press("c")
        assert browser.ask("document.querySelectorAll('[role=button], figure[tabindex]').length") == 0
        assert browser.ask("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome found")
def test_without_scripts_it_is_the_same_page(page: Path, tmp_path: Path) -> None:
    with Browser("about:srcdoc", tmp_path / "browser") as browser:
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        browser.call("Page.navigate", url=page.as_uri())
        browser.wait_for("document.readyState === 'complete' && document.images.length > 0")
        seen = "document.querySelector('main').innerText"
        assert "Correct the clusters" not in browser.ask(seen) and "Largest clusters" in browser.ask(seen)
        assert browser.ask("[...document.images].every((image) => image.naturalWidth > 0)")


def test_medoids(tmp_path: Path) -> None:
    labels = clustering_of([tmp_path / str(number) for number in range(6)], [7, 3, 3, -1, 7, 3])
    labels.distances[:] = [0.2, 0.3, 0.1, 0.0, 0.1, float("nan")]
    assert labels.medoids() == {7: 4, 3: 2}
    assert PseudoLabels((), (), labels.labels[:0], labels.distances[:0]).medoids() == {}
