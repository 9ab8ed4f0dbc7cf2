"""accelerate launch scripts/train.py CONFIG key=value … [--resume] [--dry-run] [--json]"""

import sys

from mmkt.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
