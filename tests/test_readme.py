"""What README and docs/ show works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from support import ROOT

README = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def block(language: str, word: str = "") -> str:
    """The code block of a language that holds a word."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in text]
    return found


def test_the_clustering_alone_clusters() -> None:
    features = torch.eye(8).repeat_interleave(20, 0) + 0.01 * torch.randn(160, 8)
    names = {"features": features}
    exec(compile(block("python", "dbscan"), "clustering.py", "exec"), names)
    assert names["labels"].tolist() == [person for person in range(8) for _ in range(20)]


def test_files_that_readme_names_exist() -> None:
    named = set(re.findall(r"(?:configs|docs|tools|tests)/[\w./-]+\.\w+", README))
    named |= {f"configs/{name}" for name in re.findall(r"`(ice_\w+\.yml)`", README)}
    assert len(named) > 8
    assert not [name for name in sorted(named) if not Path(ROOT, name).is_file()]
