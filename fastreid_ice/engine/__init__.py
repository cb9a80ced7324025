"""Training: features of a whole set, hooks that recluster it, the trainer and its stages, checkpoints."""

from .checkpoint import Checkpointer
from .checks import check_config
from .evaluator import BlockedReidEvaluator
from .features import extract_features
from .hooks import HOOK_REGISTRY, MomentumHook, ReclusterHook
from .setup import build_config, build_own_config, build_trained_config
from .stages import train_stages
from .trainer import UnsupervisedTrainer

__all__ = [
    "HOOK_REGISTRY",
    "BlockedReidEvaluator",
    "Checkpointer",
    "MomentumHook",
    "ReclusterHook",
    "UnsupervisedTrainer",
    "build_config",
    "build_own_config",
    "build_trained_config",
    "check_config",
    "extract_features",
    "train_stages",
]
