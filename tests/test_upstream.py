"""The patches of docs/upstream repair fastreid each alone, and together cover everything that compat works around.

Run as a script, this applies them to copies of the installed fastreid and prints as JSON the results of the tests that
they add, before, with each patch alone, and with all of them, and the results of the reproductions in their
descriptions before and with all of them. Each run is a fork of a process that has imported torch but neither fastreid
nor this package.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "upstream"
NAMES = sorted(path.stem for path in FOLDER.glob("*.patch"))
FIRST = NAMES[:2]  # on a current Python and torch fastreid cannot be imported without these


def paths_of(name: str) -> set[str]:
    """The files that a patch touches."""
    return set(re.findall(r"^\+\+\+ b/(.*)$", (FOLDER / f"{name}.patch").read_text(), re.MULTILINE))


@functools.cache
def index() -> dict[str, tuple[str, list[str], set[str]]]:
    """{name: (title, entries of compat, files)} from the table in the README."""
    rows = re.findall(r"^\| \[(\S+)\]\(\S+\) \| (.*) \| (.*) \| (.*) \|$", (FOLDER / "README.md").read_text(), re.M)
    return {
        name: (title, re.findall(r"`(\w+)`", entries), set(re.findall(r"`(\S+)`", files)))
        for name, title, entries, files in rows
    }


def test_index_describes_the_patches():
    assert list(index()) == NAMES
    for name, (title, entries, files) in index().items():
        assert (FOLDER / f"{name}.md").read_text().startswith(f"# {title}\n"), name
        assert entries, name
        assert {f"fastreid/{file}" for file in files} == {path for path in paths_of(name) if "tests/" not in path}


def test_every_entry_of_compat_is_covered():
    from fastreid_ice.compat._registry import PATCHES

    readme = (FOLDER / "README.md").read_text()
    ours = re.findall(r"^- `(\w+)`: ", readme.partition("## Not errors of fast-reid")[2], re.MULTILINE)
    covered = {entry for _, entries, _ in index().values() for entry in entries}
    assert covered | set(ours) == set(PATCHES)
    assert not covered & set(ours)


@pytest.fixture(scope="module")
def outcomes():
    """{"before", "alone" or "together": {patch: {"tests": {test: error}, "reproduction": error}}}; no error is ""."""
    if not hasattr(os, "fork") or shutil.which("git") is None:
        pytest.skip("git applies the patches, and the tests run in forks")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fails_before(outcomes, name):
    assert any(outcomes["before"][name]["tests"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_passes_alone(outcomes, name):
    tests = outcomes["alone"][name]["tests"]
    assert tests and not any(tests.values()), tests


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_passes_together(outcomes, name):
    tests = outcomes["together"][name]["tests"]
    assert tests and not any(tests.values()), tests


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_reproduction(outcomes, name):
    error = reproduction(name)[1]
    assert error in outcomes["before"][name]["reproduction"]
    assert error not in outcomes["together"][name]["reproduction"]


def reproduction(name: str) -> tuple[str, str]:
    """The code in the description of a patch, and the error in which it ends, from the comment in its last line."""
    code = re.search(r"```python\n(.*)\n```", (FOLDER / f"{name}.md").read_text(), re.DOTALL)[1]
    error = code.rpartition("  # ")[2]
    return code, "TimeoutError" if error == "waits for ever" else error


def patched_copy(folder: Path, names: Sequence[str], tests: Sequence[str]) -> Path:
    """A copy of fastreid with the patches ``names`` and, of the patches ``tests``, the tests only."""
    source = find_spec("fastreid").submodule_search_locations[0]
    # Compiled files of the ranking would come from the unpatched source.
    shutil.copytree(source, folder / "fastreid", ignore=shutil.ignore_patterns("*.so", "*.c", "build"))
    # A git repository around the folder must not matter.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    for chosen, options in ((names, []), (tests, ["--include=tests/*"])):
        if chosen:
            paths = [str(FOLDER / f"{name}.patch") for name in chosen]
            subprocess.run(["git", "apply", *options, *paths], cwd=folder, env=environment, check=True)
    return folder


def in_a_fork(function: Callable[[], Any]) -> Any:
    """The result of a function that runs in a child without output, so that its changes to the process are lost."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        with os.fdopen(write, "w") as pipe:
            json.dump(function(), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return json.loads(result)


def run(folder: Path, names: Sequence[str], *, with_reproductions: bool) -> dict[str, dict[str, Any]]:
    """The results of the tests of the patches ``names`` in the copy in ``folder``, and of their reproductions."""
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    with contextlib.suppress(ImportError):
        import fastreid.data
        import fastreid.engine  # noqa: F401  once for all
    ended: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names if with_reproductions else ():
        ended[name]["reproduction"] = in_a_fork(functools.partial(reproduce, name))
    for name in names:
        modules = [Path(path).stem for path in paths_of(name) if path.startswith("tests/")]
        suite = unittest.defaultTestLoader.loadTestsFromNames(modules)
        tests = [test.id() for test in _flatten(suite)]
        result = unittest.TestResult()
        suite.run(result)
        errors = {test.id(): error[-2000:] for test, error in result.failures + result.errors}
        ended[name]["tests"] = dict.fromkeys(tests, "") | errors
    assert "fastreid_ice" not in sys.modules
    assert sys.modules["fastreid"].__file__.startswith(str(folder))
    return ended


def _flatten(suite: unittest.TestSuite | unittest.TestCase) -> list[unittest.TestCase]:
    return [suite] if isinstance(suite, unittest.TestCase) else [test for part in suite for test in _flatten(part)]


def reproduce(name: str) -> str:
    def stop(*_: Any) -> None:
        raise TimeoutError

    code, error = reproduction(name)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(3 if error == "TimeoutError" else 60)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException as error:  # some patches prevent a SystemExit
            return f"{type(error).__name__}: {error}"
    return ""


def run_all() -> dict[str, dict[str, Any]]:
    # Before the forks, so that these need not import them again.
    import faiss  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import torchvision.transforms  # noqa: F401
    from tensorboard.backend.event_processing import event_accumulator  # noqa: F401

    outcomes: dict[str, dict[str, Any]] = {"before": {}, "alone": {}, "together": {}}

    def note(kind: str, applied: Sequence[str], names: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = patched_copy(Path(folder), applied, names if kind == "before" else ())
            outcomes[kind] |= in_a_fork(lambda: run(copy, names, with_reproductions=kind != "alone"))

    for count, names in ((0, NAMES[:1]), (1, NAMES[1:2]), (2, NAMES[2:])):
        note("before", FIRST[:count], names)
        for name in names:
            note("alone", [*FIRST[:count], name], [name])
    note("together", NAMES, NAMES)
    return outcomes


if __name__ == "__main__":
    json.dump(run_all(), sys.stdout)
