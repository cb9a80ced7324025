"""The recipes of the configs are those of the published code, constant by constant, with the source of each.

ICE: `chenhao2345/ICE` a206eb9. CC (Cluster Contrast): `alibaba/cluster-contrast-reid` 57b62e9. DCMIP:
`Trangle12/DCMIP` dfe3563, which calls itself unofficial and logs the published figures. U and T are
examples/unsupervised_train.py and ice/trainers.py of the first; E, C and R are
examples/cluster_contrast_train_usl.py, clustercontrast/models/cm.py and clustercontrast/trainers.py of the others.
O2CAP: `Terminator8758/O2CAP` a893b7a, whose constants are the defaults of train.py; those of SHARED are the same there.
TransReID-SSL: `damo-cv/TransReID-SSL` fc39e88, a copy of Cluster Contrast with vision transformers; there E is
cluster-contrast-reid/examples/cluster_contrast_train_usl.py and V clustercontrast/models/vision_transformer.py.
Known differences are listed in docs/differences.md.
"""

from __future__ import annotations

from typing import Any

import pytest
from fastreid.config import CfgNode, get_cfg

from fastreid_ice import add_ice_config
from fastreid_ice.config import CONFIGS, Run, merge_config_file, value_of

# Config key -> value, and where it is in the published code.
Recipe = dict[str, tuple[Any, str]]

ERASING: Recipe = {
    "INPUT.REA.AREA": ((0.02, 0.4), "RandomErasing of transforms.py: sl, sh"),
    "INPUT.REA.RATIO": ((0.3, 3.333), "RandomErasing of transforms.py: r1, 1 / r1"),
    "INPUT.REA.RATIO_DRAW": ("uniform", "RandomErasing of transforms.py: random.uniform"),
    "INPUT.REA.ATTEMPTS": (100, "RandomErasing of transforms.py: range(100)"),
    "INPUT.REA.VALUE": ([152.0, 142.3, 126.8], "U:50-51, E:54-55: (0.485, 0.456, 0.406) after Normalize"),
}
SHARED: Recipe = ERASING | {
    "MODEL.BACKBONE.NAME": ("build_resnet_backbone", "U:258, E:252"),
    "MODEL.BACKBONE.DEPTH": ("50x", "U:258, E:252"),
    "MODEL.BACKBONE.LAST_STRIDE": (1, "ice/models/resnet.py:32-39, clustercontrast/models/resnet.py:32-37"),
    "MODEL.HEADS.NAME": ("ProxyHead", "batch-norm neck without a bias that trains: resnet.py:60-62, 59-60"),
    "MODEL.HEADS.WITH_BNNECK": (True, "resnet.py:60-62, 59-60"),
    "MODEL.MOMENTUM.ALPHA": (0.999, "U:265; DCMIP R:124"),
    "MODEL.BN_SPLITS": (4, "nn.DataParallel on four GPUs: U:100-101, README.md:32; E:101, README.md:70"),
    "CLUSTER.NAME": ("JaccardDBSCAN", "U:164, E:160"),
    "CLUSTER.K1": (30, "U:287, E:254"),
    "CLUSTER.K2": (6, "U:159, E:256"),
    "CLUSTER.MIN_SAMPLES": (4, "U:289, E:160"),
    "INPUT.FLIP.PROB": (0.5, "U:47, E:50"),
    "INPUT.PADDING.SIZE": (10, "U:45, E:51"),
    "SOLVER.OPT": ("Adam", "U:145, E:140"),
    "SOLVER.SCHED": ("MultiStepLR", "U:147; E:141 as steps of equal length"),
    "SOLVER.BASE_LR": (0.00035, "U:263, E:267"),
    "SOLVER.WEIGHT_DECAY": (0.0005, "U:266, E:269"),
    "SOLVER.WEIGHT_DECAY_NORM": (0.0005, "U:144, E:139: all parameters"),
    "SOLVER.WEIGHT_DECAY_BIAS": (0.0005, "U:144, E:139: all parameters"),
    "TEST.METRIC": ("cosine", "features are normalised: ice/models/resnet.py:89-91"),
}
ICE: Recipe = SHARED | {
    "MODEL.HEADS.POOL_LAYER": ("GlobalAvgPool", "ice/models/resnet.py:40"),
    "MODEL.LOSSES.NAME": (
        ("ClusterProxyLoss", "CrossCameraLoss", "HardInstanceLoss", "SoftConsistencyLoss"),
        "T:161",
    ),
    "MODEL.LOSSES.CLUSTER_PROXY": (
        {"SCALE": 1.0, "TEMPERATURE": 0.5, "LABEL_SMOOTHING": 0.1},
        "T:97, T:151, U:273, ice/loss/crossentropy.py:19",
    ),
    "MODEL.LOSSES.CROSS_CAMERA": (
        {"SCALE": 0.5, "TEMPERATURE": 0.07, "NUM_NEGATIVES": 50, "PROXY_NORM": "coordinate", "POSITIVES": "all"},
        "T:136, T:30, T:31, T:121, T:126-132",
    ),
    "MODEL.LOSSES.HARD_INSTANCE": ({"SCALE": 1.0, "TEMPERATURE": 0.1}, "T:152, U:274"),
    "MODEL.LOSSES.SOFT_CONSISTENCY": ({"SCALE": 10.0, "TEMPERATURE": 0.4}, "T:154-159, U:275"),
    "MODEL.MOMENTUM.ONLINE_VIEW": (True, "T:140-141"),
    "MODEL.MOMENTUM.SHUFFLE_BN": (True, "T:94, T:139-149"),
    "CLUSTER.FEATURES": ("momentum", "U:156-159"),
    "CLUSTER.EPS": (0.55, "U:286"),
    "INPUT.SIZE_TRAIN": ([256, 128], "U:248-251"),
    "INPUT.SIZE_TEST": ([256, 128], "U:248-251"),
    "INPUT.BLUR": ({"ENABLED": True, "PROB": 0.5, "SIGMA": (0.1, 2.0)}, "U:48"),
    "INPUT.REA.PROB": (0.6, "U:51"),
    "DATALOADER.SAMPLING": ("spread", "U:63, ice/utils/data/sampler.py:189-251"),
    "DATALOADER.NUM_INSTANCE": (4, "U:252"),
    "SOLVER.AMP.ENABLED": (False, "no amp anywhere"),
    "SOLVER.IMS_PER_BATCH": (32, "U:246"),
    "SOLVER.ITERS_PER_EPOCH": (400, "U:268"),
    "SOLVER.MAX_EPOCH": (40, "U:267"),
    "SOLVER.STEPS": ([], "U:277"),
    "SOLVER.WARMUP_METHOD": ("linear", "ice/utils/lr_scheduler.py:43-57, in steps of an epoch there"),
    "SOLVER.WARMUP_FACTOR": (0.1, "U:147"),
    "SOLVER.WARMUP_ITERS": (10 * 400, "U:276"),
    "TEST.ENCODER": ("momentum", "U:151, U:228"),
    "TEST.EVAL_PERIOD": (1, "U:272"),
}
AGNOSTIC: Recipe = ICE | {
    "MODEL.LOSSES.NAME": (("ClusterProxyLoss", "HardInstanceLoss", "SoftConsistencyLoss"), "the paper's ablation")
}
PROXIES = {"SCALE": 1.0, "TEMPERATURE": 0.05, "UPDATES": ("hardest", "mean"), "MARGINS": (0.2, 0.0), "MOMENTUM": 0.1}
BANK = {
    "SCALE": 1.0,
    "TEMPERATURE": 0.05,
    "NUM_INSTANCES": 16,
    "STORE": "online",
    "REPETITION": "always",
    "POSITIVE": "bank",
}
CLUSTER_CONTRAST: Recipe = SHARED | {
    "MODEL.HEADS.POOL_LAYER": ("GeneralizedMeanPoolingP", "E:285, clustercontrast/models/pooling.py:79-83"),
    "MODEL.LOSSES.NAME": (("DiscrepantProxyLoss",), "C:90-104"),
    "MODEL.LOSSES.DISCREPANT_PROXY": (
        PROXIES | {"UPDATES": ("each",), "MARGINS": ()},
        "README.md:78 --momentum 0.1, E:277, C:27-30",
    ),
    "CLUSTER.FEATURES": ("online", "E:152-154"),
    "CLUSTER.EPS": (0.6, "README.md:78"),
    "INPUT.SIZE_TRAIN": ([256, 128], "E:242-243"),
    "INPUT.SIZE_TEST": ([256, 128], "E:242-243"),
    "INPUT.BLUR": ({"ENABLED": False, "PROB": 0.5, "SIGMA": (0.1, 2.0)}, "E:48-56"),
    "INPUT.REA.PROB": (0.5, "E:55"),
    "DATALOADER.SAMPLING": ("anchor", "E:64, clustercontrast/utils/data/sampler.py:69-107"),
    "DATALOADER.NUM_INSTANCE": (16, "README.md:78"),
    "SOLVER.AMP.ENABLED": (False, "no amp anywhere"),
    "SOLVER.IMS_PER_BATCH": (256, "README.md:78"),
    "SOLVER.ITERS_PER_EPOCH": (200, "README.md:78"),
    "SOLVER.MAX_EPOCH": (50, "E:270"),
    "SOLVER.STEPS": ([20, 40], "E:272: every 20 epochs"),
    "SOLVER.GAMMA": (0.1, "E:141"),
    "SOLVER.WARMUP_ITERS": (0, "E:141"),
    "TEST.ENCODER": ("online", "E:136, E:212"),
    "TEST.EVAL_PERIOD": (10, "E:276"),
}
DCMIP: Recipe = CLUSTER_CONTRAST | {
    "MODEL.LOSSES.DISCREPANT_PROXY": (PROXIES, "E:427, E:445, C:74-86, C:175-186"),
    "MODEL.LOSSES.MULTI_INSTANCE": (BANK, "E:343, R:111, E:326-338, C:189-197"),
    "MODEL.MOMENTUM.SHUFFLE_BN": (False, "R:106-107"),
    "CLUSTER.EPS": (0.7, "run_code.sh:2, run_code.sh:12"),
    "INPUT.SIZE_TRAIN": ([320, 128], "E:405-406"),
    "INPUT.SIZE_TEST": ([320, 128], "E:405-406"),
    "SOLVER.AMP.ENABLED": (True, "R:26, R:36, R:92, R:103"),
    "SOLVER.ITERS_PER_EPOCH": (100, "run_code.sh:7"),
}
STAGES: list[Recipe] = [
    {
        "MODEL.LOSSES.NAME": (("DiscrepantProxyLoss",), "E:210"),
        "SOLVER.MAX_EPOCH": (40, "run_code.sh:7"),
        "TEST.ENCODER": ("online", "E:154"),
    },
    {
        "MODEL.LOSSES.NAME": (("DiscrepantProxyLoss", "MultiInstanceLoss"), "R:113"),
        "SOLVER.MAX_EPOCH": (50, "run_code.sh:7"),
        "TEST.ENCODER": ("momentum", "E:369-382: both are evaluated, and the figures are the momentum encoder's"),
        "TEST.BOTH_ENCODERS": (True, "E:369-370"),
        "MODEL.START_FROM": ("best", "E:266-268"),
    },
]
O2CAP: Recipe = SHARED | {
    "MODEL.HEADS.POOL_LAYER": ("GlobalAvgPool", "train.py: -pool_type"),
    "MODEL.BN_SPLITS": (1, "README: one GPU"),
    "MODEL.LOSSES.NAME": (("OfflineOnlineProxyLoss",), "train.py:176"),
    "MODEL.LOSSES.O2CAP": (
        {
            "SCALE": 1.0,
            "PARTS": ("offline", "online"),
            "TEMPERATURE": 0.07,
            "NUM_NEGATIVES": 50,
            "NUM_POSITIVES": 3,
            "BALANCE": 0.15,
            "MOMENTUM": 0.2,
        },
        "train.py:175-176, the class's defaults in reid/models/o2cap.py",
    ),
    "CLUSTER.FEATURES": ("online", "train.py: extract_features(model, cluster_loader)"),
    "CLUSTER.K1": (20, "train.py: --k1"),
    "CLUSTER.EPS": (0.5, "train.py: --eps"),
    "INPUT.SIZE_TRAIN": ([256, 128], "train.py: --height, --width"),
    "INPUT.SIZE_TEST": ([256, 128], "train.py: --height, --width"),
    "INPUT.BLUR": ({"ENABLED": False, "PROB": 0.5, "SIGMA": (0.1, 2.0)}, "train.py: get_train_loader"),
    "INPUT.REA.PROB": (0.5, "train.py: get_train_loader"),
    "DATALOADER.SAMPLING": ("camera", "train.py: ClassUniformlySampler(train_set, class_position=4)"),
    "DATALOADER.NUM_INSTANCE": (4, "train.py: --num_instances"),
    "SOLVER.AMP.ENABLED": (False, "no amp anywhere"),
    "SOLVER.IMS_PER_BATCH": (32, "train.py: --batch_size"),
    "SOLVER.ITERS_PER_EPOCH": (400, "train.py: --iters"),
    "SOLVER.MAX_EPOCH": (50, "train.py: --epochs"),
    "SOLVER.STEPS": ([20, 40], "train.py: milestones"),
    "SOLVER.GAMMA": (0.1, "train.py: WarmupMultiStepLR"),
    "SOLVER.WARMUP_FACTOR": (0.01, "train.py: warmup_factor"),
    "SOLVER.WARMUP_ITERS": (4000, "train.py: warmup_iters=10 epochs"),
    "TEST.ENCODER": ("online", "train.py: Evaluator(model)"),
    "TEST.EVAL_PERIOD": (10, "train.py: --eval-step"),
}
IBN: Recipe = {
    "MODEL.BACKBONE.WITH_IBN": (True, "the authors' table: IBN"),
    "MODEL.HEADS.POOL_LAYER": ("GeneralizedMeanPoolingP", "the authors' table: GeM"),
}
VIT: Recipe = CLUSTER_CONTRAST | {
    "MODEL.BACKBONE.NAME": ("build_timm_backbone", "market_usl.sh:5 -a vit_small, V:413-418"),
    "MODEL.BACKBONE.DEPTH": ("vit_small_patch16_224.dino", "V:413-418, weights by dino/script/vit-s_cfs_lup.sh"),
    "MODEL.BACKBONE.DROP_PATH": (0.3, "E:282"),
    "MODEL.PIXEL_MEAN": ([127.5] * 3, "market_usl.sh:5 --self-norm, E:45"),
    "MODEL.PIXEL_STD": ([127.5] * 3, "market_usl.sh:5 --self-norm, E:46"),
    "MODEL.HEADS.POOL_LAYER": ("Identity", "V:331, the class token"),
    "MODEL.HEADS.WITH_BNNECK": (True, "V:291-293, V:335"),
    "MODEL.LOSSES.DISCREPANT_PROXY": (
        PROXIES | {"UPDATES": ("hardest",), "MARGINS": (), "MOMENTUM": 0.2},
        "market_usl.sh:5 --use-hard, E:279, E:298",
    ),
    "MODEL.BN_SPLITS": (4, "market_usl.sh:5, E:110"),
    "CLUSTER.EPS": (0.6, "market_usl.sh:5"),
    "CLUSTER.K1": (30, "E:268"),
    "CLUSTER.K2": (6, "E:270"),
    "CLUSTER.MIN_SAMPLES": (4, "E:175"),
    "INPUT.SIZE_TRAIN": ([256, 128], "E:256-257"),
    "INPUT.SIZE_TEST": ([256, 128], "E:256-257"),
    "INPUT.REA.VALUE": ([189.3375, 185.64, 179.265], "E:58: (0.485, 0.456, 0.406) after Normalize"),
    "DATALOADER.NUM_INSTANCE": (8, "market_usl.sh:5"),
    "SOLVER.OPT": ("SGD", "E:290"),
    "SOLVER.MOMENTUM": (0.9, "E:155"),
    "SOLVER.NESTEROV": (False, "E:155"),
    "SOLVER.BASE_LR": (0.00035, "E:287"),
    "SOLVER.WEIGHT_DECAY": (0.0005, "E:289"),
    "SOLVER.WEIGHT_DECAY_NORM": (0.0005, "E:148: all parameters"),
    "SOLVER.WEIGHT_DECAY_BIAS": (0.0005, "E:148: all parameters"),
    "SOLVER.IMS_PER_BATCH": (256, "market_usl.sh:5"),
    "SOLVER.ITERS_PER_EPOCH": (200, "market_usl.sh:5"),
    "SOLVER.MAX_EPOCH": (50, "E:291"),
    "SOLVER.STEPS": ([20, 40], "E:293: every 20 epochs"),
    "TEST.EVAL_PERIOD": (10, "E:297"),
}
ICS: Recipe = {"MODEL.BACKBONE.DEPTH": ("vit_small_patch16_ics", "market_usl.sh:2 --conv-stem, V:196-245")}
VIT_MSMT17: Recipe = {
    "CLUSTER.EPS": (0.7, "msmt_usl.sh:2, msmt_usl.sh:5"),
    "MODEL.BN_SPLITS": (2, "msmt_usl.sh:2, README.md:19: two GPUs"),
    "TEST.EVAL_PERIOD": (50, "msmt_usl.sh:2, msmt_usl.sh:5"),
}
MSMT17: Recipe = {"MODEL.LOSSES.DISCREPANT_PROXY": (PROXIES | {"UPDATES": ("each", "mean")}, "C:79-82")}
LONGER: Recipe = {"SOLVER.ITERS_PER_EPOCH": (400, "README.md:91, README.md:115")}
SQUARE: Recipe = {
    "INPUT.SIZE_TRAIN": ([224, 224], "README.md:115"),
    "INPUT.SIZE_TEST": ([224, 224], "README.md:115"),
}
DATA = {"market": "Market1501", "duke": "DukeMTMC", "msmt17": "MSMT17", "veri": "VeRi"}
RECIPES: dict[str, list[Recipe]] = {
    **{f"ice_{data}": [ICE] for data in ("market", "duke", "msmt17")},
    **{f"ice_agnostic_{data}": [AGNOSTIC] for data in ("market", "duke", "msmt17")},
    "ice_groundtruth_market": [ICE | {"CLUSTER.NAME": ("GroundTruth", "the paper's upper bound")}],
    "dcmip_market": [DCMIP | {"CLUSTER.EPS": (0.45, "run_code.sh:7")} | stage for stage in STAGES],
    "dcmip_duke": [DCMIP | stage for stage in STAGES],
    "dcmip_msmt17": [DCMIP | MSMT17 | stage for stage in STAGES],
    **{f"o2cap_{data}": [O2CAP] for data in ("market", "msmt17")},
    **{f"o2cap_ibn_{data}": [O2CAP | IBN] for data in ("market", "msmt17")},
    "cluster_contrast_market": [CLUSTER_CONTRAST],
    "cluster_contrast_msmt17": [CLUSTER_CONTRAST | LONGER],
    "cluster_contrast_veri": [CLUSTER_CONTRAST | LONGER | SQUARE],
    "cluster_contrast_vit_market": [VIT],
    "cluster_contrast_vit_msmt17": [VIT | VIT_MSMT17],
    "cluster_contrast_ics_market": [VIT | ICS],
    "cluster_contrast_ics_msmt17": [VIT | VIT_MSMT17 | ICS],
}


def read(name: str) -> CfgNode:
    cfg = get_cfg()
    add_ice_config(cfg)
    merge_config_file(cfg, str(CONFIGS / f"{name}.yml"))
    return cfg


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_as_published(name: str) -> None:
    stages = [stage.cfg for stage in Run(read(name)).stages]
    for stage, recipe in zip(stages, RECIPES[name], strict=True):
        differing = {
            key: (value_of(stage, key), *published)
            for key, published in recipe.items()
            if value_of(stage, key) != published[0]
        }
        assert not differing, "key: (ours, published, where)"
        assert stage.DATASETS.NAMES == stage.DATASETS.TESTS == (DATA[name.rpartition("_")[2]],)
