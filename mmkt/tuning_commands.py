"""The commands around a training: which rate it takes, an average of what came of it. As in ``cli``, imports wait."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path


def find_lr(options: argparse.Namespace) -> None:
    """Test rates."""
    from mmkt.config import read
    from mmkt.experiment import Experiment

    config = read(Experiment, options.config, options.overrides)
    from rich.console import Console

    from mmkt import distributed, report
    from mmkt import find_lr as testing

    found = testing.find_lr(config, options.out, low=options.low, high=options.high, steps=options.steps, phase=options.phase)
    if distributed.rank() == 0:
        if options.json:
            print(json.dumps(testing.as_json(found)))
        else:
            command = shlex.join(["mmkt", "train", options.config, *options.overrides])
            report.show([testing.sheet(found, command)], Console(soft_wrap=True))
    distributed.say(f"written: {Path(options.out) / 'lr.png'}")


def average(options: argparse.Namespace) -> None:
    """Average checkpoints."""
    from rich.console import Console

    from mmkt import distributed, report
    from mmkt import soup as averaging

    paths = [word for word in options.checkpoints if "=" not in word]
    settings = [word for word in options.checkpoints if "=" in word]
    found = averaging.soup(
        paths,
        [*options.overrides, *settings],
        out=options.out,
        greedy=options.greedy,
        with_start=options.with_start,
        metric=options.metric,
        plugins=options.plugins,
    )
    if distributed.rank() == 0:
        if options.json:
            print(json.dumps(averaging.as_json(found)))
        else:
            report.show([averaging.sheet(found)], Console())
    distributed.say(f"written: {options.out}; its figures: mmkt evaluate {options.out}")
