"""Memory that is freed is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from support import ROOT

# Tensors of 8 and 24 MB come and go together, as in a step; counts the pages that the system has to clear for them.
CODE = """
import resource
import torch
from fastreid_ice.allocator import keep_freed_memory
print(keep_freed_memory())
def step():
    return [torch.zeros(size * 2**20 // 4) for size in (8, 24, 8)]
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def outcome(**variables: str) -> tuple[str, int]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    changed, faults = done.stdout.split()
    return changed, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides itself")
def test_pages_are_cleared_once() -> None:
    changed, faults = outcome(MALLOC_TRIM_THRESHOLD_="", MALLOC_MMAP_THRESHOLD_="", LD_PRELOAD="")
    assert changed == "True" and faults < 1000
    changed, faults = outcome(MALLOC_TRIM_THRESHOLD_="1000000")
    assert changed == "False" and faults > 10_000, "the user's own setting counts"
