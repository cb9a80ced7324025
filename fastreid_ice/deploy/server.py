"""The search in an index as a small web app for the browser.

    GET /               the page, with /page.css and /page.js
    GET /images/ROW     a small JPEG of an image of the index
    GET /search?row=ROW the images nearest to an image of the index, as JSON
    POST /search        those nearest to the picture that is the body of the request

Both searches take ``top_k``, ``threshold`` and ``other_cameras``; that for a picture also ``name``, its file name, in
which a camera may be found, or ``camera``. An error has the JSON ``{"error": sentence}``.

Pictures are encoded one at a time, in one thread; rankings are made in another one, and thumbnails in two. Nothing is
written.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
from fastreid.config import CfgNode
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import InputError
from ..reporting.chart import readable
from ..reporting.pages import common_folder, render, short_name
from .encoder import Encoder
from .pictures import FORMATS, PIXELS, open_picture
from .search import Gallery, read_threshold
from .web import guarded_app, in_pool, thumbnail, whole

TOP_K, MOST = 20, 200  # results, and at most
UPLOAD = 10 * 2**20  # bytes of a picture
WAITING = 64 * 2**20  # bytes of all pictures that arrive or wait for the encoder
SECONDS = 60  # in which a picture must have arrived


class Uploads:
    """The pictures that arrive or wait for the encoder: ``size`` bytes, at most ``WAITING``."""

    def __init__(self) -> None:
        self.size = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The body of a request, which counts within the block.

        Raises:
            HTTPException: it is too large, there are too many others, or it does not arrive.
        """
        data = bytearray()
        try:
            with anyio.move_on_after(SECONDS) as reading:
                await self._fill(data, request)
            if reading.cancelled_caught:
                raise HTTPException(408, f"the picture did not arrive within {SECONDS} seconds")
            yield data
        finally:
            self.size -= len(data)

    async def _fill(self, data: bytearray, request: Request) -> None:
        """What is too much is read, but not kept: many clients read the answer only after they have sent all."""
        refusal = None
        async for part in request.stream():
            if len(data) + len(part) > UPLOAD:
                refusal = HTTPException(413, f"the picture has more than {UPLOAD >> 20} MB; make it smaller")
            elif self.size + len(part) > WAITING:
                refusal = HTTPException(503, "too many pictures are waiting; try again in a moment")
            if refusal is None:
                data += part
                self.size += len(part)
            else:
                self.size -= len(data)
                data.clear()
        if refusal is not None:
            raise refusal


@dataclass(frozen=True)
class Options:
    """What a request says of its results; ``words`` are about the threshold."""

    top_k: int
    other_cameras: bool
    threshold: float
    words: str

    @classmethod
    def read(cls, given: Mapping[str, str], gallery: Gallery) -> Options:
        """
        Raises:
            InputError: one of them cannot work.
        """
        top_k = whole(given.get("top_k", str(TOP_K)))
        if not 1 <= top_k <= MOST:
            raise InputError(f"the number of results must be from 1 to {MOST}")
        other_cameras = given.get("other_cameras") == "1"
        try:
            text = given.get("threshold", "").strip() or None
            return cls(top_k, other_cameras, *read_threshold(text, gallery, other_cameras=other_cameras))
        except InputError as error:
            raise InputError(str(error).removeprefix("--")) from error  # the page has no options with dashes


class SearchApp:
    """The endpoints over one index.

    Args:
        gallery: the index.
        encoder: its encoder.
        rerank: the config node TEST.RERANK, to re-rank each query; None for not.

    Raises:
        InputError: the weights give features that are not finite.
    """

    def __init__(self, gallery: Gallery, encoder: Encoder, *, rerank: CfgNode | None = None) -> None:
        self.gallery, self.encoder, self.rerank = gallery, encoder, rerank
        self.folder = common_folder(gallery.index.paths)
        self.uploads = Uploads()
        self._encoding, self._ranking, self._drawing = map(ThreadPoolExecutor, (1, 1, 2))
        # The first picture and the first ranking load and compile what they need: not while somebody waits.
        self._encoding.submit(encoder.encode, [Image.new("RGB", (8, 16))]).result()
        self._ranking.submit(self._rank, gallery.index.features[0], 0, "", Options(1, False, -1.0, "")).result()
        self.page = render(
            "serve.html",
            images=len(gallery.index.paths),
            folder=readable(self.folder),
            cameras=sorted(set(gallery.index.cameras) - {""}),
            camera_norm=gallery.camera_norm,
            reranked=rerank is not None,
            top_k=TOP_K,
            most=MOST,
            upload=UPLOAD,
            megapixels=PIXELS // 10**6,
            types=",".join(f"image/{name.lower()}" for name in FORMATS),
        )

    def app(self, host: str, address: str) -> ASGIApp:
        """The application, guarded for a server at a host as its user names it, and at its address."""
        texts = {
            "/": ("text/html", self.page),
            "/page.css": ("text/css", render("serve.css")),
            "/page.js": ("text/javascript", render("serve.js")),
        }
        routes = [
            Route("/images/{row}", self.image),
            Route("/search", self.search_row),
            Route("/search", self.search_picture, methods=["POST"]),
        ]
        return guarded_app(texts, routes, host, address)

    async def image(self, request: Request) -> Response:
        return await thumbnail(self._drawing, self.gallery.index.paths[self._row(request.path_params["row"])])

    async def search_row(self, request: Request) -> Response:
        index = self.gallery.index
        row = self._row(request.query_params.get("row", ""))
        options = Options.read(request.query_params, self.gallery)
        camera = index.cameras[row]
        if options.other_cameras and not camera:
            raise InputError("the camera of this image is not known, so that no camera is another one")
        return await self._answer(index.features[row], row, camera, short_name(index.paths[row], self.folder), options)

    async def search_picture(self, request: Request) -> Response:
        given = request.query_params
        options = Options.read(given, self.gallery)
        name = os.path.basename(given.get("name", "").replace("\0", ""))
        camera = given.get("camera") or self.gallery.cameras_of([name], self.encoder.cfg.DATASETS.FOLDER)[0]
        if options.other_cameras and not camera:
            raise InputError("the camera of the picture is not known; choose it")
        async with self.uploads.read(request) as data:
            features = await in_pool(self._encoding, self._encode, data)
        return await self._answer(features, -1, camera, name, options)

    async def _answer(self, features: np.ndarray, row: int, camera: str, name: str, options: Options) -> Response:
        matches = await in_pool(self._ranking, self._rank, features, row, camera, options)
        return JSONResponse({"query": {"name": name, "camera": camera}, "words": options.words, "matches": matches})

    def _encode(self, data: bytearray) -> np.ndarray:
        """(D,) the feature of a picture.

        Raises:
            InputError: it cannot be read.
        """
        with open_picture(data) as picture:
            features, usable = self.encoder.encode([picture])
        if not usable[0]:
            raise InputError("the picture is incomplete or damaged")
        return features[0]

    def _rank(self, features: np.ndarray, row: int, camera: str, options: Options) -> list[dict[str, Any]]:
        (ranking,) = self.gallery.search(
            features[None],
            top_k=options.top_k,
            own=np.array([row]),
            cameras=[camera],
            other_cameras=options.other_cameras,
            threshold=options.threshold,
            rerank=self.rerank,
            device=self.encoder.cfg.MODEL.DEVICE,
        )
        return [
            {
                "rank": match.rank,
                "row": found,
                "name": short_name(match.path, self.folder),
                "camera": match.camera,
                "similarity": match.similarity,
                "distance": match.distance,
            }
            for found, match in zip(ranking.rows.tolist(), self.gallery.matches(ranking), strict=True)
        ]

    def _row(self, text: str) -> int:
        row, count = whole(text), len(self.gallery.index.paths)
        if not 0 <= row < count:
            raise HTTPException(404, f"there is no such image: the rows of the index are 0 to {count - 1}")
        return row
