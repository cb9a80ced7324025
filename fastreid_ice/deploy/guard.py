"""What protects a server on this machine from pages of other sites that the same browser shows."""

from __future__ import annotations

import ipaddress
import re
import socket

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # Scripts, styles and pictures of this server alone, and pictures that the page holds itself; no frames around it.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",  # another site cannot even show the pictures
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",  # a row is another image in another index
}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(:[0-9]+)?", re.IGNORECASE)


class Guard:
    """Refuses requests that a page of another site may have caused, and adds ``HEADERS`` to all answers.

    A site whose name is made to lead to this machine (DNS rebinding) is known by the Host header, which its page cannot
    choose. A request of a page of another site is known by Origin or Sec-Fetch-Site, which browsers send. Only the page
    itself can be opened from elsewhere. The port of the Host header does not count, so that a tunnel may have its own.

    Args:
        app: answers what is not refused.
        host: the name or address that the server listens at, as its user gave it.
        address: its address. If it stands for all addresses of the machine, as 0.0.0.0 does, any address is accepted in
            the Host header, and the machine's name.
    """

    def __init__(self, app: ASGIApp, host: str, address: str) -> None:
        self.app = app
        self.names = {"localhost", "127.0.0.1", "::1", host.lower(), address}
        self.all_addresses = ipaddress.ip_address(address).is_unspecified
        if self.all_addresses:
            self.names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        reason = self.refusal(scope["method"], scope["path"], Headers(scope=scope))
        app = JSONResponse({"error": reason}, 403) if reason else self.app
        await app(scope, receive, send_guarded)

    def refusal(self, method: str, path: str, headers: Headers) -> str:
        """Why a request is refused, "" if it is not."""
        host = headers.get("host", "")
        parts = HOST.fullmatch(host)
        name = parts[1].strip("[]").lower() if parts else ""
        if name not in self.names and not (self.all_addresses and _is_address(name)):
            return "this server is known by another name: open it at the address that it printed when it started"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "only pages of this server may ask it"
        opens_page = method in ("GET", "HEAD") and path == "/"
        if not opens_page and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "only pages of this server may ask it"
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
