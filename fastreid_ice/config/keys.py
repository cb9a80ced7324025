"""Every config key that this plugin adds to fast-reid's: its default, meaning and source.

ICE: Chen et al., ICCV 2021. DCMIP: Zou et al., ICCV 2023. Cluster Contrast: Dai et al., 2021. DBSCAN on k-reciprocal
Jaccard distances: Zhong et al., CVPR 2017, and all later methods.
"""

from __future__ import annotations

from typing import Any

from fastreid.config import CfgNode
from fastreid.utils.registry import Registry

from ..errors import InputError

# A key that is named on the command line turns off the key that would choose its value.
CHOSEN_BY = {
    "CLUSTER.EPS": "CLUSTER.AUTO_EPS",
    "CLUSTER.K1": "CLUSTER.AUTO_K1",
    "INPUT.SIZE_TRAIN": "INPUT.AUTO_SIZE",
    "INPUT.SIZE_TEST": "INPUT.AUTO_SIZE",
}


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key such as "SOLVER.MAX_EPOCH"."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def lookup(registry: Registry, name: str, key: str) -> Any:
    """What is registered as ``name``, the value of the config key ``key``.

    Raises:
        InputError: nothing is; the message lists the registered names.
    """
    known = registry._obj_map  # fast-reid's Registry cannot be iterated
    if name not in known:
        raise InputError(f"{key}: {name!r} is not registered; choose from {', '.join(sorted(known))}")
    return known[name]


def add_ice_config(cfg: CfgNode) -> None:
    """Adds this plugin's keys to ``cfg`` (fast-reid's ``get_cfg()``), in place; fast-reid's own keep their meaning."""
    # Seeds weights, sampling, augmentation and dropout, again at each epoch: equal seeds give equal runs, and a resumed
    # run continues as the uninterrupted one would.
    cfg.SEED = 0
    # Names of further hooks, in this order, after ReclusterHook and MomentumHook, which always run, and before
    # fast-reid's own. To change the place of these two, name them as well.
    cfg.HOOKS = ()
    # Stages, trained one after the other in one run (DCMIP has two). Each starts from the weights of the stage before
    # that MODEL.START_FROM chooses. In a file: a list of mappings with the keys that differ. Empty: one stage.
    cfg.STAGES = ()

    # A CSV file with a person's corrections, which every clustering keeps: pairs of images that show one person or two,
    # and images that show a person with a name, or nobody (docs/corrections.md). Empty: there are none.
    cfg.CORRECTIONS = ""

    # Python files to import first, with your own losses, clusterers or hooks. In a file: relative to that file.
    cfg.IMPORTS = ()

    _add_model(cfg.MODEL)

    cfg.CLUSTER = CfgNode()
    cfg.CLUSTER.NAME = "JaccardDBSCAN"  # or "HDBSCAN", "KMeans", or "GroundTruth" (upper bound)
    cfg.CLUSTER.FEATURES = "momentum"  # the encoder whose features are clustered: "momentum" (ICE) or "online"
    cfg.CLUSTER.EPS = 0.55  # JaccardDBSCAN only: radius, a Jaccard distance in (0, 1] (ICE: 0.55)
    # JaccardDBSCAN only: choose the radius from the graph at every epoch, without true identities, instead of EPS. A
    # fixed radius suits one network at one stage of its training.
    cfg.CLUSTER.AUTO_EPS = False
    # Standardise features within each camera before the search for neighbours: what a camera adds to all of its images
    # makes two of them look alike.
    cfg.CLUSTER.CAMERA_NORM = False
    # Keep what tracks say of people (DATASETS.FOLDER.METADATA): the images of a track are one person, and two tracks of
    # one camera that overlap in time are two. JaccardDBSCAN and HDBSCAN only.
    cfg.CLUSTER.TRACKS = False
    cfg.CLUSTER.MIN_SAMPLES = 4  # an image with so many images within EPS, including itself, is a core image
    cfg.CLUSTER.MIN_CLUSTER_SIZE = 4  # HDBSCAN only: fewer images than this are not a cluster
    # The distance between images: "jaccard", between sets of k-reciprocal neighbours (K1, K2); or "ca_jaccard"
    # (CA-Jaccard, CVPR 2024), whose sets take neighbours in the same camera and in the others separately.
    cfg.CLUSTER.DISTANCE = "jaccard"
    cfg.CLUSTER.K1 = 30  # neighbours in the k-reciprocal sets
    # Choose K1 by the number of images, 3 ln N and at most 30, instead: the published 30 merges people in sets of a few
    # hundred images. JaccardDBSCAN and HDBSCAN only; not with "ca_jaccard".
    cfg.CLUSTER.AUTO_K1 = False
    cfg.CLUSTER.K2 = 6  # neighbours averaged in the query expansion; 1 turns it off
    # Instead of K1 and K2: neighbours in the same camera and in other cameras for the k-reciprocal sets, and images of
    # either kind that are averaged in the query expansion.
    cfg.CLUSTER.CA_JACCARD = CfgNode({"K1_INTRA": 5, "K1_INTER": 20, "K2_INTRA": 2, "K2_INTER": 4})
    # How neighbours are searched: "exact"; or if that takes too long, "cells", which compares images within small
    # groups and misses a few neighbours.
    cfg.CLUSTER.NEIGHBORS = "exact"
    cfg.CLUSTER.NUM_CLUSTERS = 500  # KMeans only
    cfg.CLUSTER.PATIENCE = 3  # the run stops after so many epochs in a row with fewer than two clusters

    # UnlabeledFolder only: before training, choose SIZE_TRAIN and SIZE_TEST by the median shape of its images, with
    # about as many pixels, and PADDING.SIZE in proportion; people's crops stay tall, square ones become square.
    cfg.INPUT.AUTO_SIZE = False

    # Gaussian blur of the strong views (ICE, after MoCo v2); the radius is drawn from SIGMA, in pixels.
    cfg.INPUT.BLUR = CfgNode({"ENABLED": False})
    cfg.INPUT.BLUR.PROB = 0.5
    cfg.INPUT.BLUR.SIGMA = (0.1, 2.0)

    # Random erasing of the strong views, in addition to fast-reid's ENABLED, PROB and VALUE (the colour, in 0..255).
    # The defaults are fast-reid's; the published recipes of ICE, Cluster Contrast and DCMIP erase more.
    cfg.INPUT.REA.AREA = (0.02, 0.33)  # share of the image's area, drawn uniformly from this range
    cfg.INPUT.REA.RATIO = (0.3, 3.3)  # height over width
    cfg.INPUT.REA.RATIO_DRAW = "log"  # "log": its logarithm is uniform; or "uniform": the ratio itself is
    cfg.INPUT.REA.ATTEMPTS = 10  # rectangles to try; if none fits into the image, nothing is erased

    # The folder of all datasets, for UnlabeledFolder that of the images; empty: that in the variable FASTREID_DATASETS.
    cfg.DATASETS.ROOT = ""
    # If the training images have changed between a checkpoint and its --resume: "error", or "relabel", which continues
    # with the present images and new labels.
    cfg.DATASETS.CHANGED = "error"
    # Cameras of UnlabeledFolder: "none", they are not known; "folders", the first sub-folder; or a regular
    # expression with one group, searched in the path below ROOT, such as "_c([0-9]+)".
    cfg.DATASETS.FOLDER = CfgNode({"CAMERAS": "none"})
    # Cameras, tracks and times of UnlabeledFolder: "", they are not known; a CSV file in ROOT with the columns path,
    # camera, track and time, or some of the last three; or a regular expression with these as named groups, such as
    # "cam(?P<camera>[0-9]+)/track(?P<track>[0-9]+)_(?P<time>[0-9]+)". Tracks are numbered within a camera; times are at
    # least 0, in any unit that is the same for a camera.
    cfg.DATASETS.FOLDER.METADATA = ""

    cfg.DATASETS.SYNTHETIC = CfgNode()  # the synthetic data, dataset name SyntheticPeople
    cfg.DATASETS.SYNTHETIC.STRENGTH = "strong"  # how much cameras differ: "mild" or "strong"
    cfg.DATASETS.SYNTHETIC.TRAIN_IDENTITIES = 48
    cfg.DATASETS.SYNTHETIC.TEST_IDENTITIES = 24
    cfg.DATASETS.SYNTHETIC.CAMERAS = 4
    cfg.DATASETS.SYNTHETIC.IMAGES_PER_CAMERA = 4
    # Above 1: so many of these images in a row are a track, frames of one crossing of the camera's view, and
    # IMAGES_PER_CAMERA is a multiple of it. 1: every image is taken at another moment.
    cfg.DATASETS.SYNTHETIC.FRAMES = 1
    cfg.DATASETS.SYNTHETIC.SEED = 0  # another seed draws other people and other cameras
    # SyntheticMarket only, which is for timing: number of training images; the rest is in proportion to Market-1501.
    cfg.DATASETS.SYNTHETIC.IMAGES = 12936

    # How the DATALOADER.NUM_INSTANCE images of a pseudo identity are drawn: "spread" over as many of its cameras as
    # possible (ICE); "anchor", one image and others from other cameras (Cluster Contrast, DCMIP); "camera", all from
    # one of its cameras, which take turns (O2CAP); or "random".
    cfg.DATALOADER.SAMPLING = "spread"
    cfg.register_renamed_key(
        "DATALOADER.CAMERA_BALANCED", "DATALOADER.SAMPLING", "True is now 'spread', False is 'random'"
    )
    # A training image that cannot be read: "error" ends the run and names it, "skip" leaves it out and counts it.
    cfg.DATALOADER.UNREADABLE = "error"
    # "ram" keeps decoded, resized images in memory that the workers share, H x W x 3 bytes each: the training images in
    # every process (1.3 GB for Market-1501 at 256 x 128), used by training and, if SIZE_TEST is SIZE_TRAIN, by
    # extraction; and the test images, if there is memory left (1.9 GB), each in the process that evaluates it.
    cfg.DATALOADER.CACHE = "none"

    cfg.SOLVER.ITERS_PER_EPOCH = 400  # an epoch is from one clustering to the next, whatever the number of images (ICE)

    # The encoder that is evaluated, and chooses model_best.pth: "momentum" (ICE) or "online". The best epoch has the
    # highest mean of mAP and rank-1 on the test set, as in fast-reid; so the labels of the test set choose it.
    cfg.TEST.ENCODER = "momentum"
    # Evaluate the other encoder as well, in the same pass over the images; its metrics are called online/mAP and so on.
    cfg.TEST.BOTH_ENCODERS = False
    # Standardise the features of query and gallery together within each camera before they are compared, as
    # CLUSTER.CAMERA_NORM does before clustering: without labels, but with all test images at hand.
    cfg.TEST.CAMERA_NORM = False
    # fast-reid's TEST.PRECISE_BN.ENABLED computes batch-norm statistics after every epoch, for evaluation and the next
    # clustering: here of NUM_ITER training batches drawn from all training images, without augmentation; DATASET is not
    # read. Training leaves those of augmented images and of other weights.

    # The distance of TEST.RERANK, as for CLUSTER.DISTANCE: "jaccard" (TEST.RERANK.K1, K2), or "ca_jaccard".
    cfg.TEST.RERANK.DISTANCE = "jaccard"
    cfg.TEST.RERANK.CA_JACCARD = CfgNode({"K1_INTRA": 5, "K1_INTER": 20, "K2_INTRA": 3, "K2_INTER": 3})
    cfg.TEST.BEFORE_TRAINING = True  # also evaluate the weights that training starts from


def _add_model(model: CfgNode) -> None:
    # What a stage after the first starts from: the "last" weights of the stage before, or its "best" (TEST.ENCODER).
    # A labelled test set chooses the best, so labels leak into unsupervised training, as in the published DCMIP.
    model.START_FROM = "last"
    # timm only: stochastic depth, the probability in [0, 1) with which training leaves out a path of the last block;
    # that of earlier blocks is lower in proportion. fast-reid's DROP_PATH_RATIO is for its own vision transformer.
    model.BACKBONE.DROP_PATH = 0.0
    # Modules of the network that keep the weights and batch-norm statistics they start from, such as
    # ("backbone.conv1",). No gradients are computed for the first layers if these are frozen, which saves time.
    # fast-reid's FREEZE_LAYERS only withholds the optimizer's steps, in the first SOLVER.FREEZE_ITERS steps of a run.
    model.FROZEN = ()
    # torch.compile for both encoders in training: the first step takes minutes. Needs a C++ compiler.
    model.COMPILE = False
    # A config file whose BACKBONE and WEIGHTS replace these if the weights of BACKBONE.PRETRAIN cannot be downloaded,
    # or if a run continues from a checkpoint of that network. If it is empty, or the command line names a key of
    # BACKBONE, the run ends with an error.
    model.FALLBACK = CfgNode({"CONFIG": ""})
    model.FALLBACK.NOTE = ""  # logged in that case: what is used instead, and what that costs
    # In training, batch norm computes its statistics over so many contiguous parts of the whole batch: 4 trains a
    # recipe for four GPUs on one, two or four of them. 1: over the share of each process.
    model.BN_SPLITS = 1
    model.MOMENTUM = CfgNode()
    model.MOMENTUM.ALPHA = 0.999  # weight of the old value in the momentum encoder's update (ICE, MoCo)
    # Several processes, or parts (BN_SPLITS): shuffle the momentum batches, so that batch norm leaks nothing (MoCo).
    model.MOMENTUM.SHUFFLE_BN = True
    # Also run the momentum encoder on the online encoder's view, as the published code of ICE does: this changes only
    # its batch-norm statistics.
    model.MOMENTUM.ONLINE_VIEW = False

    # A loss not listed here brings its own node in its config file; its keys are the loss's keyword arguments.
    losses = model.LOSSES
    losses.CLUSTER_PROXY = CfgNode()  # ICE, camera-agnostic proxies
    losses.CLUSTER_PROXY.SCALE = 1.0
    losses.CLUSTER_PROXY.TEMPERATURE = 0.5
    losses.CLUSTER_PROXY.LABEL_SMOOTHING = 0.1

    losses.CROSS_CAMERA = CfgNode()  # ICE, camera-aware proxies
    losses.CROSS_CAMERA.SCALE = 0.5
    losses.CROSS_CAMERA.TEMPERATURE = 0.07
    losses.CROSS_CAMERA.NUM_NEGATIVES = 50  # the most similar proxies of other clusters, or all if there are fewer
    # "row": unit proxies. "coordinate": each coordinate over all proxies, as in the published code and its results.
    losses.CROSS_CAMERA.PROXY_NORM = "row"
    # "other_cameras": the own cluster's proxies in other cameras, as the author describes the method (all of them for a
    # cluster with one camera). "all": those in the image's own camera too, as in the published code.
    losses.CROSS_CAMERA.POSITIVES = "other_cameras"

    losses.HARD_INSTANCE = CfgNode()  # ICE, hard instance contrast
    losses.HARD_INSTANCE.SCALE = 1.0
    losses.HARD_INSTANCE.TEMPERATURE = 0.1

    losses.SOFT_CONSISTENCY = CfgNode()  # ICE, soft instance consistency
    losses.SOFT_CONSISTENCY.SCALE = 10.0
    losses.SOFT_CONSISTENCY.TEMPERATURE = 0.4

    losses.DISCREPANT_PROXY = CfgNode()  # DCMIP; with UPDATES ("each",) or ("hardest",) Cluster Contrast
    losses.DISCREPANT_PROXY.SCALE = 1.0
    losses.DISCREPANT_PROXY.TEMPERATURE = 0.05
    # One proxy per cluster for each value, which says how a batch updates it: by its "hardest" member, the "mean" of
    # its members, or "each" of them in turn (DCMIP: hardest and mean on Market-1501, each and mean on MSMT17).
    losses.DISCREPANT_PROXY.UPDATES = ("hardest", "mean")
    losses.DISCREPANT_PROXY.MARGINS = ()  # one per value: below this loss it gives no gradient; () for none
    losses.DISCREPANT_PROXY.MOMENTUM = 0.1  # weight of the old proxy in an update

    losses.MULTI_INSTANCE = CfgNode()  # DCMIP
    losses.MULTI_INSTANCE.SCALE = 1.0
    losses.MULTI_INSTANCE.TEMPERATURE = 0.05
    losses.MULTI_INSTANCE.NUM_INSTANCES = 16  # momentum features kept of each cluster
    # Whether the draw that fills the bank repeats members only as "needed", if a cluster has fewer, or may do so
    # "always", as in the re-run.
    losses.MULTI_INSTANCE.REPETITION = "needed"
    # The encoder whose batch features go into the bank: "momentum", as the paper's overview shows it, or "online", as
    # in the re-run that reports its results.
    losses.MULTI_INSTANCE.STORE = "momentum"
    # Where the least similar positive is taken from: the "bank", or the momentum features of the "batch", as the
    # paper's overview shows it.
    losses.MULTI_INSTANCE.POSITIVE = "bank"

    losses.NEIGHBOR_LABEL = CfgNode()  # as CLUSTER_PROXY, with labels refined by neighbours (after NCPLR)
    losses.NEIGHBOR_LABEL.SCALE = 1.0
    losses.NEIGHBOR_LABEL.TEMPERATURE = 0.5
    losses.NEIGHBOR_LABEL.NUM_NEIGHBORS = 10
    losses.NEIGHBOR_LABEL.SHARE = 0.3  # weight of all neighbours' labels together, in [0, 1]

    losses.O2CAP = CfgNode()  # O2CAP
    losses.O2CAP.SCALE = 1.0
    losses.O2CAP.PARTS = ("offline", "online")  # proxies of the same cluster; the most similar proxies
    losses.O2CAP.TEMPERATURE = 0.07
    losses.O2CAP.NUM_NEGATIVES = 50  # the most similar other proxies, or all if there are fewer
    losses.O2CAP.NUM_POSITIVES = 3  # of the online part, each from a different camera
    losses.O2CAP.BALANCE = 0.15  # weight of the image in the online ranking; its own proxy has the rest
    losses.O2CAP.MOMENTUM = 0.2  # weight of the old proxy in an update

    losses.set_new_allowed(True)
