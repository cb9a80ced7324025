"""What a run leaves for people: labels.csv, tables, charts, and the page about it."""

from .labels import LABELS_FILE, PseudoLabels, centroid_distances, last_labels, save_labels
from .report import WriteReport, write_left_report, write_report
from .tables import (
    CHOSEN,
    describe_evaluations,
    epoch_table,
    first_test_set,
    metrics_file,
    read_epochs,
    read_stage,
    stage_table,
)

__all__ = [
    "CHOSEN",
    "LABELS_FILE",
    "PseudoLabels",
    "WriteReport",
    "centroid_distances",
    "describe_evaluations",
    "epoch_table",
    "first_test_set",
    "last_labels",
    "metrics_file",
    "read_epochs",
    "read_stage",
    "save_labels",
    "stage_table",
    "write_left_report",
    "write_report",
]
