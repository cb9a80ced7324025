#!/usr/bin/env python
"""Makes configs/source_osnet_x0_25.pth, the weights that the demo starts from.

python tools/make_source_weights.py

Trains fast-reid's Baseline with labels on SyntheticSource (under 5 minutes on two cores), then saves only the encoder,
in half precision, without classifier and optimiser.
"""

import runpy
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    sys.argv = ["train_net.py", "--config-file", str(ROOT / "configs" / "source_synthetic.yml"), *sys.argv[1:]]
    runpy.run_path(str(ROOT / "tools" / "train_net.py"), run_name="__main__")
    state = torch.load("logs/source_synthetic/model_final.pth", map_location="cpu", weights_only=True)["model"]
    kept = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    del kept["heads.weight"]  # the classifier of the source's identities
    target = ROOT / "configs" / "source_osnet_x0_25.pth"
    torch.save({"model": kept}, target)
    print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
