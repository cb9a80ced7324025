"""Shared by the benchmarks: synthetic people, a fresh process to measure in, and a description of the machine."""

from __future__ import annotations

import argparse
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import faiss
import numba
import numpy as np
import torch
from torch import Tensor

from fastreid_ice.allocator import keep_freed_memory

BLOCK = 16384  # feature rows drawn at a time
WARM_UP = 1000  # feature rows that compile the kernels and start the libraries


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Checks that the number, or each of the numbers, given for an option is at least that in ``least``.

    Raises:
        argparse.ArgumentError: one is smaller.
    """
    for name, number in least.items():
        given = getattr(args, name)
        if min([given] if isinstance(given, int) else given) < number:
            raise argparse.ArgumentError(None, f"--{name} must be at least {number}")


def draw_people(
    path: Path, images: int, dim: int, *, per_person: int, strays: float = 0.0, noise: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Save unit rows (images, dim) in float32 as ``path`` (.npy), block by block; returns their identities.

    A row is its person's centre, an offset of one of six cameras, and noise, up to three times as much in some rows as
    in others. Noise grows with ``dim`` such that people are about equally hard to distinguish in every dimension.

    Args:
        per_person: images of each person.
        strays: share of images, in [0, 1), that belong to nobody.
        noise: strength of the noise, relative to the default.

    Returns:
        (images,) int64 identities in random order; every stray has a separate one.
    """
    rng = np.random.default_rng(seed)
    num_strays = round(images * strays)
    people = max((images - num_strays) // per_person, 1)
    identities = np.append(np.arange(images - num_strays) % people, people + np.arange(num_strays))
    rng.shuffle(identities)
    centres = rng.standard_normal((people + num_strays, dim), np.float32)
    cameras = 0.5 * rng.standard_normal((6, dim), np.float32)
    features = np.lib.format.open_memmap(path, "w+", np.float32, (images, dim))
    for start in range(0, images, BLOCK):
        block = identities[start : start + BLOCK]
        strength = noise * dim**0.25 / 4 * rng.uniform(0.5, 1.5, (len(block), 1)).astype(np.float32)
        rows = strength * rng.standard_normal((len(block), dim), np.float32)
        rows += centres[block] + cameras[rng.integers(6, size=len(block))]
        features[start : start + BLOCK] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    features.flush()
    return identities


class Clock:
    """Measures the time of named stages, on a GPU until their kernels are done."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] = self._now() - start

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


# Takes features, a clock and a device, and returns the result to keep.
Work = Callable[[Tensor, Clock, str], Any]


@dataclass(frozen=True)
class Measurement:
    """One run of a function to measure.

    Attributes:
        result: what the function returned.
        seconds: of the whole, then of each stage.
        peak: largest resident memory of its process so far, in MiB.
        beside: the same minus the memory before the first run, which holds the features and the libraries.
        gpu_peak: largest GPU memory that torch had allocated, in MiB; 0 without a GPU.
    """

    result: Any
    seconds: dict[str, float]
    peak: float
    beside: float
    gpu_peak: float

    @property
    def total(self) -> float:
        return self.seconds["total"]


class Worker:
    """A separate process that holds the features and runs one function on them, as often as asked.

    Peak memory can only be measured in a fresh process: otherwise it may come from earlier work.

    Raises:
        ChildProcessError: the process was killed; and what the function raises.
    """

    def __init__(self, work: Work, features: Path, *, threads: int, device: str) -> None:
        self._work = work
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("forkserver"))
        self._ready = self._pool.submit(_prepare, work, features, threads, device)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def run(self, work: Work | None = None) -> Measurement:
        """Run the function that this process was started for, or another one once."""
        try:
            self._ready.result()
            return self._pool.submit(_measure, work or self._work).result()
        except BrokenProcessPool:
            raise ChildProcessError("the process was killed, probably for lack of memory; try fewer images") from None


_features: Tensor  # of this process, like the two below
_device: str
_resident: float


def _prepare(work: Work, path: Path, threads: int, device: str) -> None:
    global _features, _device, _resident
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    _features, _device = torch.from_numpy(np.load(path, mmap_mode="c")), device
    _features.sum()  # reads the file, so that the memory before a run holds it
    work(_features[:WARM_UP], Clock(device), device)
    _resident = _memory("VmRSS")


def _end_with_parent() -> None:
    """End with the parent: otherwise a pool's process would outlive a killed command, with all its memory."""
    parent_process().join()
    os._exit(1)


def _measure(work: Work) -> Measurement:
    if _device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(_device)
    with clock.stage("total"):
        result = work(_features, clock, _device)
    seconds = {"total": clock.seconds.pop("total"), **clock.seconds}
    peak = _memory("VmHWM")
    gpu_peak = torch.cuda.max_memory_allocated() / 2**20 if _device == "cuda" else 0.0
    return Measurement(result, seconds, peak, peak - _resident, gpu_peak)


def _memory(field: str) -> float:
    """A line of this process's status in /proc, in MiB. Unlike getrusage's, its peak does not include the parent."""
    return _fields("/proc/self/status")[field] / 2**10


def _fields(path: str) -> dict[str, int]:
    """The lines "name: number kB" of a file of /proc."""
    pairs = (line.split(":", 1) for line in Path(path).read_text().splitlines())
    return {name: int(value.split()[0]) for name, value in pairs if value.endswith(" kB")}


def machine(threads: int, device: str) -> str:
    """The machine and the versions of the libraries, in one line."""
    cpu: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        cpu.setdefault(name.strip(), value.strip())
    useful = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in cpu.get("flags", "").split()]
    memory = _fields("/proc/meminfo")["MemTotal"] / 2**20
    parts = [
        f"{cpu.get('model name', platform.machine())} ({', '.join(useful)})",
        f"{threads} threads on {len(os.sched_getaffinity(0))} cores",
        f"{memory:.0f} GiB",
        *([torch.cuda.get_device_name()] if device == "cuda" else []),
        f"Python {platform.python_version()}",
        *(f"{module.__name__} {module.__version__}" for module in (torch, faiss, numba)),
    ]
    return ", ".join(parts)
