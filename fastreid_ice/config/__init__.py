"""Configs: every key that this plugin adds, and the files that set them."""

from .files import CONFIGS, import_files, merge_config_file, merge_options, merge_values, shipped_file
from .keys import CHOSEN_BY, add_ice_config, lookup, value_of
from .run import Run, Stage, without_keys

__all__ = [
    "CHOSEN_BY",
    "CONFIGS",
    "Run",
    "Stage",
    "add_ice_config",
    "import_files",
    "lookup",
    "merge_config_file",
    "merge_options",
    "merge_values",
    "shipped_file",
    "value_of",
    "without_keys",
]
