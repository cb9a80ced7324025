"""Images in: views, samplers, loaders, and datasets (registered with fast-reid)."""

from .folder import UnlabeledFolder
from .inspection import inspect_images
from .loaders import (
    PseudoLabelLoader,
    TrainingSet,
    build_dataset,
    build_feature_loader,
    build_test_loader,
    build_training_set,
    existing_tests,
)
from .sampler import IdentitySampler
from .synthetic import SyntheticPeople, SyntheticSource
from .views import ImageViews, RandomGaussianBlur, build_strong_transform, build_weak_transform

__all__ = [
    "IdentitySampler",
    "ImageViews",
    "PseudoLabelLoader",
    "RandomGaussianBlur",
    "SyntheticPeople",
    "SyntheticSource",
    "TrainingSet",
    "UnlabeledFolder",
    "build_dataset",
    "build_feature_loader",
    "build_strong_transform",
    "build_test_loader",
    "build_training_set",
    "build_weak_transform",
    "existing_tests",
    "inspect_images",
]
