"""The arrows of the architecture: which room of the package may import which."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from fastreid_ice.moved import MOVED

PACKAGE = Path(__file__).parent.parent / "fastreid_ice"

ALLOWED = {
    "errors": set(),
    "allocator": set(),
    "moved": set(),
    "progress": set(),
    "processes": {"errors"},
    "files": {"errors", "processes"},
    "compat": {"core"},
    "core": set(),
    "config": {"errors"},
    "losses": {"core", "config", "errors"},
    "clusterers": {"core", "config", "errors", "progress"},
    "modeling": {"core", "config", "errors", "losses"},
    "data": {"core", "config", "errors", "progress"},
    "reporting": {"core", "config", "errors", "files", "progress"},
    "engine": {
        *("core", "compat", "config", "errors", "files", "processes", "progress"),
        *("losses", "clusterers", "modeling", "data", "reporting"),
    },
    "deploy": {
        *("core", "config", "errors", "files"),
        *("modeling", "data", "engine", "reporting"),
    },
    # For users' own classes: only tests import it.
    "testing": {"core", "config", "errors", "processes", "losses", "clusterers", "modeling", "data", "engine"},
    "commands": {
        *("core", "config", "errors", "files", "processes", "progress", "allocator"),
        *("clusterers", "modeling", "data", "engine", "reporting", "deploy"),
    },
}


def rooms_imported_by(path: Path) -> set[str]:
    """The rooms of this package and the other top-level packages that the file imports, without its own room."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level]
            names = node.module.split(".") if node.module else [alias.name for alias in node.names]
            found |= {f"fastreid_ice.{names[0]}"} if not base else set()
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room == "__init__":
        return
    ours = {name.split(".")[1] for name in rooms_imported_by(path) if name.startswith("fastreid_ice.")}
    assert ours <= ALLOWED[room], f"{path.name} of {room} imports {ours - ALLOWED[room]}"
    assert "fastreid_ice" not in rooms_imported_by(path), "import the package's own rooms relatively"


@pytest.mark.parametrize("name", ["errors", "files", "moved", "processes", "progress"])
def test_modules_of_no_room_import_fastreid_late(name: str) -> None:
    """With fastreid comes the engine, which imports them: whoever imports one first would find it half imported."""
    module = ast.parse((PACKAGE / f"{name}.py").read_text())
    imported = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("fastreid" in (getattr(node, "module", None) or node.names[0].name) for node in imported)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_moved_modules_name_the_new_ones(old: str, new: str) -> None:
    with pytest.raises(
        ImportError, match=f"^fastreid_ice.{old} is {f'fastreid_ice.{new} now' if new else 'gone'}; see"
    ):
        import_module(f"fastreid_ice.{old}")
    if new:
        import_module(f"fastreid_ice.{new}")


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda path: path.name)
def test_core_is_pure(path: Path) -> None:
    assert not rooms_imported_by(path) & {"fastreid", "torchvision", "PIL", "yacs"}
