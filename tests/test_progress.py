"""Progress: a bar on a terminal, one line in the log."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time

import pytest

from fastreid_ice.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_bar_on_a_terminal_and_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: type[io.StringIO]
) -> None:
    monkeypatch.setattr("sys.stderr", stream())
    with caplog.at_level(logging.INFO, logger="fastreid"):
        assert list(progress([3, 1, 2], "Counting")) == [3, 1, 2]
    drawn = sys.stderr.getvalue()
    if stream is Terminal:
        assert "\rCounting:   0%|" in drawn and " 3/3 [" in drawn and drawn.endswith("\n")
    else:
        assert drawn == ""
    assert caplog.messages == ["Counting: 3 done in 0.0 s"]


def test_a_bar_moves_with_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    for item in progress([1, 2], "Reading"):
        assert f" {item - 1}/2 [" in sys.stderr.getvalue()
        time.sleep(0.15)  # a bar is drawn ten times a second


def test_no_thread_is_left_that_a_forked_worker_would_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    before = threading.active_count()
    for _ in progress([1, 2], "Reading"):
        assert threading.active_count() == before


def test_one_item_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    assert list(progress([1], "Reading")) == [1] and sys.stderr.getvalue() == ""


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_nothing_to_do(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]) -> None:
    monkeypatch.setattr("sys.stderr", stream())
    assert list(progress([], "Nothing")) == []
