#!/usr/bin/env python
"""`fastreid-ice train`, in the place where users of fast-reid expect it.

python tools/train_net.py --config-file configs/ice_demo.yml
"""

import sys

from fastreid_ice.commands.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
