"""Every patch is needed, and does what it says; a host that needs no alias keeps its own modules."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import faiss
import pytest
import torch

from compat_cases import CASES
from fastreid_ice import compat
from fastreid_ice.compat._registry import PATCHES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases run in forks")


@pytest.fixture(scope="module")
def outcomes():
    """{case: [its result with all patches, and without its own]}, from a process that sees no GPU."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("compat_cases.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_patch_has_a_case_a_reason_and_an_end():
    assert set(CASES) == set(PATCHES)
    for name, function in PATCHES.items():
        assert "Until " in function.__doc__, f"{name} does not say until when it is needed"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_passes_with_the_patch(outcomes, name):
    assert outcomes[name][0] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_fails_without_the_patch(outcomes, name):
    if name == "faiss_pointers" and hasattr(faiss, "cast_integer_to_long_ptr"):
        pytest.skip("this faiss still has the old name")
    assert re.search(CASES[name].fails_with, outcomes[name][1], re.DOTALL)


def test_apply_again_does_nothing():
    import fastreid.engine.defaults as defaults

    before = dict(vars(defaults))
    compat.apply()
    assert vars(defaults) == before


def test_aliases_that_the_host_has_are_kept():
    code = """
import collections.abc, sys, types
collections.Mapping = collections.abc.Mapping
six = sys.modules["torch._six"] = types.ModuleType("torch._six")
six.string_classes = str
import fastreid_ice, fastreid.data
assert collections.Mapping is collections.abc.Mapping
assert sys.modules["torch._six"] is six
"""
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, check=True)


def test_fastreid_missing(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ImportError, match="run `pip install --no-deps fastreid==1.4.0`"):
        compat.apply()


def test_core_alone_without_fastreid():
    code = """
import sys, warnings
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec  # what import finds of a package that is not there
PathFinder.find_spec = lambda name, *rest: None if name == "fastreid" else find_spec(name, *rest)
warnings.simplefilter("error")
from fastreid_ice.core import dbscan, jaccard_graph, k_nearest
try:
    import fastreid_ice.config
except UserWarning as said:
    assert "only fastreid_ice.core can be used; for the rest run `pip install" in str(said)
else:
    raise AssertionError("imported")
import numpy as np
features = np.random.default_rng(0).normal(size=(3, 8)).repeat(9, 0)
features += 0.01 * np.random.default_rng(1).normal(size=(27, 8))
ranks = k_nearest(features, 8)[1]
print(dbscan(jaccard_graph(features, ranks, k1=8, k2=3), eps=0.6))
assert not {name.split(".")[0] for name in sys.modules} & {"torchvision", "yacs"}
"""
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert sorted(result.stdout.strip("[]\n").split()) == ["0"] * 9 + ["1"] * 9 + ["2"] * 9


def python(code: str) -> str:
    """What ``code`` prints in a separate process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_core_imports_no_fastreid_and_patches_nothing():
    python("""
import sys, fastreid_ice
assert "torch" not in sys.modules, "the package itself costs nothing"
import fastreid_ice.core
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"fastreid", "torchvision", "PIL", "yacs", "faiss", "sklearn"}, loaded
import collections
assert not hasattr(collections, "Mapping") and "torch._six" not in sys.modules
""")


FROM_OUTSIDE = [
    "import fastreid_ice; import fastreid",
    "import fastreid_ice.core; from fastreid.engine import DefaultTrainer",
    "from fastreid.config import get_cfg; import fastreid_ice.core",
    "from fastreid_ice import add_ice_config",
    "import fastreid_ice; fastreid_ice.losses",
    "import fastreid_ice.config; from fastreid_ice import add_ice_config",
    "import fastreid_ice.reporting, fastreid_ice.engine",
    "import importlib.util, fastreid_ice; importlib.util.find_spec('fastreid'); import fastreid",
]
ROOMS = ["clusterers", "commands.train", "config", "data", "deploy", "engine", "losses", "modeling", "reporting"]
PATCHED = "from fastreid_ice.compat import PATCHES, _applied; assert _applied == set(PATCHES) and len(PATCHES) > 20"
REGISTERED = """
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.data.datasets import DATASET_REGISTRY
META_ARCH_REGISTRY.get("MomentumReID"), DATASET_REGISTRY.get("UnlabeledFolder")
"""


def test_whoever_imports_fastreid_it_is_patched():
    """Each in a fork of a process that has done the slow imports, but neither of the two."""
    cases = [f"{imports}\n{PATCHED}\n{REGISTERED}" for imports in FROM_OUTSIDE]
    cases += [f"import fastreid_ice.{room}\n{PATCHED}" for room in ROOMS]
    python(f"""
import os, faiss, numba, PIL.Image, scipy.sparse, sklearn.cluster, sklearn.metrics, torch.utils.tensorboard
import torchvision.transforms
for case in {cases!r}:
    child = os.fork()
    if not child:
        exec(case)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, case
""")


def test_another_fastreid(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1.3.0")
    monkeypatch.setattr(compat, "_applied", set(PATCHES))
    compat.apply()  # the warning comes once, at the import
    monkeypatch.setattr(compat, "_applied", set())
    with pytest.warns(UserWarning, match="fastreid 1.3.0 is not tested with fastreid-ice"):
        compat._check_version()


@pytest.mark.gpu
def test_amp_on_cuda(recwarn):
    from fastreid.engine.train_loop import AMPTrainer
    from fastreid.utils.events import EventStorage

    from compat_cases import LossModel

    model = LossModel().cuda()
    trainer = AMPTrainer(model, [torch.ones(2, 1, device="cuda")], torch.optim.SGD(model.parameters(), lr=0.1), None)
    before = model.weight.clone()
    with EventStorage():
        trainer.iter = 0
        trainer.run_step()
    assert model.dtype == trainer.amp_type != torch.float32 and not model.weight.equal(before)
    assert not [warning for warning in recwarn if "torch.cuda.amp" in str(warning.message)]
