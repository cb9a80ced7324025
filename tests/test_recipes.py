"""The recipes of the configs are the published ones, number by number."""

from __future__ import annotations

import pytest
from fastreid.config import CfgNode, get_cfg

from fastreid_ice import add_ice_config
from fastreid_ice.config import CONFIGS, merge_config_file, value_of
from fastreid_ice.engine import stage_configs

SHARED = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.DEPTH": "50x",
    "MODEL.BACKBONE.LAST_STRIDE": 1,
    "MODEL.HEADS.NAME": "ProxyHead",
    "MODEL.HEADS.WITH_BNNECK": True,
    "MODEL.MOMENTUM.ALPHA": 0.999,
    "CLUSTER.NAME": "JaccardDBSCAN",
    "CLUSTER.K1": 30,
    "CLUSTER.K2": 6,
    "CLUSTER.MIN_SAMPLES": 4,
    "INPUT.FLIP.PROB": 0.5,
    "INPUT.PADDING.SIZE": 10,
    "SOLVER.OPT": "Adam",
    "SOLVER.SCHED": "MultiStepLR",
    "SOLVER.BASE_LR": 0.00035,
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0005,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0005,
    "TEST.METRIC": "cosine",  # features are normalised
}
ICE = SHARED | {
    "MODEL.BN_SPLITS": 4,
    "MODEL.HEADS.POOL_LAYER": "GlobalAvgPool",
    "MODEL.LOSSES.NAME": ("ClusterProxyLoss", "CrossCameraLoss", "HardInstanceLoss", "SoftConsistencyLoss"),
    "MODEL.LOSSES.CLUSTER_PROXY": {"SCALE": 1.0, "TEMPERATURE": 0.5, "LABEL_SMOOTHING": 0.1},
    "MODEL.LOSSES.CROSS_CAMERA": {
        "SCALE": 0.5,
        "TEMPERATURE": 0.07,
        "NUM_NEGATIVES": 50,
        "PROXY_NORM": "coordinate",
        "POSITIVES": "all",
    },
    "MODEL.LOSSES.HARD_INSTANCE": {"SCALE": 1.0, "TEMPERATURE": 0.1},
    "MODEL.LOSSES.SOFT_CONSISTENCY": {"SCALE": 10.0, "TEMPERATURE": 0.4},
    "CLUSTER.FEATURES": "momentum",
    "CLUSTER.EPS": 0.55,
    "INPUT.SIZE_TRAIN": [256, 128],
    "INPUT.SIZE_TEST": [256, 128],
    "INPUT.BLUR": {"ENABLED": True, "PROB": 0.5, "SIGMA": (0.1, 2.0)},
    "INPUT.REA.PROB": 0.6,
    "DATALOADER.NUM_INSTANCE": 4,
    "SOLVER.IMS_PER_BATCH": 32,
    "SOLVER.ITERS_PER_EPOCH": 400,
    "SOLVER.MAX_EPOCH": 40,
    "SOLVER.STEPS": [],
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_FACTOR": 0.1,
    "SOLVER.WARMUP_ITERS": 10 * 400,
    "TEST.ENCODER": "momentum",
}
AGNOSTIC = ICE | {"MODEL.LOSSES.NAME": ("ClusterProxyLoss", "HardInstanceLoss", "SoftConsistencyLoss")}
PROXIES = {"SCALE": 1.0, "TEMPERATURE": 0.05, "UPDATES": ("hardest", "mean"), "MARGINS": (0.2, 0.0), "MOMENTUM": 0.1}
DCMIP = SHARED | {
    "MODEL.BN_SPLITS": 4,
    "MODEL.HEADS.POOL_LAYER": "GeneralizedMeanPoolingP",
    "MODEL.LOSSES.DISCREPANT_PROXY": PROXIES,
    "MODEL.LOSSES.MULTI_INSTANCE": {
        "SCALE": 1.0,
        "TEMPERATURE": 0.05,
        "NUM_INSTANCES": 16,
        "STORE": "online",
        "REPETITION": "always",
        "POSITIVE": "bank",
    },
    "CLUSTER.FEATURES": "online",
    "CLUSTER.EPS": 0.7,
    "INPUT.SIZE_TRAIN": [320, 128],
    "INPUT.SIZE_TEST": [320, 128],
    "INPUT.REA.PROB": 0.5,
    "DATALOADER.NUM_INSTANCE": 16,
    "SOLVER.AMP.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 256,
    "SOLVER.ITERS_PER_EPOCH": 100,
    "SOLVER.STEPS": [20, 40],
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 0,
}
STAGES = [
    {"MODEL.LOSSES.NAME": ("DiscrepantProxyLoss",), "SOLVER.MAX_EPOCH": 40},
    {"MODEL.LOSSES.NAME": ("DiscrepantProxyLoss", "MultiInstanceLoss"), "SOLVER.MAX_EPOCH": 50},
]
CLUSTER_CONTRAST = DCMIP | {
    "MODEL.LOSSES.NAME": ("DiscrepantProxyLoss",),
    "MODEL.LOSSES.DISCREPANT_PROXY": PROXIES | {"UPDATES": ("each",), "MARGINS": ()},
    "CLUSTER.EPS": 0.6,
    "INPUT.SIZE_TRAIN": [256, 128],
    "INPUT.SIZE_TEST": [256, 128],
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.ITERS_PER_EPOCH": 200,
    "SOLVER.MAX_EPOCH": 50,
}
MSMT17_PROXIES = PROXIES | {"UPDATES": ("each", "mean")}
DATA = {"market": "Market1501", "duke": "DukeMTMC", "msmt17": "MSMT17", "veri": "VeRi"}
RECIPES = {
    **{f"ice_{data}": [ICE] for data in ("market", "duke", "msmt17")},
    **{f"ice_agnostic_{data}": [AGNOSTIC] for data in ("market", "duke", "msmt17")},
    "ice_groundtruth_market": [ICE | {"CLUSTER.NAME": "GroundTruth"}],
    "dcmip_market": [DCMIP | {"CLUSTER.EPS": 0.45} | stage for stage in STAGES],
    "dcmip_duke": [DCMIP | stage for stage in STAGES],
    "dcmip_msmt17": [DCMIP | {"MODEL.LOSSES.DISCREPANT_PROXY": MSMT17_PROXIES} | stage for stage in STAGES],
    "cluster_contrast_market": [CLUSTER_CONTRAST],
    "cluster_contrast_msmt17": [CLUSTER_CONTRAST | {"SOLVER.ITERS_PER_EPOCH": 400}],
    "cluster_contrast_veri": [
        CLUSTER_CONTRAST
        | {"SOLVER.ITERS_PER_EPOCH": 400, "INPUT.SIZE_TRAIN": [224, 224], "INPUT.SIZE_TEST": [224, 224]}
    ],
}


def read(name: str) -> CfgNode:
    cfg = get_cfg()
    add_ice_config(cfg)
    merge_config_file(cfg, str(CONFIGS / f"{name}.yml"))
    return cfg


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_as_published(name: str) -> None:
    stages = stage_configs(read(name))
    for stage, recipe in zip(stages, RECIPES[name], strict=True):
        assert {key: value_of(stage, key) for key in recipe} == recipe
        assert stage.DATASETS.NAMES == stage.DATASETS.TESTS == (DATA[name.rpartition("_")[2]],)
