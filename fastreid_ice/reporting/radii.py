"""radii.csv: what clustering gives at each of the radii that ``CLUSTER.AUTO_EPS`` compared."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from ..core import EpsSweep
from ..errors import InputError
from ..files import replacing
from .chart import Chart, line_chart

COLUMNS = [field.name for field in fields(EpsSweep)]


def save_radii(path: Path, sweep: EpsSweep) -> None:
    """Writes a row for each radius."""
    rows = zip(*(getattr(sweep, name).tolist() for name in COLUMNS), strict=True)
    lines = [",".join(COLUMNS), *(",".join(f"{value:.6g}" for value in row) for row in rows)]
    with replacing(str(path)) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def radii_chart(path: Path) -> Chart:
    """The expected F-measure, which the chosen radius maximises, and the share of noise, over the radius.

    Raises:
        InputError: no such file, or one with other content.
    """
    try:
        header, *rows = path.read_text().splitlines()
        values = np.array([row.split(",") for row in rows], dtype=float)
        sweep = dict(zip(COLUMNS, values.T, strict=True))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not {','.join(COLUMNS)}: {error}") from error
    if header != ",".join(COLUMNS):
        raise InputError(f"{path}: its first line must be {','.join(COLUMNS)}")
    curves = {"expected F-measure": sweep["expected_f"], "share of noise": sweep["noise_share"]}
    return line_chart(
        {name: list(zip(sweep["eps"].tolist(), heights.tolist(), strict=True)) for name, heights in curves.items()},
        title="Radii that CLUSTER.AUTO_EPS compared at the last clustering",
        marks={float(sweep["eps"][sweep["expected_f"].argmax()]): "chosen"},
        x_label="radius",
    )
