"""accelerate launch scripts/ablate.py STUDY [key=value …]: as mmkt ablate, with as many trainings at once as processes."""

import sys

from mmkt.cli import main
from mmkt.launcher import lead

if __name__ == "__main__" and (jobs := lead()):
    main(["ablate", "--jobs", str(jobs), *sys.argv[1:]])
