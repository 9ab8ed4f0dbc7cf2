"""The loop. Adding a part never edits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from mmkt import checkpoint, distributed, generators, kept, optim, resume
from mmkt.averaging import Averaged
from mmkt.copies import on_device
from mmkt.experiment import Train
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.parts import ConfigError, Parts
from mmkt.profiling import Profile
from mmkt.resume import Progress
from mmkt.run import Run
from mmkt.selection import measured
from mmkt.stop import Stopped
from mmkt.telemetry import Meter, Speed, TrainingError, Watch, better
from mmkt.types import Batch, Phase


def fit(
    learner: Learner,
    feed: Feed,
    plan: Sequence[Phase],
    run: Run,
    accelerator: Accelerator,
    train: Train,
    *,
    seed: int = 0,
    resumed: bool = False,
) -> Speed:
    """Train, and leave the best checkpoint (by validation) in the learner and in the run's ``best/``.

    Args:
        learner: what is trained.
        feed: its rows.
        plan: the phases.
        run: the folder.
        accelerator: the processes, the precision, the trackers.
        train: the loop's settings.
        seed: of dropout; order and augmentation have the feed's.
        resumed: continue from the run's last saved step.

    Raises:
        TrainingError: the loss is not finite, or what trains is reached by no objective.
        ConfigError: settings that don't go together.
        Stopped: the accelerator's trigger was set; the state is saved.
    """
    if accelerator.is_fsdp2:
        if train.compile:  # tried on two processes: no step was done within minutes
            raise ConfigError([("train.compile", "does not go with FSDP2: leave it out, or launch with ddp.yaml")])
        from mmkt.sharding import shard  # its import takes half a second, here alone

        shard(learner, accelerator)
    else:
        learner.to(accelerator.device)
    generators.seed(seed + distributed.rank())  # dropout differs by rank
    loop = _Loop(learner, feed, list(plan), run, accelerator, train, resumed)
    with loop.watch, loop.profile:
        while loop.at.phase < len(loop.plan) and not loop.at.done:
            loop.phase(loop.plan[loop.at.phase])
    if not distributed.from_first(run.best.exists()):  # nothing was selected on: the last step it is
        with loop.average.shown():
            learner.model.save_pretrained(run.best)
    distributed.wait()
    tensors = checkpoint.read_tensors(run.best / "model.safetensors")
    checkpoint.load_strict(learner.model, tensors, run.best / "model.safetensors", learner.model.referred[0])
    return loop.meter.speed()


class _Loop:
    """What a phase and a step share."""

    def __init__(
        self,
        learner: Learner,
        feed: Feed,
        plan: list[Phase],
        run: Run,
        accelerator: Accelerator,
        train: Train,
        resumed: bool,
    ):
        self.learner, self.feed, self.plan, self.run, self.accelerator, self.train = learner, feed, plan, run, accelerator, train
        self.total = sum(phase.steps for phase in plan)
        epoch = max(1, round(self.total / train.epochs)) if train.epochs else max(1, self.total // 10)
        self.per_evaluation = train.evaluate_every or epoch
        self.per_save = train.save_every or self.per_evaluation
        self.validation = feed.rows(feed.data.validation) if feed.data.validation else None
        # what no phase trains is not saved with every state, only its hash
        self.frozen = set(learner.named()).difference(*(learner.trained_in(phase) for phase in plan))
        if train.compile:
            learner.compile()  # in place: names stay; evaluation calls the model, which is not compiled
        self.at, self.resumed = Progress(), resumed
        if resumed:
            kept.tidy(run.last, train.keep)
            self.at = resume.load_learner(run.last, learner, self.frozen)
            for k, steps in enumerate(self.at.taken):
                self._cut(k, steps)
            run.rewind(self.at.total)
        average = Parts(learner.model.plugins).build("averages", train.average) if train.average else None
        self.average = Averaged(learner, self.frozen, average, self.total)
        if resumed:
            resume.load_average(run.last, self.average.mean)
        self.meter, self.watch = Meter(learner, run, accelerator), Watch(self.total, self.at.total)
        self.profile = Profile(train.profile, run.folder / "profile")

    def phase(self, phase: Phase) -> None:
        """One phase: what trains, its optimiser, its steps."""
        at, train = self.at, self.train
        if self.resumed and not at.step:  # what objectives draw as they begin, they drew from there
            resume.load_generators(self.run.last)
        trains = self.learner.begin(phase)
        if not at.step:
            distributed.say(self.learner.words(phase))
        self._refuse_unreached(phase)
        wrapped, optimizer = self._prepared(optim.optimizer(self.learner, trains, train, phase.lr))
        if self.resumed and at.step:
            resume.load_weights(self.run.last, self.learner, self.frozen)  # the phase began before it was saved: no other memory
            resume.load_generators(self.run.last)
            resume.load_optimizer(self.run.last, optimizer, self.accelerator.scaler)
        self.resumed = False
        batches = self._batches(phase, at.step, phase.steps)
        while at.step < phase.steps and not at.done and not self._stuck(phase):
            self.step(phase, wrapped, optimizer, batches, list(trains.values()))
            self.average.follow(at.total)
            self.profile.step()
            at.step, at.total = at.step + 1, at.total + 1
            self._after(phase, optimizer)
        if self._stuck(phase):
            distributed.say(f"phase {phase.name} ends after {at.step} of {phase.steps} steps: its loss no longer falls")
            self._cut(at.phase, at.step)
        self.accelerator.free_memory()
        self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        self.at = self._ended()

    def _ended(self) -> Progress:
        """Where training stands when the phase at hand is over."""
        at = self.at
        return replace(at, phase=at.phase + 1, step=0, taken=(*at.taken, at.step), lowest=None, stuck=0)

    def _stuck(self, phase: Phase) -> bool:
        """Whether a phase that may end early should."""
        return phase.until is not None and self.at.stuck >= phase.until.patience

    def _cut(self, k: int, steps: int) -> None:
        """End a phase after fewer steps than planned; the next one has the rest, so that the budget stays."""
        spared = self.plan[k].steps - steps
        self.plan[k] = self.plan[k]._replace(steps=steps)
        if k + 1 < len(self.plan):
            self.plan[k + 1] = self.plan[k + 1]._replace(steps=self.plan[k + 1].steps + spared)

    def _prepared(self, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The learner and its optimiser, as a step uses them."""
        if distributed.is_sharded(self.learner):
            # prepare() tells the optimiser's parameters apart by address, and shards of nothing all have the address 0
            return self.learner, self.accelerator.prepare_optimizer(optimizer)
        return self.accelerator.prepare(self.learner, optimizer)

    def step(self, phase: Phase, wrapped: Any, optimizer: Any, batches: Iterator[Batch], trains: list) -> None:
        """One step: gather the batches, count what the objectives speak for, differentiate, move."""
        learner, at = self.learner, self.at
        group = self.meter.take(batches, self.train.accumulate)
        for _, objective in learner.parts():
            group = [objective.craft(learner, batch) for batch in group]
        counts = learner.counts(group)
        optim.set_rate(optimizer, optim.share(at.step, phase.steps, self.train))
        for k, batch in enumerate(group):
            with nullcontext() if k == len(group) - 1 else self.accelerator.no_sync(wrapped):
                with self.accelerator.autocast():
                    loss, means = wrapped(batch, counts)
                self.accelerator.backward(loss)
            self.meter.add(at.total, batch, loss, means)
        for _, objective in learner.parts():
            objective.graded(learner)
        if self._due(phase, 1)[0]:
            self.meter.graded()
        self.norm = None
        if self.train.clip:
            self.norm = distributed.whole(self.accelerator.clip_grad_norm_(trains, self.train.clip))
        optimizer.step()
        optimizer.zero_grad()
        for _, objective in learner.parts():
            objective.stepped(learner, (at.step + 1) / phase.steps)

    def _batches(self, phase: Phase, start: int, stop: int) -> Iterator[Batch]:
        """This rank's batches of the phase's steps ``start`` … ``stop``."""
        first = sum(p.steps for p in self.plan[: self.at.phase])
        views = sorted({view for _, objective in self.learner.parts() for view in objective.needs})
        span = [(first + step) * self.train.accumulate for step in (start, stop)]
        device = self.accelerator.device
        return on_device(self.feed.training(span[0], span[1], views, phase.streams, pin=device.type == "cuda"), device)

    def _refuse_unreached(self, phase: Phase) -> None:
        batch = next(self._batches(phase, self.at.step, min(self.at.step + 1, phase.steps)))
        try:
            with self.meter.counting(batch), self.accelerator.autocast():
                missed = self.learner.unreached(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            words = f"a process has {batch.size} row(s) of it, and a batch norm needs two: raise it, or take another model"
            raise ConfigError([("data.batch_size", words)]) from error
        if missed:
            tops = sorted({".".join(name.split(".")[:2]) for name in missed})
            raise TrainingError(
                f"{len(missed)} parameters train in the phase {phase.name!r}, but no objective reaches them: {', '.join(tops)} "
                f"({missed[0]} is one). Freeze them (transfer.frozen), or add an objective that they serve"
            )

    def _due(self, phase: Phase, ahead: int = 0) -> tuple[bool, bool, bool]:
        """Whether the step that was just made, or the one so many ahead, is logged, evaluated and saved."""
        total, last = self.at.total + ahead, self.at.step + ahead == phase.steps
        evaluates, saves = total % self.per_evaluation == 0 or last, total % self.per_save == 0 or last
        return evaluates or saves or total % self.train.log_every == 0, evaluates, saves

    def _after(self, phase: Phase, optimizer: Any) -> None:
        """After a step: log, evaluate, keep the best, save."""
        at, last = self.at, self.at.step == phase.steps
        logs, evaluates, saves = self._due(phase)
        if not logs:
            return
        figures = self.meter.flush(at.total, optimizer.param_groups[0]["lr"], self.norm)
        self.watch.show(at.total, figures)
        if phase.until is not None:  # the loss is that of all processes, so they agree
            falls = at.lowest is None or figures["loss"] < at.lowest - phase.until.drop * abs(at.lowest)
            at.lowest, at.stuck = (figures["loss"], 0) if falls else (at.lowest, at.stuck + 1)
            if self._stuck(phase):
                last = evaluates = saves = True
        if evaluates or saves:
            self.meter.pause()
            distributed.share_buffers(self.learner)
            self.average.share()
        if evaluates and self.validation is not None:
            with self.average.shown():
                self._evaluate()
        stop = self.accelerator.check_trigger()  # here alone: a flush waits for all processes anyway, and resuming stays exact
        if saves or stop:
            state = self._ended() if last else at
            held = (state, self.frozen, self.average.mean, self.train.keep)
            resume.save(self.run.last, self.learner, optimizer, self.accelerator.scaler, *held)
        if stop:
            raise Stopped(at.total, self.total)

    def _evaluate(self) -> None:
        at, patience = self.at, self.train.patience
        name, value, higher, probed = measured(self.learner, self.feed, self.validation, self.accelerator, self.train)  # type: ignore[arg-type]
        value = distributed.from_first(value)
        self.run.log({"step": at.total, f"validation/{name}": value, **probed})
        self.accelerator.log({f"validation/{name}": value, **probed}, step=at.total)
        best = better(value, at.best, higher)
        self.watch.evaluated(at.total, self.total, f"validation {name}", value, best)
        if best:
            at.best, at.best_step, at.waited = value, at.total, 0
            self.learner.model.save_pretrained(self.run.best)
            distributed.wait()
        else:
            at.waited += 1
            at.done = patience is not None and at.waited >= patience
