"""python scripts/bench_loop.py [CONFIG] [key=value …] [--steps N] [--pairs N]

Step time of ``fit`` over that of a hand-written PyTorch loop, on the same model, rows and machine, in pairs in one run
(ours, theirs, ours, theirs …); and the share of the time that ``fit`` waits for data. Evaluation and saving are left out.
With ``--features FOLDER`` every encoder is frozen and both loops read features, the hand-written one by indexing tensors.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from mmkt import launch
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.optim import factor
from mmkt.run import Run
from mmkt.train import fit
from mmkt.types import Encoded, Outputs
from mmkt.workshop import Workshop

WORKSHOP = Workshop()


def ours(config: Experiment, folder: Path) -> tuple[float, float]:
    """Seconds a step of ``fit``, and the share of them spent waiting for data."""
    setup, plan, _ = launch.built_to_rest(config, WORKSHOP)
    run = Run(folder, config, "bench")
    speed = fit(setup.learner, setup.feed, plan, run, Accelerator(), config.train)
    return speed.total / speed.steps, speed.data / speed.total


def batches(setup: launch.Setup, config: Experiment, task: str) -> Iterator[tuple[Callable[[], Outputs], torch.Tensor]]:
    """What gives a batch's outputs, and its labels."""
    model, feed, steps = setup.learner.model, setup.feed, config.train.steps or 0
    if not feed.features:
        for batch in feed.training(0, steps):
            yield partial(model, batch), batch.labels[task]
        return
    if model.whole:
        raise SystemExit("the hand-written loop indexes summaries: give a fusion that reads them alone (mmkt list fusion)")
    rows = torch.from_numpy(feed.rows(config.data.train))
    table = {m: features.pooled[features.place[rows]] for m, features in feed.features.items()}
    labels, size = feed.labels[task][0][rows], config.data.batch_size
    order = torch.randperm(len(rows))
    for step in range(steps):
        places = order[torch.arange(step * size, (step + 1) * size) % len(order)]
        yield partial(model.fuse, {m: Encoded.of(x[places]) for m, x in table.items()}), labels[places]


def theirs(config: Experiment) -> float:
    """Seconds a step of the loop one would write by hand for this very model and task."""
    setup, *_ = launch.built_to_rest(config, WORKSHOP)
    model, task = setup.learner.model, next(iter(config.model.heads))
    frozen = [pattern.removesuffix("*") for pattern in config.transfer.get("frozen", [])]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(name.startswith(pattern) for pattern in frozen))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    decay = [p for p in trained if p.ndim > 1]
    groups = [{"params": decay}, {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.train.lr, weight_decay=config.train.weight_decay)
    steps = config.train.steps
    start = time.perf_counter()
    for step, (outputs, labels) in enumerate(batches(setup, config, task)):
        loss = F.cross_entropy(outputs().logits[task], labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.train.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.train.lr * factor(step, steps, config.train.schedule, config.train.warmup)
        optimizer.step()
        optimizer.zero_grad()
        if step % config.train.log_every == 0:
            loss.item()
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Print a line a pair and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/experiment/numerals.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--features", metavar="FOLDER")
    options = parser.parse_args()
    fixed = [
        f"train.steps={options.steps}",
        "train.epochs=null",
        "data.validation=null",
        f"train.save_every={10**9}",
        "trackers=[]",
    ]
    if options.features:
        augmented = [m for m, spec in read(Experiment, options.config).model.encoders.items() if "augment" in spec]
        fixed += [f"data.features={options.features}", 'transfer={name: full, frozen: ["encoders.*"]}']
        fixed += [f"model.encoders.{m}.augment=false" for m in augmented]
    config = read(Experiment, options.config, [*options.overrides, *fixed])
    theirs(config.model_copy(update={"train": config.train.model_copy(update={"steps": 5})}))  # warm-up
    ratios, waits = [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(options.pairs):
            one, wait = ours(config, Path(folder) / str(pair))
            two = theirs(config)
            ratios.append(one / two)
            waits.append(wait)
            print(
                f"pair {pair}: fit {1e3 * one:.2f} ms a step, by hand {1e3 * two:.2f} ms, ratio {one / two:.3f}, data {wait:.1%}"
            )
    print(f"ratio: {statistics.median(ratios):.3f} (median of {len(ratios)}), waiting for data: {statistics.median(waits):.1%}")


if __name__ == "__main__":
    main()
