"""Runs commands and functions in processes of their own, without the seconds that their imports take.

A server that has imported everything is forked for each process. Arguments, folder, environment, output, signals and
exit code are those of a process that a shell starts. Tests about starting and importing itself start Python:
``FASTREID_ICE`` in support.py.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastreid_ice.commands.__main__ import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fastreid_ice.testing", "fastreid_ice.commands.train", "fastreid_ice.commands.compare"])


class Process:
    """A function in a process that leads a session of its own; has the methods of ``subprocess.Popen`` that tests use.

    Args:
        function: at the top level of a module; it is called with ``arguments``, which can be pickled.
        folder: the current folder of the process; by default that of the tests.
        environment: changes of the environment.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._outputs = tempfile.TemporaryDirectory()
        self._files = [Path(self._outputs.name, name) for name in ("stdout", "stderr")]
        place = (str(folder or Path.cwd()), {**os.environ, **(environment or {})})
        self._process = SERVER.Process(target=_run, args=(self._files, *place, function, arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; the negative number of the signal that killed it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self.returncode

    @property
    def printed(self) -> str:
        """What it has printed to stdout so far."""
        return self._files[0].read_text() if self._files[0].exists() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end, and returns what it printed to stdout and stderr."""
        self.wait(timeout)
        printed, errors = (file.read_text() for file in self._files)
        return printed, errors

    def kill(self) -> None:
        self._process.kill()


def _run(
    files: list[Path], folder: str, environment: dict[str, str], function: Callable[..., Any], arguments: tuple
) -> None:
    os.setsid()
    # If the tests run in the background of a script, the server has inherited that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # this server's is not that of a run's loader workers
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        with file.open("w") as output:
            os.dup2(output.fileno(), number)
    function(*arguments)


def start_command(*arguments: object, **place: Any) -> Process:
    """Starts ``fastreid-ice``; ``place`` is the folder and environment of ``Process``."""
    return Process(_command, [*map(str, arguments)], **place)


def run_command(*arguments: object, **place: Any) -> subprocess.CompletedProcess[str]:
    """Runs ``fastreid-ice`` to its end; ``place`` as in ``start_command``."""
    process = start_command(*arguments, **place)
    printed, errors = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, printed, errors)


def _command(arguments: list[str]) -> None:
    sys.argv = ["fastreid-ice", *arguments]
    main()
