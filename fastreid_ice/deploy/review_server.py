"""The page on which a person corrects the clusters of a run, as a small web app for the browser.

    GET /                       the page, with /page.css and /page.js
    GET /images/ROW             a small JPEG of an image
    GET /progress               what is answered; reads corrections.csv, which may have been changed by hand
    GET /questions?from=NUMBER  the next open questions
    GET /clusters?order=largest the clusters, or order=doubtful, from the position ``from`` on
    GET /clusters/NUMBER        the images of one, from the position ``from`` on
    POST /answers               {"rows": [[image, relation, other], ...]}: images as rows, or ``other`` a name
    POST /take_back             {"answered": COUNT}: removes the last answer, if there are so many

Each answer is JSON with ``progress``; an error has the JSON ``{"error": sentence}``. What is posted must be called
application/json, which no form of another site can do.
"""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import InputError
from ..reporting.chart import readable
from ..reporting.pages import NAME_LENGTH, render
from ..reporting.sheets import tile_size
from .answers import Changed
from .review import ROWS, Review
from .web import guarded_app, thumbnail, whole

BODY = 2**16  # bytes of an answer
SECONDS = 60  # in which it must have arrived


class ReviewApp:
    """The endpoints over one review. Requests that read or write answers are served one after the other."""

    def __init__(self, review: Review) -> None:
        self.review = review
        self._drawing = ThreadPoolExecutor(2)
        self.page = render(
            "review.html",
            folder=readable(str(review.folder)),
            path=readable(str(review.answers.path)),
            images=len(review.clustering.paths),
            clusters=len(review.numbers),
            missing=review.missing,
            commands=next_commands(review),
            name_length=NAME_LENGTH,
        )

    def app(self, host: str, address: str) -> ASGIApp:
        """The application, guarded for a server at a host as its user names it, and at its address."""
        texts = {
            "/": ("text/html", self.page),
            "/page.css": ("text/css", render("review.css", tile=tile_size(self.review.aspect))),
            "/page.js": ("text/javascript", render("review.js")),
        }
        routes = [
            Route("/images/{row}", self.image),
            Route("/progress", self.progress),
            Route("/questions", self.questions),
            Route("/clusters", self.clusters),
            Route("/clusters/{number}", self.cluster),
            Route("/answers", self.answer, methods=["POST"]),
            Route("/take_back", self.take_back, methods=["POST"]),
        ]
        return guarded_app(texts, routes, host, address)

    async def image(self, request: Request) -> Response:
        return await thumbnail(self._drawing, self.review.clustering.paths[self._row(request.path_params["row"])])

    async def progress(self, request: Request) -> Response:
        self.review.read()
        return self._with_progress()

    async def questions(self, request: Request) -> Response:
        return self._with_progress(questions=self.review.questions(_start(request)))

    async def clusters(self, request: Request) -> Response:
        order = request.query_params.get("order", "largest")
        return self._with_progress(
            clusters=self.review.clusters(order, _start(request)), total=len(self.review.numbers)
        )

    async def cluster(self, request: Request) -> Response:
        try:
            return self._with_progress(
                cluster=self.review.cluster(whole(request.path_params["number"]), _start(request))
            )
        except KeyError:
            raise HTTPException(404, f"there is no cluster {request.path_params['number']}") from None

    async def answer(self, request: Request) -> Response:
        given = await _content(request)
        rows = given.get("rows")
        if not isinstance(rows, list) or not 1 <= len(rows) <= ROWS:
            raise HTTPException(400, f"an answer has from 1 to {ROWS} rows")
        read = [self._read(row) for row in rows]
        return self._write(lambda: self.review.add(read))

    async def take_back(self, request: Request) -> Response:
        given = await _content(request)
        if given.get("answered") != len(self.review.answers.rows):
            raise HTTPException(409, "another page has given answers meanwhile; load this page again")
        return self._write(self.review.take_back)

    def _write(self, work: Callable[[], None]) -> Response:
        try:
            work()
        except Changed as error:
            raise HTTPException(409, str(error)) from error
        return self._with_progress()

    def _with_progress(self, **content: Any) -> Response:
        progress = {
            "answered": len(self.review.answers.rows),
            "open": int(self.review.open_questions().sum()),
            "asked": len(self.review.pairs),
            "last": self.review.last_answer(),
        }
        return JSONResponse({"progress": progress, **content})

    def _read(self, row: Any) -> tuple[str, str, str]:
        """A row of the file.

        Raises:
            HTTPException: this is none.
        """
        if not isinstance(row, list) or len(row) != 3:
            raise HTTPException(400, "a row is [image, relation, other]")
        image, relation, other = row
        name = self._path(image)
        if relation in ("same", "different"):
            if image == other:
                raise HTTPException(400, "an image cannot be compared with itself")
            return (name, relation, self._path(other))
        if relation == "nobody" and other == "":
            return (name, relation, "")
        if relation == "person" and isinstance(other, str):
            return (name, relation, _person(other))
        raise HTTPException(400, "a relation is same, different, person with a name, or nobody with an empty text")

    def _path(self, row: Any) -> str:
        if type(row) is not int or not 0 <= row < len(self.review.clustering.paths):
            raise HTTPException(404, "there is no such image")
        return self.review.clustering.paths[row]

    def _row(self, text: str) -> int:
        row, count = whole(text), len(self.review.clustering.paths)
        if not 0 <= row < count:
            raise HTTPException(404, f"there is no such image: the rows are 0 to {count - 1}")
        return row


def next_commands(review: Review) -> list[str]:
    """What to run with the answers."""
    run, answers = review.folder, review.answers.path
    corrected = run.with_name(f"{run.name}-corrected") if run.name else run / "corrected"
    commands = [
        ["train", "--config-file", review.run_config, "CORRECTIONS", answers, "OUTPUT_DIR", corrected],
        ["recluster", "--run", run, "CORRECTIONS", answers],
        ["label", "--run", run, "--corrections", answers, "--output", "corrected.csv", "--write"],
    ]
    return ["fastreid-ice " + shlex.join(map(str, command)) for command in commands]


def _person(name: str) -> str:
    """
    Raises:
        HTTPException: no name, or one that is not a line of text.
    """
    name = name.strip()
    if not name or len(name) > NAME_LENGTH or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise HTTPException(400, f"a name has from 1 to {NAME_LENGTH} letters")
    return name


def _start(request: Request) -> int:
    start = whole(request.query_params.get("from", "0"))
    if start < 0:
        raise InputError("from must be a number of at least 0")
    return start


async def _content(request: Request) -> dict[str, Any]:
    """The JSON object that was posted.

    Raises:
        HTTPException: it is called something else, too long, no JSON object, or does not arrive.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "what is posted must be application/json")
    data = bytearray()
    with anyio.move_on_after(SECONDS) as reading:
        async for part in request.stream():
            data += part[: BODY + 1 - len(data)]  # what is too much is read, but not kept
    if reading.cancelled_caught:
        raise HTTPException(408, f"the answer did not arrive within {SECONDS} seconds")
    if len(data) > BODY:
        raise HTTPException(413, "this answer is too long")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise HTTPException(400, "an answer is a JSON object")
    return content
