"""A server of this package in a process of its own, and requests to it."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Process


@dataclass
class Server:
    """A process that answers at an address."""

    process: Process
    address: str

    def ask(self, path: str, data: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers, and the content: JSON as a dict, all else as bytes."""
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content = answer.read()
        is_json = answer.headers["content-type"] == "application/json"
        return answer.status, answer.headers, json.loads(content) if is_json else content

    def memory(self, name: str) -> int:
        """VmRSS, the memory that the process has, or VmHWM, the most that it had; in bytes."""
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1])


def address_of(process: Process, words: str) -> str:
    """The address that a server prints once it answers; ``words`` matches what follows on the line."""
    end = time.monotonic() + 60
    while not (found := re.match(rf"(http://\S+)/ {words}", process.printed)):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    return found[1]
