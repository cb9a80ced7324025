"""Progress: a bar on a terminal, plain lines in the log."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from fastreid_ice import progress as module
from fastreid_ice.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, caplog, stream: type[io.StringIO]) -> None:
    monkeypatch.setattr("sys.stderr", stream())
    with caplog.at_level(logging.INFO, logger="fastreid"):
        assert list(progress([3, 1, 2], "Counting")) == [3, 1, 2]
    drawn = sys.stderr.getvalue()
    assert ("\rCounting [" in drawn and drawn.endswith("3/3\n")) == (stream is Terminal)
    assert caplog.messages == ["Counting: 3 done in 0.0 s"]


def test_long_work_is_logged_on_the_way(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="fastreid"):
        list(progress(["a", "b"], "Reading"))
    assert caplog.messages[:2] == ["Reading: 1 of 2", "Reading: 2 of 2"]


def test_nothing_to_do() -> None:
    assert list(progress([], "Nothing")) == []
