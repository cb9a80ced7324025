"""Exports the encoder of a trained model: to ONNX, to trackers, and to fast-reid without this plugin.

fastreid-ice export --run logs/demo --output exported
fastreid-ice export --run logs/demo --output exported --for boxmot
fastreid-ice export --run logs/demo --output exported --precision int8
fastreid-ice export --config-file configs/ice_demo.yml --weights logs/demo/model_best.pth --output exported

takes the encoder of a run (its OUTPUT_DIR) with its own config and weights, or that of a config and a checkpoint, and
writes three files to the folder exported, after comparing their features with the model's. With a timm backbone, which
fast-reid lacks, it writes only the first:

encoder.onnx   maps "images", float32 (N, 3, H, W), RGB in [0, 255], to "features", (N, D) of length 1. It holds the
               encoder that is evaluated (TEST.ENCODER), and normalises the images itself.
fastreid.pth   the same encoder as a checkpoint of fast-reid's Baseline, and
fastreid.yml   its config: with both, fast-reid's own tools give the metrics that train --eval-only gives.
               DATASETS.TESTS is kept; if it names a dataset of this plugin, give fast-reid another.

--for boxmot or ultralytics writes one other file, encoder_boxmot.onnx or encoder_ultralytics.onnx, whose images are
scaled as these trackers do it: docs/trackers.md says how to name it to them. --precision float16 or int8 also writes
one other file, such as encoder_int8.onnx or encoder_boxmot_int8.onnx. int8 reads up to 320 training images. A lower
precision changes the features, and is faster on some networks only: docs/trackers.md has a table.

The export needs onnx and onnxruntime. Using the ONNX file needs neither torch nor fast-reid. This script ranks the
images of a folder by their similarity to a query, and draws the query and the ten most similar ones:

    from pathlib import Path
    import numpy as np, onnxruntime
    from PIL import Image
    encoder = onnxruntime.InferenceSession("exported/encoder.onnx", providers=["CPUExecutionProvider"])
    height, width = encoder.get_inputs()[0].shape[2:]
    known = Image.registered_extensions()  # .jpg, .png and all others that Pillow reads
    paths = [Path("query.jpg"), *sorted(path for path in Path("gallery").iterdir() if path.suffix.lower() in known)]
    images = [Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC) for path in paths]
    rows = np.vstack([encoder.run(None, {"images": np.float32([image]).transpose(0, 3, 1, 2)})[0] for image in images])
    ranking = 1 + np.argsort(-rows[1:] @ rows[0])[:10]
    Image.fromarray(np.hstack([images[i] for i in (0, *ranking)])).save("ranking.png")
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastreid.modeling import build_model

from ..deploy.export import WEIGHTS_FILE, export_encoder, export_onnx, exported_files
from ..deploy.precision import PRECISIONS
from ..deploy.trackers import TRACKERS
from ..engine import Checkpointer, build_trained_config
from ..errors import InputError
from . import add_run, command_parser


def run(args: argparse.Namespace) -> None:
    """Raises InputError if the arguments cannot work; nothing is written then."""
    named = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    cfg, weights = build_trained_config(args.config_file, args.run, [*args.options, *named])
    if not weights:
        raise InputError("no weights to export: give --weights, such as --weights logs/demo/model_best.pth")
    model = build_model(cfg)
    Checkpointer(model).load(weights)
    if args.tracker or args.precision != "float32":
        path, cosines = export_onnx(cfg, model, args.output, tracker=args.tracker, precision=args.precision)
        images = "training images" if args.precision == "int8" else "images of noise"
        print(
            f"The {cfg.TEST.ENCODER} encoder of {weights}; cosine with its own features on {len(cosines)} {images} "
            f"{cosines.mean():.4f} on average, {cosines.min():.4f} at least:\n{path}"
        )
        return
    difference = export_encoder(cfg, model, args.output)
    print(f"The {cfg.TEST.ENCODER} encoder of {weights}, features equal within {difference:.0e}:")
    for name in exported_files(cfg):
        print(args.output / name)
    if WEIGHTS_FILE not in exported_files(cfg):
        print("fast-reid alone has no timm backbones, so there is no checkpoint for it.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("export", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    add_run(source, "its config and its weights, the best if it was evaluated")
    source.add_argument("--config-file", metavar="FILE", help="the config that the model was trained with")
    parser.add_argument(
        "--weights", metavar="FILE", help="the checkpoint; default: that of --run, or MODEL.WEIGHTS of the config"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="created if missing")
    parser.add_argument("--for", dest="tracker", choices=TRACKERS, help="an ONNX file for this tracker, alone")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="other than float32: an ONNX file in it, alone"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, help="config keys and values, as in training")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {error}")
