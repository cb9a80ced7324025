#!/usr/bin/env python
"""`fastreid-ice train`, in the place where users of fast-reid expect it.

python tools/train_net.py --config-file configs/ice_demo.yml
"""

from fastreid_ice.commands.train import main

if __name__ == "__main__":
    main()
