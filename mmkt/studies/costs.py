"""What a training step takes beside what it reaches: parameters, FLOPs, time, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmkt import launch
from mmkt.checkpoint import read_json
from mmkt.experiment import Experiment
from mmkt.workshop import Workshop

ROUNDS, STEPS = 3, 20
NOTE = "costs.json"


class Cost(NamedTuple):
    """Of one training; with frozen encoders, of what comes after them."""

    trained: int  # numbers that train in its last phase
    numbers: int  # of the whole model
    flops: float  # of a row, forward: a multiplication and an addition are two
    step: float  # seconds, on one thread or one GPU that does nothing else: the median
    memory: int  # bytes of a step: on a GPU its peak; on a CPU parameters that train, gradients, moments and kept activations


def measure(configs: Mapping[Hashable, Experiment], workshop: Workshop) -> dict[Any, Cost]:
    """Every training's cost; their steps are timed in turns, so that what else the machine does meets all alike."""
    threads = torch.get_num_threads()
    trials = {name: _Trial(config, workshop) for name, config in configs.items()}
    torch.set_num_threads(1)
    times: dict[Hashable, list[float]] = {name: [] for name in trials}
    try:
        for _ in range(ROUNDS):
            for name, trial in track(trials.items(), "costs", console=Console(stderr=True), transient=True):
                times[name] += trial.times()
    finally:
        torch.set_num_threads(threads)
    return {name: trial.cost(statistics.median(times[name])) for name, trial in trials.items()}


def noted(run: Path) -> dict[str, Cost]:
    """By cell, what was measured of a study before."""
    return {name: Cost(**cost) for name, cost in read_json(run / NOTE).items()} if (run / NOTE).is_file() else {}


class _Trial:
    """A training that takes steps on one batch and keeps nothing."""

    def __init__(self, config: Experiment, workshop: Workshop):
        setup, plan, accelerator = launch.built_to_rest(config, workshop)
        self.learner = setup.learner.to(accelerator.device)
        self.trains: list[nn.Parameter] = list(self.learner.begin(plan[-1]).values())
        views = sorted({view for _, objective in self.learner.parts() for view in objective.needs})
        self.batch = next(setup.feed.training(0, 1, views, plan[-1].streams)).to(accelerator.device)
        self.optimizer = torch.optim.AdamW(self.trains, lr=0.0, weight_decay=0.0)  # nothing moves
        self.gpu = accelerator.device.type == "cuda"

    def step(self) -> None:
        loss, _ = self.learner(self.batch, self.learner.counts([self.batch]))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def times(self) -> list[float]:
        """Of some steps, in seconds; the first is not counted."""
        found = []
        for _ in range(STEPS + 1):
            start = time.perf_counter()
            self.step()
            if self.gpu:
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
        return found[1:]

    def cost(self, step: float) -> Cost:
        """With the time of a step that was measured."""
        with FlopCounterMode(display=False) as counter:
            self.learner.model(self.batch)
        trained = sum(p.numel() for p in self.trains)
        numbers = sum(p.numel() for p in self.learner.model.parameters())
        return Cost(trained, numbers, counter.get_total_flops() / self.batch.size, step, self._memory())

    def _memory(self) -> int:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated()
        kept: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in self.learner.parameters()}

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss, _ = self.learner(self.batch, self.learner.counts([self.batch]))
        del loss
        return sum(kept.values()) + 4 * sum(p.numel() * p.element_size() for p in self.trains)
