"""fastreid-ice review: its page in a real browser, requests to a running server, and the file that they write."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from browser import CHROMIUM, Browser
from fastreid_ice import InputError
from fastreid_ice.commands import review
from fastreid_ice.deploy import review_server
from fastreid_ice.deploy.answers import AnswerFile, Changed
from fastreid_ice.deploy.review import Review
from fastreid_ice.reporting import PseudoLabels
from processes import Process, run_command, start_command
from served import Server, address_of
from trained import make_trained

JSON = {"Content-Type": "application/json"}
HEAD = "image,relation,other\n"
PROGRESS = "document.getElementById('progress').innerText"
SAID = "document.getElementById('answer').innerText"
# The names of the two images that are asked about, once they are shown.
ASKED = """[...document.querySelectorAll(".side > div:first-child > img")].filter((image) => image.offsetParent).map(
  (image) => image.alt.split(": ")[1])"""
LOADED = """[...document.images].every((image) => image.offsetParent === null || image.naturalWidth > 0)"""


@pytest.fixture(scope="module")
def place(datasets_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``run``, in which some clusters hold two people, and some people have two clusters."""
    place = tmp_path_factory.mktemp("place")
    run = make_trained(place / "run", next(datasets_root.rglob("bounding_box_train")))
    labels = PseudoLabels.read(run / "labels.csv")
    labels.labels[:] = [0] * 18 + [4] * 18 + [7] * 9 + [9] * 7 + [-1] * 2
    labels.write(run / "labels.csv")
    return place


def started(place: Path) -> tuple[Process, str]:
    process = start_command("review", "run", "--port", 0, folder=place)
    return process, address_of(process, "shows 54 images in 4 clusters of run; Ctrl-C ends it\n")


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Server]:
    process, address = started(place)
    yield Server(process, address)
    process.kill()


@pytest.fixture
def server(served: Server, answers: Path) -> Server:
    """Without an answer."""
    answers.unlink(missing_ok=True)
    assert served.ask("/progress")[2]["progress"]["answered"] == 0
    return served


@pytest.fixture
def answers(place: Path) -> Path:
    return place / "run" / "corrections.csv"


@pytest.fixture(scope="module")
def shown(place: Path, served: Server) -> Review:
    """What the server shows, which has extracted the features."""
    before = (place / "run" / "review.index" / "features.parquet").stat()
    found = Review(place / "run")
    assert (place / "run" / "review.index" / "features.parquet").stat().st_mtime_ns == before.st_mtime_ns
    return found


def post(server: Server, path: str, content: Any, **headers: str) -> tuple[int, Any]:
    status, _, found = server.ask(path, json.dumps(content).encode(), **(JSON | headers))
    return status, found


def rows_of(answers: Path) -> list[str]:
    """The rows of the file, without the folder of the images."""
    text = answers.read_text()
    assert text.startswith(HEAD) and text.endswith("\n")
    return re.sub(r"/[^,\n]*/", "", text).splitlines()[1:]


def test_questions_come_in_order_of_doubt(server: Server, shown: Review) -> None:
    """Each image with those of its cluster that are nearest to it."""
    numbers = []
    for _ in range(len(shown.pairs)):
        _, _, content = server.ask(f"/questions?from={numbers[-1] + 1 if numbers else 0}")
        question = content["questions"][0]
        numbers.append(question["number"])
        assert [image["row"] for image in question["images"]] == shown.pairs[numbers[-1]].tolist()
    assert numbers == list(range(len(shown.pairs))) and len(numbers) > 5
    labels, features = shown.clustering.labels, shown.features
    for side, other in (question["images"], question["images"][::-1]):
        same = np.flatnonzero(labels == labels[side["row"]])
        assert side["size"] == len(same) and side["cluster"] == [0, 4, 7, 9][labels[side["row"]]]
        ranked = sorted(set(same) - {side["row"], other["row"]}, key=lambda row: -features[row] @ features[side["row"]])
        assert side["beside"] == ranked[:4]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome found")
def test_the_page(place: Path, answers: Path, shown: Review, server: Server, tmp_path: Path) -> None:
    """Answers by keys and by mouse, undo, a server that is killed, clusters; and exactly the rows that were meant."""
    names = [os.path.basename(path) for path in shown.clustering.paths]
    medoids = dict(zip((0, 4, 7, 9), shown.medoids.tolist(), strict=True))
    process, address = started(place)
    expected: list[str] = []
    try:
        with Browser(address + "/", tmp_path / "browser") as browser:

            def asked() -> list[str]:
                browser.wait_for(f"{ASKED}.length === 2 && {LOADED}")
                return browser.ask(ASKED)

            def done(words: str) -> None:
                """Waits for the sentence about a work, and compares the file."""
                browser.wait_for(f"{SAID} === {json.dumps(words)}")
                assert rows_of(answers) == expected

            def press(key: str, row: str, words: str) -> None:
                expected.append(row)
                browser.press(key)
                done(words)

            def click(name: str) -> None:
                browser.ask(f"document.getElementById('{name}').click()")

            def write(key: str, text: str) -> None:
                browser.press(key)
                assert browser.ask("document.activeElement.value") == "", "the key of a field is not written in it"
                browser.call("Input.insertText", text=text)
                browser.press("Enter")

            left, right = first = asked()
            assert first == [names[row] for row in shown.pairs[0]]
            press("d", f"{left},different,{right}", "Saved: different.")
            assert browser.ask(PROGRESS).startswith("1 answered, ")
            left, right = second = asked()
            assert second == [names[row] for row in shown.pairs[1]]
            expected.append(f"{left},same,{right}")
            click("same")
            done("Saved: same.")
            third = asked()
            assert third not in (first, second)
            press("n", f"{third[0]},nobody,", "Saved: no person on the left.")
            fourth = asked()
            press("m", f"{fourth[1]},nobody,", "Saved: no person on the right.")
            for again in (fourth, third):
                expected.pop()
                browser.press("u")
                browser.wait_for(f"JSON.stringify({ASKED}) === {json.dumps(json.dumps(again, separators=(',', ':')))}")
                assert rows_of(answers) == expected
            browser.press("j")
            browser.wait_for(f"{SAID} === 'Skipped.'")
            later = asked()
            assert later != third
            expected.append(f'{later[0]},person,"Anna, née Ö"')
            write("l", "Anna, née Ö")
            done("Saved: Anna, née Ö.")
            assert asked() == later and "Anna, née Ö" in browser.ask("document.querySelector('.side').innerText")

            # A letter in a field answers nothing, and the focus is visible everywhere.
            browser.press("r", "s", "Escape")
            assert browser.ask("document.activeElement === document.body") and rows_of(answers) == expected
            browser.ask("document.querySelector('nav a').focus()")
            for reached in ("Clusters 2", "Undo U", "Same S", "Different D", "No person on the left N"):
                browser.press("Tab")
                assert browser.ask("document.activeElement.innerText") == reached
                assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            assert browser.ask("document.documentElement.scrollWidth <= innerWidth")

            os.kill(process.pid, signal.SIGKILL)
            browser.press("s")
            browser.wait_for(f"{SAID}.startsWith('The server did not answer; is it still running?')")
            assert rows_of(answers) == expected
            process.wait()
            process, address = started(place)
            browser.ask("window.earlier = true")
            browser.call("Page.navigate", url=address + "/")
            browser.wait_for(
                "!window.earlier && document.getElementById('progress')?.innerText.startsWith('3 answered')"
            )
            assert asked() == third, "the first question without an answer"
            browser.press("u")
            expected.pop()
            done("The last answer was taken back.")

            browser.press("2")
            browser.wait_for(f"document.querySelectorAll('.card').length === 4 && {LOADED}")
            cards = "[...document.querySelectorAll('.card')].map((card) => card.hash)"
            assert browser.ask(cards) == ["#cluster=0", "#cluster=4", "#cluster=7", "#cluster=9"]
            browser.ask("document.querySelectorAll('.card')[1].focus()")
            browser.press("Enter")
            browser.wait_for(f"document.querySelectorAll('.tile').length === 18 && {LOADED}")
            tiles = browser.ask("[...document.querySelectorAll('.tile')].map((tile) => +tile.dataset.row)")
            assert tiles[0] == medoids[4] and sorted(tiles) == list(range(18, 36))

            def choose(*places: int) -> None:
                for number in places:
                    browser.ask(f"document.querySelectorAll('.tile')[{number}].focus()")
                    browser.press(" ")

            wrong, split, nobody = tiles[5], tiles[7:9], tiles[3]
            browser.press("x")
            browser.wait_for(f"{SAID} === 'Choose two images that are different persons.'")
            choose(5)
            press("w", f"{names[wrong]},different,{names[medoids[4]]}", "Saved: 1 wrong.")
            focused = "document.activeElement.dataset.row + document.activeElement.querySelector('.mark').innerText"
            assert browser.ask(focused) == f"{wrong}wrong", "it keeps the focus, and shows the mark"
            choose(7, 8)
            press("x", f"{names[split[0]]},different,{names[split[1]]}", "Saved: two persons.")
            choose(3)
            expected.append(f"{names[nobody]},nobody,")
            click("nobody")
            done("Saved: 1 without a person.")
            expected.append(f"{names[medoids[4]]},same,{names[medoids[9]]}")
            write("g", "9")
            done("Saved: clusters 4 and 9 are one person.")
            expected.append(f"{names[medoids[4]]},person,Bob")
            write("t", "Bob")
            done("Saved: Bob.")
            assert "Bob" in browser.ask("document.getElementById('title').innerText")
            write("g", "5")
            browser.wait_for(f"{SAID} === 'there is no cluster 5.'")
            choose(5)
            write("t", "Carl")
            expected.append(f"{names[medoids[4]]},person,Carl")
            done("Saved: Carl.")
            click("undo")
            expected.pop()
            done("The last answer was taken back.")
            browser.ask("history.back()")
            browser.wait_for("!document.getElementById('clusters').hidden")

            # An answer that is taken back in another view is asked again.
            browser.press("1")
            fifth = asked()
            press("d", f"{fifth[0]},different,{fifth[1]}", "Saved: different.")
            assert asked() != fifth
            browser.press("2")
            browser.wait_for("!document.getElementById('clusters').hidden")
            browser.press("u")
            expected.pop()
            done("The last answer was taken back.")
            browser.press("1")
            browser.wait_for(f"JSON.stringify({ASKED}) === {json.dumps(json.dumps(fifth, separators=(',', ':')))}")
    finally:
        os.kill(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert errors == "" and printed.splitlines()[1:] == [
        f"{len(expected)} answers in run/corrections.csv",
        "Next:",
        "  fastreid-ice train --config-file run/config.yaml CORRECTIONS run/corrections.csv OUTPUT_DIR run-corrected",
        "  fastreid-ice recluster --run run CORRECTIONS run/corrections.csv",
        "  fastreid-ice label --run run --corrections run/corrections.csv --output corrected.csv --write",
    ]


def test_other_sites_and_forms_change_nothing(server: Server, answers: Path) -> None:
    body = {"rows": [[0, "same", 1]]}
    assert post(server, "/answers", body)[0] == 200
    before = answers.read_bytes()
    host = server.address.removeprefix("http://")
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
    ):
        for path, content in (("/answers", {"rows": [[2, "same", 3]]}), ("/take_back", {"answered": 1})):
            status, found = post(server, path, content, **headers)
            assert status == 403 and list(found) == ["error"]
    # What a form can send, and what a script can send without asking first.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""):
        for path, content in (("/answers", {"rows": [[2, "same", 3]]}), ("/take_back", {"answered": 1})):
            status, found = post(server, path, content, **{"Content-Type": kind})
            assert (status, found) == (415, {"error": "what is posted must be application/json"})
    for path in ("/answers", "/take_back"):
        assert server.ask(path)[0] == 405, "GET"
    assert answers.read_bytes() == before
    status, found = post(server, "/take_back", {"answered": 1}, Origin=f"http://{host}")
    assert status == 200 and answers.read_text() == HEAD
    _, headers, page = server.ask("/")
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert b"<style" not in page and not re.search(rb"\son\w+=|style=|<script>", page)


BAD = {
    "no rows": ({}, 400, "an answer has from 1 to 1000 rows"),
    "too many rows": ({"rows": [[0, "nobody", ""]] * 1001}, 400, "an answer has from 1 to 1000 rows"),
    "no row": ({"rows": [7]}, 400, "a row is [image, relation, other]"),
    "a list": ([], 400, "an answer is a JSON object"),
    "beyond": ({"rows": [[54, "nobody", ""]]}, 404, "there is no such image"),
    "negative": ({"rows": [[0, "same", -1]]}, 404, "there is no such image"),
    "a path": ({"rows": [["/etc/passwd", "nobody", ""]]}, 404, "there is no such image"),
    "true": ({"rows": [[True, "nobody", ""]]}, 404, "there is no such image"),
    "itself": ({"rows": [[3, "different", 3]]}, 400, "an image cannot be compared with itself"),
    "a relation": ({"rows": [[3, "cousin", 4]]}, 400, "a relation is same, different, person with a name, or nobody"),
    "no name": ({"rows": [[3, "person", " "]]}, 400, "a name has from 1 to 100 letters"),
    "lines": ({"rows": [[3, "person", "a\nb"]]}, 400, "a name has from 1 to 100 letters"),
    "half a letter": ({"rows": [[3, "person", "\ud800"]]}, 400, "a name has from 1 to 100 letters"),
    "one of two": ({"rows": [[3, "nobody", ""], [3, "same", 99]]}, 404, "there is no such image"),
    "too long": ({"rows": [[3, "person", "a" * 2**17]]}, 413, "this answer is too long"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_answers_are_one_sentence(server: Server, answers: Path, what: str) -> None:
    content, status, sentence = BAD[what]
    found = post(server, "/answers", content)
    assert found[0] == status and found[1]["error"].startswith(sentence), found
    assert not answers.exists()


def test_an_answer_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_server, "SECONDS", 0.05)

    async def receive() -> dict:
        await asyncio.sleep(60)
        return {"type": "http.request"}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(HTTPException, match="408: the answer did not arrive within 0.05 seconds"):
        asyncio.run(review_server._content(Request(scope, receive)))


def test_bad_questions_are_one_sentence(server: Server) -> None:
    for path, status, sentence in (
        ("/questions?from=-1", 400, "from must be a number of at least 0"),
        ("/clusters?order=best", 400, "there is no order 'best'; clusters are ordered by largest or doubtful"),
        ("/clusters/1", 404, "there is no cluster 1"),
        ("/clusters/..%2frun", 404, None),
        ("/images/54", 404, "there is no such image: the rows are 0 to 53"),
        ("/corrections.csv", 404, None),
    ):
        found_status, _, content = server.ask(path)
        assert found_status == status and sentence in (None, content["error"])
    assert post(server, "/take_back", {"answered": 0}) == (400, {"error": "there is no answer to take back"})


def test_a_file_that_was_changed_by_hand(server: Server, shown: Review, answers: Path) -> None:
    """It is not overwritten; the page goes on with it once it was loaded again."""
    assert post(server, "/answers", {"rows": [[0, "different", 20]]})[0] == 200
    images = [Path(path) for path in shown.clustering.paths]
    by_hand = f"\ufeff{HEAD}\n{images[5]},nobody,\n".encode()
    answers.write_bytes(by_hand)
    for path, content in (("/answers", {"rows": [[1, "same", 2]]}), ("/take_back", {"answered": 1})):
        status, found = post(server, path, content)
        assert status == 409 and found["error"].startswith("run/corrections.csv has been changed by somebody else; ")
        assert answers.read_bytes() == by_hand
    assert server.ask("/progress")[2]["progress"]["last"] == f"{images[5].name} nobody"
    assert post(server, "/take_back", {"answered": 2})[0] == 409, "of another page"
    assert post(server, "/answers", {"rows": [[1, "same", 2]]})[0] == 200
    assert rows_of(answers) == [f"{images[5].name},nobody,", f"{images[1].name},same,{images[2].name}"]
    answers.write_text("a,b\n1,2\n")
    status, _, found = server.ask("/progress")
    assert status == 400 and found["error"].startswith("run/corrections.csv")


def test_what_follows_is_not_asked_and_what_contradicts_is_refused(
    server: Server, answers: Path, shown: Review
) -> None:
    one, other = map(int, shown.pairs[0])
    between = next(row for row in range(54) if row not in (one, other))
    open_before = server.ask("/progress")[2]["progress"]["open"]
    assert open_before == len(shown.pairs)
    _, found = post(server, "/answers", {"rows": [[one, "same", between], [between, "same", other]]})
    assert found["progress"]["open"] < open_before
    assert server.ask("/questions")[2]["questions"][0]["number"] > 0
    before = answers.read_bytes()
    status, found = post(server, "/answers", {"rows": [[other, "different", one]]})
    assert status == 400 and answers.read_bytes() == before
    assert found["error"].startswith(
        "This answer is not saved, since it contradicts earlier ones. run/corrections.csv: "
    )
    status, found = post(server, "/answers", {"rows": [[other, "person", "Anna"], [one, "person", "Bob"]]})
    assert status == 400 and answers.read_bytes() == before
    status, found = post(server, "/answers", {"rows": [[other, "nobody", ""]]})
    assert status == 400 and answers.read_bytes() == before, "somebody who is the same as another one"
    post(server, "/take_back", {"answered": 2})
    assert post(server, "/answers", {"rows": [[other, "different", one]]})[0] == 200
    assert server.ask("/questions")[2]["questions"][0]["number"] > 0
    post(server, "/take_back", {"answered": 2})
    assert post(server, "/answers", {"rows": [[other, "person", "Anna"], [one, "person", "Bob"]]})[0] == 200
    assert server.ask("/questions")[2]["questions"][0]["number"] > 0, "two names are two persons"


@pytest.mark.parametrize("seed", range(5))
def test_open_questions_are_those_of_a_search_by_hand(shown: Review, tmp_path: Path, seed: int) -> None:
    """After true answers about images that were drawn, and names of some."""
    rng, paths = np.random.default_rng(seed), shown.clustering.paths
    truth = [os.path.basename(path)[:4] for path in paths]
    review = copy.copy(shown)
    review.answers = AnswerFile(tmp_path / "corrections.csv", paths)
    asked = rng.permutation(np.unique(shown.pairs))  # most rows are about images that are asked about
    nobody, *others = asked.tolist()
    pairs = [pair for pair in rng.choice([*others, *others, *range(9)], (10, 2)).tolist() if pair[0] != pair[1]]
    pairs = [pair for pair in pairs if nobody not in pair]
    named = others[:2]
    rows = [(paths[one], "same" if truth[one] == truth[other] else "different", paths[other]) for one, other in pairs]
    rows += [(paths[image], "person", truth[image]) for image in named]
    review.add([*rows, (paths[nobody], "nobody", "")])

    same = {image: {image} for image in range(54)}
    for one, other in [*pairs, *((one, other) for one in named for other in named)]:
        if truth[one] == truth[other]:
            joined = same[one] | same[other]
            same |= dict.fromkeys(joined, joined)
    parted = [(one, other) for one, other in pairs if truth[one] != truth[other]]
    parted += [(one, other) for one in named for other in named if truth[one] != truth[other]]
    expected = [
        other not in same[one]
        and not any({one, other} <= same[a] | same[b] and (one in same[a]) != (other in same[a]) for a, b in parted)
        and nobody not in (one, other)
        for one, other in shown.pairs.tolist()
    ]
    assert review.open_questions().tolist() == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.slow
def test_the_printed_commands_keep_the_answers(server: Server, place: Path, shown: Review, datasets_root: Path) -> None:
    joined, parted, false = (0, 53), (19, 21), 30  # images of one person, of one person, and one
    rows = [[*joined], [*parted], [false]]
    for row, relation in zip(rows, ("same", "different", "nobody"), strict=True):
        assert post(server, "/answers", {"rows": [[row[0], relation, *(row[1:] or [""])]]})[0] == 200
    for command, file in zip(
        review_server.next_commands(shown), ("run-corrected/labels.csv", "labels.csv", "corrected.csv"), strict=True
    ):
        arguments = [part.removeprefix(f"{place}/") for part in shlex.split(command)[1:]]
        done = run_command(*arguments, folder=place, environment={"FASTREID_DATASETS": str(datasets_root)})
        assert done.returncode == 0, done.stdout + done.stderr
        written = PseudoLabels.read(place / file)
        label = dict(zip(map(os.path.basename, written.paths), written.labels.tolist(), strict=True))
        one, other, here, there, nobody = (
            label[os.path.basename(shown.clustering.paths[row])] for row in (*joined, *parted, false)
        )
        assert one == other >= 0 and (here != there or here == -1) and nobody == -1, command


def test_nothing_is_lost_when_a_row_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "corrections.csv"
    images = [os.fsdecode(b"bytes\xff,.jpg"), "a\nb.jpg", "c.jpg"]
    file = AnswerFile(path, images)
    assert file.rows == [] and not path.exists()
    odd = [(images[0], "person", 'Anna "A", 人'), (images[1], "nobody", "")]
    file.add(odd)
    assert [row[1:] for row in AnswerFile(path, images).rows] == odd
    (tmp_path / "corrections.csv.ice-part").mkdir()
    before = path.read_bytes()
    with pytest.raises(InputError, match="cannot write .*: Is a directory; this answer is not saved, earlier ones are"):
        file.add([("c.jpg", "nobody", "")])
    assert path.read_bytes() == before and [row[1:] for row in file.rows] == odd
    (tmp_path / "corrections.csv.ice-part").rmdir()
    file.take_back()
    assert [row[1:] for row in file.rows] == odd[:1] == [row[1:] for row in AnswerFile(path, images).rows]
    path.unlink()
    with pytest.raises(Changed):
        file.take_back()
    path.mkdir()
    with pytest.raises(InputError, match="corrections.csv: Is a directory"):
        AnswerFile(path, images)


def test_a_run_that_was_trained_with_corrections_begins_with_them(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("corrections.csv"))
    paths = PseudoLabels.read(run / "labels.csv").paths
    earlier = tmp_path / "earlier.csv"
    earlier.write_text(f"{HEAD}{paths[0]},different,{paths[20]}\n")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("CORRECTIONS: ''", f"CORRECTIONS: {earlier}"))
    first = Review(run)
    first.add([(paths[1], "nobody", "")])
    again = Review(run)
    assert [row.relation for row in again.answers.rows] == ["different", "nobody"]
    assert earlier.read_text().count("\n") == 2, "it stays as it was"
    (run / "corrections.csv").unlink()
    earlier.unlink()
    with pytest.raises(InputError, match=r"CORRECTIONS .*earlier.csv, which cannot be copied to .*: No such file"):
        Review(run)


def test_questions_about_two_clusters_show_their_centres(place: Path, shown: Review, tmp_path: Path) -> None:
    """Also where questions are ordered by features that are standardised within cameras."""
    run = shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("corrections.csv"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("CAMERA_NORM: false", "CAMERA_NORM: true", 1))  # of CLUSTER
    found = Review(run)
    assert not np.allclose(found.features, shown.features) and found.medoids.tolist() == shown.medoids.tolist()
    labels = found.clustering.labels[found.pairs]
    between = labels[:, 0] != labels[:, 1]
    assert between.any() and (found.pairs[between] == found.medoids[labels[between]]).all()


def test_what_cannot_work_is_one_sentence(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sentence(*options: object) -> str:
        with pytest.raises(SystemExit) as error:
            review.main([*map(str, options)])
        assert error.value.code.startswith("error: ") and "\n" not in error.value.code
        return error.value.code

    assert "nowhere holds no config.yaml; it must be the OUTPUT_DIR of a run" in sentence("nowhere", "--port", 0)
    assert "--port 65536 must be from 0 to 65535" in sentence(place / "run", "--port", 65536)
    run = shutil.copytree(place / "run", tmp_path / "run")
    labels = PseudoLabels.read(run / "labels.csv")
    (run / "corrections.csv").write_text("path\n")
    assert f"{run}/corrections.csv" in sentence(run, "--port", 0)
    labels.labels[:] = -1
    labels.write(run / "labels.csv")
    assert "labels.csv holds no cluster, only noise: there is nothing to correct" in sentence(run, "--port", 0)
    (run / "labels.csv").unlink()
    assert "holds no labels.csv: this run has not clustered yet" in sentence(run, "--port", 0)
