"""What the small web apps of this package share: a guarded application, its answers, and a server for it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import InputError
from .guard import Guard
from .pictures import thumbnail_file

CONNECTIONS = 256
END_SECONDS = 3  # for what is being answered when the server ends

T = TypeVar("T")


def guarded_app(texts: Mapping[str, tuple[str, str]], routes: Sequence[Route], host: str, address: str) -> ASGIApp:
    """The application, guarded for a server at a host as its user names it, and at its address.

    An InputError or HTTPException in a route is answered with the JSON ``{"error": sentence}``.

    Args:
        texts: path -> media type and content of what never changes.
        routes: all else.
        host, address: as for ``Guard``.
    """
    handlers: dict[Any, Any] = dict.fromkeys((HTTPException, InputError, ClientDisconnect), _problem)
    constant = [Route(path, _constant(kind, text)) for path, (kind, text) in texts.items()]
    app = Starlette(routes=[*constant, *routes], exception_handlers=handlers)
    app.router.redirect_slashes = False  # every address has one spelling
    return Guard(app, host, address)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address or name of this machine; port 0 is any free one.

    Raises:
        InputError: there is no such host or port, or it is taken.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port} must be from 0 to {2**16 - 1}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise InputError(f"cannot listen at {host}, port {port}: {reason}; --port 0 takes any free port") from error


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answers at a socket until the process gets SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


async def thumbnail(pool: ThreadPoolExecutor, path: str) -> Response:
    """A small JPEG of an image file.

    Raises:
        HTTPException: it is missing or cannot be read.
    """
    data = await in_pool(pool, thumbnail_file, path)
    if data is None:
        raise HTTPException(404, "the image is missing, or cannot be read")
    return Response(data, media_type="image/jpeg")


async def in_pool(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


def whole(text: str) -> int:
    """A number as digits; -1 for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else -1


def _constant(kind: str, text: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(text, media_type=kind)

    return answer


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": str(error)}, 400)  # after ClientDisconnect nobody reads it
