"""Training: features of a whole set, hooks that recluster it, the trainer and its stages, checkpoints."""

from .checkpoint import Checkpointer
from .checks import check_config
from .evaluator import BlockedReidEvaluator
from .fallback import fall_back
from .features import extract_features
from .hooks import HOOK_REGISTRY, MomentumHook, ReclusterHook
from .stages import read_run, stage_configs, train_stages
from .trainer import UnsupervisedTrainer

__all__ = [
    "HOOK_REGISTRY",
    "BlockedReidEvaluator",
    "Checkpointer",
    "MomentumHook",
    "ReclusterHook",
    "UnsupervisedTrainer",
    "check_config",
    "extract_features",
    "fall_back",
    "read_run",
    "stage_configs",
    "train_stages",
]
