"""Modules that have moved: for one release, importing an old name fails with an error that gives the new name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

MOVED = {
    "clusterers.build": "clusterers.base",
    "config_files": "config",
    "core.evaluation": "core.retrieval",
    "core.shard": "",
    "data.cameras": "data.synthetic.cameras",
    "data.canvas": "data.synthetic.canvas",
    "data.sampler": "data.samplers",
    "data.scenes": "data.synthetic.scenes",
    "data.walkers": "data.synthetic.people",
    "engine.evaluation": "engine.evaluator",
    "engine.export": "deploy.export",
    "engine.files": "files",
    "engine.labels": "reporting.labels",
    "engine.launch": "processes",
    "engine.report": "reporting.report",
    "engine.sheets": "reporting.sheets",
    "losses.build": "losses.base",
}


class MovedFinder(MetaPathFinder):
    """The last finder, reached by names that no other finds; raises ImportError for a name in ``MOVED``."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        package, _, name = fullname.partition(".")
        if package == __package__ and name in MOVED:
            new = MOVED[name]
            raise ImportError(f"{fullname} is {f'{package}.{new} now' if new else 'gone'}; see CHANGELOG.md")
