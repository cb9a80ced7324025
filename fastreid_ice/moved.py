"""Modules that have moved: their old names fail with the new one, for one release."""

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
    """Asked last, for what no other finder knows; raises ImportError for a name of ``MOVED``."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        package, _, name = fullname.partition(".")
        if package == __package__ and name in MOVED:
            new = MOVED[name]
            raise ImportError(f"{fullname} is {f'{package}.{new} now' if new else 'gone'}; see CHANGELOG.md")
