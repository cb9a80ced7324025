"""The command ``fastreid-ice``: each sub-command is a tool of tools/, with all its arguments.

A module beside the package and not in it, since importing the package imports torch, and a list of commands should not
wait for that.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

COMMANDS = {
    "train": ("train_net.py", "train, resume or evaluate what a config describes"),
    "recluster": ("recluster.py", "cluster features or a folder of images once, into labels.csv"),
    "report": ("report.py", "write report.html about a run: curves, clusters to look at, a search over all images"),
    "label": ("label.py", "hand out pseudo labels as a CSV file or a folder of links per cluster"),
    "export": ("export.py", "export a trained encoder to ONNX and to fast-reid without this plugin"),
    "compare": ("compare.py", "train several configs with the same seeds and put them in a table and a picture"),
    "bench": ("benchmark.py", "measure reclustering, steps, input, evaluation and whole recipes"),
}


def usage() -> str:
    lines = [f"  {name:10} {sentence}" for name, (_, sentence) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fastreid-ice COMMAND ...",
            "",
            "Person re-identification from unlabelled crops, on fast-reid.",
            "",
            *lines,
            "",
            "fastreid-ice COMMAND --help tells about each. A config that is not found in the current folder, such as",
            "configs/ice_demo.yml or ice_demo.yml, is the one that comes with the package.",
        ]
    )


def tool(command: str) -> Path:
    """The file of a sub-command: in the package where a wheel is installed, beside it in a checkout."""
    package = Path(find_spec("fastreid_ice").origin).parent
    file, _ = COMMANDS[command]
    inside = package / "tools" / file
    return inside if inside.is_file() else package.parent / "tools" / file


def main() -> None:
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        sys.exit(f"error: no command {command!r}; choose from {', '.join(COMMANDS)}")
    # In place of this process: the tool is the main script then, which a run of several processes imports in each.
    os.execv(sys.executable, [sys.executable, str(tool(command)), *arguments])
