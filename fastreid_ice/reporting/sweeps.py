"""What clustering gives at several K1 and radii, without truth: as a CSV file, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from ..core import EpsSweep
from ..files import replacing
from .chart import draw_panels

COLUMNS = ("k1", "eps", "clusters", "noise_share", "largest", "expected_f")
HEADERS = ("K1", "eps", "clusters", "noise %", "largest", "expected F")
TABLE_STEP = 0.05  # between the radii in the table; the file has all


def save_sweep(sweeps: Mapping[int, EpsSweep], path: Path) -> None:
    """Writes a CSV file with a row for each K1 and radius, completely or not at all.

    Args:
        sweeps: K1 -> the results at its radii.
        path: the file.

    Raises:
        OSError: it cannot be written.
    """
    lines = [",".join(COLUMNS), *(",".join(f"{value:.6g}" for value in row) for row in _rows(sweeps))]
    with replacing(str(path)) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def sweep_table(sweeps: Mapping[int, EpsSweep]) -> str:
    """The same as text, with radii in steps of 0.05, and ``*`` at the highest expected F-measure of each K1.

    That radius is always there, even between two steps.
    """
    best = {k1: float(sweep.eps[sweep.expected_f.argmax()]) for k1, sweep in sweeps.items()}
    rows = [
        [f"{k1}", f"{eps:.3f}", clusters, f"{100 * noise:.1f}", largest, f"{score:.3f}{' *' * (eps == best[k1])}"]
        for k1, eps, clusters, noise, largest, score in _rows(sweeps)
        if eps == best[k1] or abs(eps / TABLE_STEP - round(eps / TABLE_STEP)) < 1e-6
    ]
    return tabulate(rows, HEADERS, disable_numparse=True, colalign=("right",) * 5 + ("left",))


def draw_sweep(sweeps: Mapping[int, EpsSweep], path: Path, *, num_images: int) -> None:
    """Draws clusters, noise, the largest cluster and the expected F-measure over the radius, a curve for each K1.

    Args:
        sweeps: K1 -> the results at its radii.
        path: the PNG file, written completely or not at all.
        num_images: N, of which the largest cluster is a share.

    Raises:
        OSError: it cannot be written.
    """
    panels = {
        "clusters": lambda sweep: sweep.num_clusters,
        "noise, % of images": lambda sweep: 100 * sweep.noise_share,
        "largest cluster, % of images": lambda sweep: 100 * sweep.largest / max(num_images, 1),
        "expected F-measure": lambda sweep: sweep.expected_f,
    }
    curves = {
        title: {
            f"K1 {k1}": list(zip(sweep.eps.tolist(), heights(sweep).tolist(), strict=True))
            for k1, sweep in sweeps.items()
        }
        for title, heights in panels.items()
    }
    draw_panels(curves, path, title=f"Clusterings of {num_images:,} images", x_label="radius (CLUSTER.EPS)")


def _rows(sweeps: Mapping[int, EpsSweep]) -> list[tuple[int, float, int, float, int, float]]:
    """(K1, eps, clusters, share of noise, images in the largest cluster, expected F-measure) of each clustering."""
    return [
        (k1, *row)
        for k1, sweep in sweeps.items()
        for row in zip(
            sweep.eps.tolist(),
            sweep.num_clusters.tolist(),
            sweep.noise_share.tolist(),
            sweep.largest.tolist(),
            sweep.expected_f.tolist(),
            strict=True,
        )
    ]
