"""The results of a run for people to read: labels.csv, tables, charts, and the report page."""

from .doubts import describe_doubt
from .labels import PseudoLabels, centroid_distances, save_labels
from .radii import save_radii
from .report import WriteReport, write_left_report, write_report
from .sweeps import draw_sweep, save_sweep, sweep_table
from .tables import (
    CHOSEN,
    describe_evaluations,
    epoch_table,
    first_test_set,
    read_epochs,
    read_stage,
    stage_table,
)

__all__ = [
    "CHOSEN",
    "PseudoLabels",
    "WriteReport",
    "centroid_distances",
    "describe_doubt",
    "describe_evaluations",
    "draw_sweep",
    "epoch_table",
    "first_test_set",
    "read_epochs",
    "read_stage",
    "save_labels",
    "save_radii",
    "save_sweep",
    "stage_table",
    "sweep_table",
    "write_left_report",
    "write_report",
]
