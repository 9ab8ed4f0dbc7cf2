"""python scripts/bench_loading.py CONFIG … [key=value …] [--batches N] [--workers 0 2]

Whether loading keeps up with training: rows a second of the loader alone, in the first epoch (every item is decoded) and in the
second (what ``data.cache`` holds is not), by worker processes; the share of a row's time that decoding, processing and collating
take, without workers; and rows a second that the training step itself could take, on a batch in memory, on this device. A loader
keeps up where it gives more than the step takes.

    export MMKT_DATA=DIR
    python scripts/bench_loading.py configs/experiment/digits.yaml data.origin=$MMKT_DATA/digits
    python scripts/bench_loading.py configs/experiment/flickr1k.yaml data.origin=$MMKT_DATA/flickr1k
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator

from mmkt import launch
from mmkt.config import read
from mmkt.data import rows
from mmkt.experiment import Experiment
from mmkt.feed import Feed


@contextmanager
def watched(feed: Feed) -> Iterator[dict[str, float]]:
    """Seconds of decoding, processing and collating while it is entered; of this process alone."""
    spent: dict[str, float] = defaultdict(float)
    depth = 0

    def timed(name: str, function: Callable) -> Callable:
        def call(*arguments: object, **named: object) -> object:
            nonlocal depth
            depth, start = depth + 1, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                depth -= 1
                if not depth:  # a pair of texts is loaded by its parts
                    spent[name] += time.perf_counter() - start

        return call

    with mock.patch.object(rows, "load", timed("decode", rows.load)):
        plain = {cls: cls.__call__ for cls in {type(p) for p in feed.processors.values()}}
        for cls, call in plain.items():
            cls.__call__ = timed("process", call)
        feed.collate, collate = timed("collate", feed.collate), feed.collate
        try:
            yield spent
        finally:
            feed.collate = collate
            for cls, call in plain.items():
                cls.__call__ = call


def loaded(feed: Feed, start: int, stop: int, spent: dict[str, float]) -> tuple[float, float]:
    """Rows a second of the loader, and seconds in all; the first batch, while workers start, is not counted, nor in ``spent``."""
    batches = feed.training(start, stop)
    next(batches)
    spent.clear()
    begin, seen = time.perf_counter(), 0
    for batch in batches:
        seen += batch.size
    spent = time.perf_counter() - begin
    return seen / spent, spent


def trained(setup: launch.Setup, config: Experiment, steps: int) -> float:
    """Rows a second of forward, backward and AdamW on one batch in memory."""
    accelerator = Accelerator()
    learner = setup.learner.to(accelerator.device)
    trains = learner.begin(launch.plan_of(setup, config)[0])
    optimizer = torch.optim.AdamW(trains.values(), lr=1e-6)
    batch, marks = next(setup.feed.training(0, 1)).to(accelerator.device), list[float]()
    for _ in range(steps + 1):
        learner(batch, learner.counts([batch]))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    return batch.size * steps / (marks[-1] - marks[0])


def table(config: Experiment, workers: Sequence[int], most: int, steps: int) -> Iterator[str]:
    """Lines: by workers and epoch what the loader gives; then what the step takes."""
    for number in workers:
        data = config.data.model_copy(update={"workers": number})
        setup = launch.build(config.model_copy(update={"data": data}))
        epoch = len(setup.feed.rows(data.train)) // data.rows
        batches = min(most, epoch)
        # a worker's cache ends with it: only without workers is a second epoch any different
        for name, first in (("first", 0), ("second", epoch))[: 2 if number == 0 else 1]:
            if name == "second":  # every row once more
                for _ in setup.feed.training(batches, epoch):
                    pass
            with watched(setup.feed) as spent:
                rate, seconds = loaded(setup.feed, first, first + batches, spent)
            shares = [f"{spent[key] / seconds:.0%}" if number == 0 else "" for key in ("decode", "process", "collate")]
            yield f"| {number} | {name} | {rate:.0f} | " + " | ".join(shares) + " |"
    yield f"| step | | {trained(setup, config, steps):.0f} | | | |"


def main() -> None:
    """Print a table an experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="+", help="experiment files, and settings for all of them")
    parser.add_argument("--batches", type=int, default=40, help="at the most (40)")
    parser.add_argument("--steps", type=int, default=10, help="of training (10)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="(0 2)")
    options = parser.parse_args()
    files = [word for word in options.config if "=" not in word]
    overrides = [word for word in options.config if "=" in word]
    for file in files:
        config = read(Experiment, file, overrides)
        print(f"\n{Path(file).stem}: batches of {config.data.rows}, data.cache {config.data.cache} GB\n")
        print("| workers | epoch | rows/s | decode | process | collate |\n|---|---|---|---|---|---|")
        for line in table(config, options.workers, options.batches, options.steps):
            print(line, flush=True)


if __name__ == "__main__":
    main()
