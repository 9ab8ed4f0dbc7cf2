"""The largest batch that a device has memory for (``data.batch_size: auto``)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from mmkt import distributed, optim
from mmkt.experiment import Data, Train
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.parts import ConfigError
from mmkt.types import Batch, Phase


def refuse(data: Data, accelerator: Accelerator) -> None:
    """Refuse what no batch size can be found for by trying.

    Raises:
        ConfigError: on a CPU, under FSDP2, or where quotas make the batch.
    """
    if data.tokens is not None:
        words = "auto does not go with data.tokens, which bounds what a batch holds: give the most rows of one"
        raise ConfigError([("data.batch_size", words)])
    if data.streams:
        raise ConfigError([("data.batch_size", "auto does not go with data.streams, whose quotas make the batch: leave it out")])
    if accelerator.is_fsdp2:
        raise ConfigError(
            [("data.batch_size", "auto does not go with FSDP2, where processes wait for one another: give a number")]
        )
    if accelerator.device.type == "cpu":  # it promises memory that it has not, and then ends the process without a word
        words = "auto tries until the device refuses, and a CPU never does: the system would end the process. Give a number"
        raise ConfigError([("data.batch_size", words)])


def find(learner: Learner, feed: Feed, plan: Sequence[Phase], train: Train, accelerator: Accelerator) -> int:
    """Rows a batch over all processes, with which a step of every phase fits, on the longest rows.

    The processes try the same rows and agree on what fits all of them. An objective that gathers other processes' rows would wait
    for ever for one that has run out by itself: then the devices have to be alike.

    Args:
        learner: on the device; it is changed by the steps that are tried.
        feed: its rows.
        plan: the phases.
        train: the loop's settings.
        accelerator: device and precision.

    Raises:
        ConfigError: not one row a process fits.
    """
    world, rows = accelerator.num_processes, longest(feed)

    def fits(size: int) -> bool:
        return all(distributed.everyone(_fits(learner, feed, plan, train, accelerator, np.resize(rows, size // world))))

    return largest(fits, most=len(rows), unit=world)


def largest(fits: Callable[[int], bool], most: int, unit: int = 1) -> int:
    """The largest size that fits, to an eighth: doubled until one does not, then bisected.

    Args:
        fits: whether a size does; a smaller one than one that does, does too.
        most: none larger is tried.
        unit: the first to be tried; every size is a multiple of it.

    Raises:
        ConfigError: the unit does not fit.
    """
    good, bad = 0, max(unit, most // unit * unit) + unit
    size = unit
    while size < bad:
        if not fits(size):
            bad = size
            break
        good, size = size, 2 * size
    if not good:
        words = (
            f"not even {unit} row{'s' * (unit > 1)} fit: train less (transfer), set train.checkpointing, or use a smaller model"
        )
        raise ConfigError([("data.batch_size", words)])
    while bad - good > max(unit, good // 8):
        size = (good + bad) // 2 // unit * unit
        good, bad = (size, bad) if fits(size) else (good, size)
    return good


def longest(feed: Feed) -> np.ndarray:
    """The training rows, those first that are the largest in some modality: each modality's in turn.

    A batch is padded to its longest items, so a few of each modality make it as large as a batch of its size can be.
    """
    rows = feed.rows(feed.data.train)
    sized = [m for m in feed.modalities if feed.processors[m].kind != "table"]
    orders = [rows[np.argsort(-feed.sizes(m)[rows], kind="stable")] for m in sized]
    mixed = np.stack(orders or [rows], 1).reshape(-1)
    return mixed[np.sort(np.unique(mixed, return_index=True)[1])]


def _fits(learner: Learner, feed: Feed, plan: Sequence[Phase], train: Train, accelerator: Accelerator, rows: np.ndarray) -> bool:
    """Whether a step of every phase on these rows does."""
    try:
        views = sorted({view for objective in learner.objectives.values() for view in objective.needs})
        batch = feed.batch_of(rows, views)
        for phase in plan:
            _step(learner, batch, phase, train, accelerator)
        found = True
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        found = False
    learner.zero_grad()  # here, where the error, and with it what its frames held, is gone
    gc.collect()
    clear_device_cache()
    return found


def _step(learner: Learner, batch: Batch, phase: Phase, train: Train, accelerator: Accelerator) -> None:
    """Two steps of a phase, as the loop makes them: in the second an optimiser's memory is there too."""
    trains = learner.begin(phase)
    # several processes keep every gradient twice: in the buckets that are summed over them
    buckets = [torch.empty_like(p) for p in trains.values()] if accelerator.num_processes > 1 else []
    if train.average:
        buckets += [p.detach().clone() for p in trains.values()]
    ahead = batch.to(accelerator.device)  # the next batch is copied while a step is made
    optimizer = optim.optimizer(learner, trains, train, phase.lr)
    for _ in range(2):
        here = batch.to(accelerator.device)
        for _, objective in learner.parts():
            here = objective.craft(learner, here)
        # this process's own counts: summed over all, one that runs out in the first step would be waited for in the second
        counts = learner.own_counts([here])
        with accelerator.autocast():
            loss, _ = learner(here, counts)
        loss.backward()
        if train.clip:
            torch.nn.utils.clip_grad_norm_(trains.values(), train.clip)
        optimizer.step()
        optimizer.zero_grad()
    buckets.clear()
    del ahead
