#!/usr/bin/env python
"""`fastreid-ice train` where users of fast-reid look for it.

python tools/train_net.py --config-file configs/ice_demo.yml
"""

from fastreid_ice.commands.train import main

if __name__ == "__main__":
    main()
