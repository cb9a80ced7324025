"""Datasets (registered with fast-reid), views, samplers and loaders."""

from .augment import RandomErasing, RandomFlipCrop, RandomGaussianBlur, build_augmentation
from .corrections import Correction, corrections_of, read_corrections, read_rows
from .crops import CropCache, Crops
from .folder import UnlabeledFolder
from .inspection import inspect_images
from .loaders import PseudoLabelLoader, build_feature_loader, build_test_loader
from .metadata import facts_of
from .samplers import IdentitySampler
from .shape import fit_size
from .synthetic import SyntheticMarket, SyntheticPeople, SyntheticSource
from .training_set import TrainingSet, build_dataset, build_training_set, existing_tests, has_unchecked_images
from .views import build_transforms_of_views, build_views, crop_size

__all__ = [
    "Correction",
    "CropCache",
    "Crops",
    "IdentitySampler",
    "PseudoLabelLoader",
    "RandomErasing",
    "RandomFlipCrop",
    "RandomGaussianBlur",
    "SyntheticMarket",
    "SyntheticPeople",
    "SyntheticSource",
    "TrainingSet",
    "UnlabeledFolder",
    "build_augmentation",
    "build_dataset",
    "build_feature_loader",
    "build_test_loader",
    "build_training_set",
    "build_transforms_of_views",
    "build_views",
    "corrections_of",
    "crop_size",
    "existing_tests",
    "facts_of",
    "fit_size",
    "has_unchecked_images",
    "inspect_images",
    "read_corrections",
    "read_rows",
]
