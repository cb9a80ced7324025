"""The examples in README and docs/ work as printed there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fastreid.utils.registry import Registry

from fastreid_ice.clusterers import CLUSTERER_REGISTRY
from fastreid_ice.core import Clusters, ImageTable
from fastreid_ice.losses import LOSS_REGISTRY, Step
from support import ROOT, small_config

README = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def block(language: str, word: str = "") -> str:
    """The code block of a language that contains a word."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in text]
    return found


def test_the_clustering_alone_clusters() -> None:
    features = torch.eye(8).repeat_interleave(20, 0) + 0.01 * torch.randn(160, 8)
    names = {"features": features}
    exec(compile(block("python", "dbscan"), "clustering.py", "exec"), names)
    assert names["labels"].tolist() == [person for person in range(8) for _ in range(20)]


def defined(monkeypatch: pytest.MonkeyPatch, name: str, registry: Registry) -> type:
    """The class ``name`` as a page defines it, registered for this test alone."""
    monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(block("python", f"class {name}("), "page.py", "exec"), names)
    assert registry.get(name) is names[name]
    return registry.get(name)


def test_the_loss_of_the_page_on_extending(monkeypatch: pytest.MonkeyPatch) -> None:
    term = defined(monkeypatch, "CentroidLoss", LOSS_REGISTRY)(scale=2.0)
    features = torch.eye(4).repeat_interleave(5, 0)
    labels, cameras = torch.arange(4).repeat_interleave(5), torch.arange(20) % 3
    term.begin_epoch(Clusters(labels, features, ImageTable(cameras)))
    step = Step(labels, cameras, torch.arange(20), online=3 * features.clone().requires_grad_())
    torch.testing.assert_close(term(step), 2 * F.cross_entropy(torch.eye(4) / 0.05, torch.arange(4)))


def test_the_clusterer_of_the_page_on_extending(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = defined(monkeypatch, "Agglomerative", CLUSTERER_REGISTRY)
    features = F.normalize(torch.eye(4).repeat_interleave(5, 0) + 0.01 * torch.randn(20, 4))
    clusters = cls.from_config(small_config())(features, ImageTable(torch.full((20,), -1)))
    assert clusters.sizes.tolist() == [5, 5, 5, 5] and clusters.num_noise == 0


def test_files_that_readme_names_exist() -> None:
    named = set(re.findall(r"(?:configs|docs|tools|tests)/[\w./-]+\.\w+", README))
    named |= {f"configs/{name}" for name in re.findall(r"`(ice_\w+\.yml)`", README)}
    assert len(named) > 8
    assert not [name for name in sorted(named) if not Path(ROOT, name).is_file()]
