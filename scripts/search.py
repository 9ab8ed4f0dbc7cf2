"""accelerate launch scripts/search.py SEARCH key=value … [--report] [--json]"""

import sys

from mmkt.cli import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
