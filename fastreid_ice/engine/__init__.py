"""Training: features of a whole set, hooks that recluster it, the trainer and its stages, checkpoints, launching."""

from .checkpoint import Checkpointer
from .checks import check_config
from .evaluation import BlockedReidEvaluator
from .features import extract_features
from .hooks import HOOK_REGISTRY, MomentumHook, ReclusterHook
from .labels import PseudoLabels, last_labels
from .launch import launch
from .report import write_report
from .stages import read_run, stage_configs, train_stages
from .trainer import UnsupervisedTrainer

__all__ = [
    "HOOK_REGISTRY",
    "BlockedReidEvaluator",
    "Checkpointer",
    "MomentumHook",
    "PseudoLabels",
    "ReclusterHook",
    "UnsupervisedTrainer",
    "check_config",
    "extract_features",
    "last_labels",
    "launch",
    "read_run",
    "stage_configs",
    "train_stages",
    "write_report",
]
