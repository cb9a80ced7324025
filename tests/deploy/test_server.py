"""fastreid-ice serve: requests to a running server, and its page in a real browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from browser import CHROMIUM, Browser
from fastreid_ice.commands import serve
from fastreid_ice.deploy import Encoder, Gallery, update_index, web
from fastreid_ice.deploy import server as module
from fastreid_ice.deploy.guard import Guard
from fastreid_ice.deploy.pictures import open_picture
from processes import Process, start_command
from served import Server, address_of
from trained import make_trained

GROWTH = 16e6  # bytes of memory that 300 requests may leave
PEAK = 700e6  # and that the server may take beyond its start at any moment


@pytest.fixture(scope="module")
def place(datasets_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``run``, images in ``images``, and ``index``."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(next(datasets_root.rglob("bounding_box_train")), place / "images")
    make_trained(place / "run", place / "images")
    cameras = ["DATASETS.FOLDER.CAMERAS", "_c([0-9])"]
    update_index(place / "index", Encoder(place / "run", cameras), place / "images")
    return place


@pytest.fixture(scope="module")
def gallery(place: Path) -> Gallery:
    return Gallery(place / "index")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    process = start_command("serve", "--index", "index", "--port", 0, folder=place)
    try:
        yield Server(process, started(process))
    finally:
        process.kill()


def started(process: Process) -> str:
    """The address that it prints once it answers."""
    return address_of(process, r"searches 54 images of index; Ctrl-C ends it\n")


def as_file(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def rows(answer: tuple[int, Any, Any]) -> list[int]:
    status, _, content = answer
    assert status == 200, content
    return [match["row"] for match in content["matches"]]


def test_an_image_of_the_index_by_its_row(server: Server, gallery: Gallery) -> None:
    status, headers, content = server.ask("/search?row=5&top_k=7")
    (expected,) = gallery.search(gallery.features[5:6], top_k=7, own=np.array([5]))
    index = gallery.index
    assert status == 200 and content["query"] == {"name": Path(index.paths[5]).name, "camera": index.cameras[5]}
    for rank, (match, row) in enumerate(zip(content["matches"], expected.rows, strict=True), 1):
        assert list(match) == ["rank", "row", "name", "camera", "similarity", "distance"]
        assert (match["rank"], match["row"]) == (rank, row)
        assert (match["name"], match["camera"]) == (Path(index.paths[row]).name, index.cameras[row])
        assert match["similarity"] == pytest.approx(expected.similarities[rank - 1])
        assert match["distance"] == pytest.approx(1 - match["similarity"])


def test_a_picture_that_is_in_the_index_is_found_first(server: Server, gallery: Gallery) -> None:
    path = Path(gallery.index.paths[17])
    lossless = {"PNG": {}, "BMP": {}, "WEBP": {"lossless": True}}
    files = [path.read_bytes(), *(as_file(Image.open(path), form, **options) for form, options in lossless.items())]
    (nearest,) = gallery.search(gallery.features[17:18])
    for data in files:
        answer = server.ask(f"/search?top_k=10&name={path.name}", data)
        assert rows(answer) == nearest.rows.tolist() and rows(answer)[0] == 17
        assert answer[2]["matches"][0]["similarity"] > 0.9999
        assert answer[2]["query"]["camera"] == gallery.index.cameras[17], "as its name says"


def test_a_sent_picture_has_the_features_of_the_file(place: Path, tmp_path: Path) -> None:
    """In each format and mode, also where it is rotated by its EXIF tag."""
    encoder = Encoder(place / "run")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [as_file(picture, form, exif=turned) for form in ("JPEG", "PNG", "WEBP")]
    files += [as_file(picture.convert(mode), "PNG") for mode in ("1", "L", "P", "LA", "RGBA", "I;16")]
    files += [as_file(picture, "BMP"), as_file(picture.convert("CMYK"), "JPEG")]
    paths = [tmp_path / str(number) for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    features, usable = encoder.encode([str(path) for path in paths])
    assert usable.all() and len(np.unique(features.round(4), axis=0)) > 6
    np.testing.assert_array_equal(encoder.encode([open_picture(data) for data in files])[0], features)


def test_what_the_page_may_ask_for(server: Server, gallery: Gallery) -> None:
    cameras = np.array(gallery.index.cameras)
    assert len(rows(server.ask("/search?row=0"))) == 20 and len(rows(server.ask("/search?row=0&top_k=200"))) == 53
    elsewhere = rows(server.ask("/search?row=0&top_k=200&other_cameras=1"))
    assert set(elsewhere) == set(np.flatnonzero(cameras != cameras[0]))
    _, _, content = server.ask("/search?row=0&top_k=200&threshold=60%25")
    least = gallery.threshold(0.6)
    assert 0 < len(content["matches"]) < 53 and all(match["similarity"] >= least for match in content["matches"])
    assert content["words"].startswith("Threshold: 60% of the pairs of images in one cluster")
    data = Path(gallery.index.paths[0]).read_bytes()
    assert set(rows(server.ask("/search?camera=2&other_cameras=1&top_k=200&name=a_c1.jpg", data))) == set(
        np.flatnonzero(cameras != "2")
    ), "the camera that is chosen counts before that in the name"


ODD = {
    "no number": ("row=0&top_k=many", "the number of results must be from 1 to 200"),
    "no results": ("row=0&top_k=0", "the number of results must be from 1 to 200"),
    "too many results": ("row=0&top_k=201", "the number of results must be from 1 to 200"),
    "a threshold": ("row=0&threshold=2", "threshold '2' must be a cosine in [-1, 1], or a share such as 90%"),
    "no row": ("", "there is no such image: the rows of the index are 0 to 53"),
    "a row beyond": ("row=54", "there is no such image: the rows of the index are 0 to 53"),
    "a negative row": ("row=-1", "there is no such image: the rows of the index are 0 to 53"),
    "a long row": ("row=" + "9" * 5000, "there is no such image: the rows of the index are 0 to 53"),
    "other digits": ("row=%D9%A3", "there is no such image: the rows of the index are 0 to 53"),
}


@pytest.mark.parametrize("what", list(ODD))
def test_bad_options_are_one_sentence(server: Server, what: str) -> None:
    query, sentence = ODD[what]
    status, _, content = server.ask(f"/search?{query}")
    assert status in (400, 404) and content == {"error": sentence}


def noise(form: str) -> bytes:
    return as_file(Image.effect_noise((60, 120), 80).convert("RGB"), form)


def blank(width: int, height: int) -> bytes:
    return as_file(Image.new("1", (width, height)), "PNG")


def bomb() -> bytes:
    """A small file that says that it has two billion pixels, so many that Pillow does not open it."""
    head = blank(8, 8)
    chunk = b"IHDR" + struct.pack(">II", 60_000, 30_000) + head[24:29]
    return head[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + head[33:]


UNLIKE = "this is not a picture as JPEG, PNG, WEBP or BMP"
BAD = {
    "nothing": (400, lambda: b"", UNLIKE),
    "a text": (400, lambda: b"<html><script>alert(1)</script>", UNLIKE),
    "another format": (400, lambda: noise("GIF"), UNLIKE),
    "only a head": (400, lambda: noise("JPEG")[:30], UNLIKE),
    "a truncated JPEG": (400, lambda: noise("JPEG")[:1500], "the picture is incomplete or damaged"),
    "a truncated PNG": (400, lambda: noise("PNG")[:-3000], "the picture is incomplete or damaged"),
    "too many pixels": (400, lambda: blank(8000, 4000), "the picture has 8000 x 4000 pixels, more than 30 million"),
    "a bomb": (400, bomb, "this picture has far too many pixels"),
    "too large": (413, lambda: bytes(11 * 2**20), "the picture has more than 10 MB; make it smaller"),
    "too large, of no stated length": (413, lambda: iter([bytes(2**20)] * 11), "the picture has more than 10 MB"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_pictures_are_one_sentence(server: Server, what: str) -> None:
    status, make, sentence = BAD[what]
    answer = server.ask("/search?name=a.jpg", make())
    assert answer[0] == status and answer[2]["error"].startswith(sentence), answer[2]


def test_a_camera_that_is_not_known(server: Server, gallery: Gallery) -> None:
    data = Path(gallery.index.paths[0]).read_bytes()
    status, _, content = server.ask("/search?other_cameras=1&name=a.jpg", data)
    assert status == 400 and content == {"error": "the camera of the picture is not known; choose it"}


def test_pictures_of_the_index_alone(server: Server, gallery: Gallery) -> None:
    """By their rows: small JPEGs that are made anew, never the bytes of a file."""
    status, headers, content = server.ask("/images/3")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "JPEG" and picture.width <= 144 and picture.height <= 192
    for path in ("54", "-1", "1.0", "9" * 300, "3/", "../run/config.yaml", "..%2frun%2fconfig.yaml", "%2fetc%2fpasswd"):
        assert server.ask(f"/images/{path}")[0] == 404, path
    for path in ("/../run/config.yaml", "//etc/passwd", "/index/features.parquet", "/serve.html", "/docs"):
        assert server.ask(path)[0] == 404, path
    changed = [Path(gallery.index.paths[row]) for row in (40, 41, 42, 43)]
    before = [path.read_bytes() for path in changed]
    try:
        changed[0].unlink()
        changed[1].write_text("a secret")
        changed[2].write_bytes(before[2][:300])
        changed[3].write_bytes(blank(8000, 4000))
        for row in (40, 41, 42, 43):
            status, _, content = server.ask(f"/images/{row}")
            assert status == 404 and content == {"error": "the image is missing, or cannot be read"}
        assert rows(server.ask("/search?row=40")), "the features are those of the index"
    finally:
        for path, content in zip(changed, before, strict=True):
            path.write_bytes(content)


def test_pages_of_other_sites_are_refused(server: Server) -> None:
    host = server.address.removeprefix("http://")
    port = host.partition(":")[2]
    picture = as_file(Image.new("RGB", (8, 16)), "PNG")
    for name in (host, f"localhost:{port}", "localhost:9000", "127.0.0.1"):  # a tunnel has another port
        assert server.ask("/search?row=1", Host=name)[0] == 200
        assert server.ask("/search", picture, Host=name, Origin=f"http://{name}")[0] == 200
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "a@127.0.0.1", "192.0.2.1", "[::1"):
        for path in ("/", "/images/1", "/search?row=1"):
            status, _, content = server.ask(path, Host=name)
            assert status == 403 and "known by another name" in content["error"]
    other = {"error": "only pages of this server may ask it"}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        assert server.ask("/search", picture, Origin=origin)[::2] == (403, other)
    for site in ("cross-site", "same-site"):
        for path in ("/images/1", "/search?row=1", "/page.js"):
            assert server.ask(path, **{"Sec-Fetch-Site": site})[::2] == (403, other)
        assert server.ask("/", **{"Sec-Fetch-Site": site})[0] == 200, "a link to the page"
    assert server.ask("/search?row=1", **{"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_headers(server: Server) -> None:
    kinds = {"/": "text/html; charset=utf-8", "/page.css": "text/css; charset=utf-8"}
    kinds |= {"/page.js": "text/javascript; charset=utf-8", "/images/1": "image/jpeg"}
    kinds |= dict.fromkeys(["/search?row=1", "/search?row=x", "/nothing"], "application/json")
    for path, kind in kinds.items():
        _, headers, content = server.ask(path)
        assert headers["content-type"] == kind
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in headers["content-security-policy"] and "server" not in headers
    page = server.ask("/")[2].decode()
    assert re.findall("<script.*?>", page) == ['<script src="/page.js" defer>'] and "<style" not in page
    assert not re.search(r"\son\w+=|style=", page)
    for method in ("PUT", "DELETE", "OPTIONS"):
        request = urllib.request.Request(server.address + "/search", method=method)
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(request, timeout=60)


def test_100_requests_at_a_time_and_memory(server: Server, gallery: Gallery) -> None:
    pictures = [Path(path).read_bytes() for path in gallery.index.paths]

    def ask(number: int) -> int:
        row = number % 54
        kind = number % 3
        path = [f"/search?row={row}", f"/search?name=a_c{number}.jpg&top_k=5", f"/images/{row}"][kind]
        status, _, content = server.ask(path, pictures[row] if kind == 1 else None)
        if kind == 1:
            assert content["matches"][0]["row"] == row and content["matches"][0]["similarity"] > 0.9999
        return status

    start = server.memory("VmRSS")
    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(ask, range(100))) == {200}
        with ThreadPoolExecutor(100) as uploads:  # and 100 pictures at once
            assert set(uploads.map(lambda number: ask(3 * number + 1), range(100))) == {200}
        before = server.memory("VmRSS")
        assert set(pool.map(ask, range(300))) == {200}
    assert server.memory("VmRSS") - before < GROWTH
    large = as_file(Image.new("RGB", (6000, 4900), "red"), "JPEG")
    with ThreadPoolExecutor(6) as pool:
        assert {answer[0] for answer in pool.map(lambda _: server.ask("/search", large), range(6))} == {200}
    assert server.memory("VmHWM") - start < PEAK, "pictures are decoded one at a time"


def read(uploads: module.Uploads, *parts: bytes, wait: float = 0, disconnect: bool = False) -> bytes:
    """The body of a request that comes in these parts."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.disconnect" if disconnect else "http.request"})

    async def receive() -> dict:
        await asyncio.sleep(wait)
        return messages.pop(0)

    async def body() -> bytes:
        async with uploads.read(Request({"type": "http", "method": "POST", "headers": []}, receive)) as data:
            assert uploads.size == len(data) + held
            return bytes(data)

    held = uploads.size
    try:
        return asyncio.run(body())
    finally:
        assert uploads.size == held, "it counts no longer"
        assert not messages or wait


def test_pictures_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPLOAD", 2**20)
    monkeypatch.setattr(module, "WAITING", 2**21)
    monkeypatch.setattr(module, "SECONDS", 0.05)
    uploads = module.Uploads()
    assert read(uploads) == b"" and read(uploads, b"a", b"b") == b"ab"
    with pytest.raises(HTTPException, match="413: the picture has more than 1 MB"):
        read(uploads, bytes(2**20), b"a", b"b")
    with pytest.raises(HTTPException, match="408: the picture did not arrive within"):
        read(uploads, b"a", wait=0.2)
    with pytest.raises(ClientDisconnect):
        read(uploads, b"a", disconnect=True)
    uploads.size = 2**21 - 2  # of others
    assert read(uploads, b"ab") == b"ab"
    with pytest.raises(HTTPException, match="503: too many pictures are waiting; try again in a moment"):
        read(uploads, b"ab", b"c")


@pytest.mark.parametrize(
    ("host", "address", "accepted", "refused"),
    [
        ("127.0.0.1", "127.0.0.1", ["localhost:1", "[::1]:80"], ["192.168.0.7", "", "gpu1"]),
        ("GPU1", "192.168.0.7", ["gpu1:8000", "192.168.0.7", "localhost"], ["gpu2", "192.168.0.8"]),
        ("0.0.0.0", "0.0.0.0", ["192.168.0.7:80", "[fe80::1]", socket.gethostname()], ["evil.example", "1.2.3"]),
    ],
)
def test_names_of_the_server(host: str, address: str, accepted: list[str], refused: list[str]) -> None:
    guard = Guard(None, host, address)
    for name in accepted:
        assert guard.refusal("GET", "/", Headers({"host": name})) == ""
    for name in refused:
        assert guard.refusal("GET", "/", Headers({"host": name})).startswith("this server is known by another name")


def test_ctrl_c_ends_it_without_a_traceback(place: Path) -> None:
    process = start_command("serve", "--index", "index", "--port", 0, "--camera-norm", "--rerank", folder=place)
    try:
        address = started(process)
        found = json.loads(urllib.request.urlopen(f"{address}/search?row=3", timeout=60).read())["matches"]
        assert len(found) == 20 and [match["similarity"] for match in found] != sorted(
            (match["similarity"] for match in found), reverse=True
        )
        assert b"standardised within each camera" in urllib.request.urlopen(address, timeout=60).read()
        os.kill(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0 and printed.count("\n") == 1 and errors == ""


def sentence(place: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> str:
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as error:
        serve.main([*map(str, options)])
    assert error.value.code.startswith("error: ") and "\n" not in error.value.code
    return error.value.code


def test_what_cannot_work_is_one_sentence(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert sentence(place, monkeypatch, "--index", "index", "--port", port) == (
            f"error: cannot listen at 127.0.0.1, port {port}: Address already in use; --port 0 takes any free port"
        )
    for options in (["--host", "no.such.host.invalid"], ["--host", "192.0.2.1"]):
        assert "error: cannot listen at" in sentence(place, monkeypatch, "--index", "index", *options)
    assert "--port 65536 must be from 0 to 65535" in sentence(place, monkeypatch, "--index", "index", "--port", 65536)
    assert "nothing holds no index" in sentence(place, monkeypatch, "--index", "nothing")
    shutil.copytree(place / "run", tmp_path / "run")
    update_index(tmp_path / "index", Encoder(tmp_path / "run"), place / "images")
    checkpoint = torch.load(tmp_path / "run" / "model_final.pth")
    torch.save(checkpoint | {"epoch": 7}, tmp_path / "run" / "model_final.pth")
    assert "model_final.pth, or the run's settings, have changed since" in sentence(
        tmp_path, monkeypatch, "--index", "index"
    )
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    for name in ("server", "web"):
        monkeypatch.delitem(sys.modules, f"fastreid_ice.deploy.{name}")
    assert "starlette.applications is not installed, but the server needs it: run `pip install starlette uvicorn`" in (
        sentence(place, monkeypatch, "--index", "index")
    )


def test_a_warning_where_others_reach_it(place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(web, "serve", lambda app, listening: None)
    serve.main(["--index", "index", "--host", "0.0.0.0", "--port", "0"])
    assert capsys.readouterr().err == "warning: everyone who reaches this address sees all images of the index\n"
    serve.main(["--index", "index", "--host", "localhost", "--port", "0"])
    printed = capsys.readouterr()
    assert printed.err == "" and re.match(r"http://localhost:\d+/ searches 54 images of index; ", printed.out)


# A drop as a browser sends it, of a file with these bytes; what the page shows then.
DROP = """(() => {
  const bytes = Uint8Array.from(atob("BYTES"), (c) => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "NAME"));
  document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
})()"""
TILES = """[...document.querySelectorAll("#found a")].map((link) => [
  new URL(link.href).search, link.querySelector("img").alt, link.innerText])"""
LOADED = """[...document.querySelectorAll("#query img, #found img")].every((i) => i.complete && i.naturalWidth > 0)"""
ANSWER = "document.getElementById('answer').innerText"


def drop(browser: Browser, name: str, content: bytes) -> None:
    browser.ask(DROP.replace("BYTES", base64.b64encode(content).decode()).replace("NAME", name))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome found")
def test_the_page(server: Server, gallery: Gallery, tmp_path: Path) -> None:
    """Drop a picture, see the gallery, click a result, go back; bad files; all by keyboard."""
    index = gallery.index
    path = Path(index.paths[17])
    with Browser(f"{server.address}/?top_k=6", tmp_path / "browser") as browser:
        assert browser.ask(ANSWER) == "" and browser.ask("document.forms[0].elements.top_k.value") == "6"
        drop(browser, path.name, path.read_bytes())
        browser.wait_for(f"{ANSWER}.startsWith('6 results for {path.name}.') && {LOADED}")
        first = browser.ask(TILES)
        assert first[0][1] == f"rank 1, cosine 1.00, camera {index.cameras[17]}"
        assert first[0][0].endswith("row=17") and path.name in first[0][2] and "0.000" in first[0][2]
        assert browser.ask("document.querySelector('#query img').src").startswith("blob:")

        browser.ask("document.querySelectorAll('#found a')[1].focus()")
        browser.press("Enter")
        row = int(re.search(r"row=(\d+)", first[1][0])[1])
        browser.wait_for(f"{ANSWER}.startsWith('6 results for {Path(index.paths[row]).name}.') && {LOADED}")
        assert browser.ask("location.search") == first[1][0] and browser.ask("document.activeElement.id") == "answer"
        found = [int(re.search(r"row=(\d+)", address)[1]) for address, *_ in browser.ask(TILES)]
        assert found == gallery.search(index.features[[row]], top_k=6, own=np.array([row]))[0].rows.tolist()

        browser.ask("document.querySelector('[name=other_cameras]').click()")
        browser.wait_for(f"location.search.includes('other_cameras=1') && {ANSWER}.startsWith('6 results')")
        assert all(f"camera {index.cameras[row]}" not in alt for _, alt, _ in browser.ask(TILES))
        browser.ask("history.back()")
        browser.wait_for(f"{ANSWER}.startsWith('6 results for {path.name}.') && {LOADED}")
        assert browser.ask(TILES) == first, "the picture that was dropped"
        browser.ask("history.forward()")
        browser.wait_for(f"location.search.includes('row={row}') && {ANSWER}.startsWith('6 results')")

        drop(browser, "unknown.jpg", path.read_bytes())
        browser.wait_for(f"{ANSWER} === 'unknown.jpg: the camera of the picture is not known; choose it.'")
        browser.ask("document.querySelector('[name=other_cameras]').click()")
        browser.wait_for(f"{ANSWER}.startsWith('6 results for unknown.jpg.')")
        drop(browser, "<img src=x onerror=window.injected=1>.jpg", b"no picture")
        browser.wait_for(f"{ANSWER}.includes('this is not a picture as JPEG, PNG, WEBP or BMP.')")
        assert browser.ask(f"{ANSWER}.startsWith('<img src=x') && !window.injected") and browser.ask(TILES) == []
        drop(browser, "cut.jpg", noise("JPEG")[:1500])
        browser.wait_for(f"{ANSWER} === 'cut.jpg: the picture is incomplete or damaged.'")
        browser.ask("history.go(-2)")
        browser.wait_for(f"{ANSWER}.startsWith('6 results')")

        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        named = {(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if "role" in node}
        assert ("status", "") in named or any(role == "status" for role, _ in named)
        for name in ("Results", "Least cosine, or share such as 90%", "Camera of the picture", "Other cameras only"):
            assert any(role in ("spinbutton", "textbox", "combobox", "checkbox") and name == of for role, of in named)
        assert any("Choose a picture of one person" in (of or "") for _, of in named)
        assert browser.ask("document.documentElement.scrollWidth <= innerWidth")

    document = server.ask("/search?row=1")
    assert document[0] == 200, "the server goes on"
