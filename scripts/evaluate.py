"""accelerate launch scripts/evaluate.py CHECKPOINT data.batch_size=64 … [--json]"""

import sys

from mmkt.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
