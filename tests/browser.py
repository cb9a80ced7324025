"""A browser that tests can use by keyboard: Chromium without window and network, driven by its debugging pipe."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--proxy-server=127.0.0.1:9"]
# key -> its code, its text
CODES = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " ")}
CODES |= {"ArrowLeft": (37, ""), "ArrowRight": (39, ""), "ArrowDown": (40, "")}
SECONDS = 60  # the longest wait for a page


class BetweenPages(Exception):
    """One page is gone, and the next one does not run scripts yet."""


class Browser:
    """One page, open within the block.

    Args:
        page: the file, or the address of a server on this machine.
        scratch: a folder for the browser's own files.
    """

    def __init__(self, page: Path | str, scratch: Path) -> None:
        read, self._commands = os.pipe()
        self._answers, write = os.pipe()
        # Chromium uses descriptors 3 and 4, so the ends of the pipes that are moved there must have other numbers.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)]
        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={scratch}", "--remote-debugging-pipe"],
            preexec_fn=lambda: [os.dup2(end, number) for number, end in enumerate(ends, 3)],
            pass_fds=(3, 4),
            stderr=subprocess.DEVNULL,
        )
        for end in (read, write, *ends):
            os.close(end)
        self._session: dict[str, str] = {}
        self._number = 0
        self._left = b""
        target = self.call("Target.createTarget", url=page if isinstance(page, str) else page.as_uri())["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        # An empty page comes first.
        self.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Returns once the expression is true."""
        end = time.monotonic() + SECONDS
        while True:
            with suppress(BetweenPages):
                if self.ask(expression):
                    return
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        """Presses and releases one key after the other: those of ``CODES``, or letters."""
        for key in keys:
            code, text = CODES.get(key, (ord(key.upper()[0]), key))
            event = {"key": key, "windowsVirtualKeyCode": code, "text": text}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:  # events come in between
            answer = json.loads(self._read())
            if answer.get("id") == self._number:
                if "Cannot find default execution context" in answer.get("error", {}).get("message", ""):
                    raise BetweenPages
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        while b"\0" not in self._left:
            part = os.read(self._answers, 2**16)
            assert part, "the browser ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return message
