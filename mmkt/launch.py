"""An experiment trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from rich.console import Console

from mmkt import batch_size, checkpoint, distributed, planning, selection
from mmkt.card import model_card
from mmkt.data import splits
from mmkt.data.check import Unreadable
from mmkt.data.manifest import Manifest, fingerprint
from mmkt.dry_run import dry_run
from mmkt.evaluate import NO_ROWS, figures, list_bad_rows, write_figures
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.launcher import forget_precision, refuse_absent, refuse_apart, refuse_sharding, say_if_whole, use_threads
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.preparation import learn_vocabularies, open_manifest
from mmkt.resources import answers, column
from mmkt.resting import data_key, encoders_key, rest
from mmkt.run import Run, environment, flat
from mmkt.start import start
from mmkt.stop import Ear, Listener, Stop, Stopped
from mmkt.telemetry import TrainingError
from mmkt.train import fit
from mmkt.types import Encoder, Phase, Resources, Row
from mmkt.workshop import Workshop


class Setup(NamedTuple):
    """An experiment, built."""

    manifest: Manifest
    learner: Learner
    feed: Feed
    parts: Parts
    bad: list[Unreadable]  # cells for which rows were left out


def build(config: Experiment, workshop: Workshop | None = None) -> Setup:
    """Manifest, vocabularies, model, objectives, feed; weights are drawn from the config's seed.

    Args:
        config: the experiment.
        workshop: what other trainings of this process made.
    """
    parts, workshop = Parts(config.plugins), workshop or Workshop()
    manifest = workshop.get("manifest", data_key(config), lambda: open_manifest(config.data, config.seed, parts))
    built, bad = workshop.find("encoders", encoders_key(config)) or {}, []
    model = _drawn(config, manifest, parts, built)
    if config.data.bad_rows == "drop":
        looking = Feed(manifest, model, config.data, config.seed, labelled=NO_ROWS)
        bad = looking.unreadable(used(looking, config))
        if bad:  # heads learn from the rows that are left
            manifest = splits.without(manifest, {cell.row for cell in bad})
            model = _drawn(config, manifest, parts, built)
    feed = Feed(manifest, model, config.data, config.seed)
    if config.model.start is not None:
        distributed.say(start(model, config.model.start))
    learner = Learner.from_config(config, model, feed.domains, config.plugins)
    resources = Resources(partial(answers, config=config, manifest=manifest, rows=_learned(feed, config)), column)
    for name, objective in learner.objectives.items():
        try:
            objective.prepare(learner, resources)
        except ValueError as error:
            raise ConfigError([(f"objectives.{name}", str(error))]) from error
    return Setup(manifest, learner, feed, parts, bad)


def _drawn(config: Experiment, manifest: Manifest, parts: Parts, built: Mapping[str, Encoder]) -> Model:
    """The model for these rows, drawn from the config's seed."""
    vocabularies = learn_vocabularies(config, manifest, parts)
    torch.manual_seed(config.seed)
    return Model.from_config(config, vocabularies, config.plugins, built=built)


def used(feed: Feed, config: Experiment) -> np.ndarray:
    """Numbers of the rows that training and its evaluation read, ascending."""
    return np.union1d(_learned(feed, config), feed.rows(config.evaluate.split))


def _learned(feed: Feed, config: Experiment) -> np.ndarray:
    """Numbers of the rows that objectives see, ascending: those that train or validate."""
    names = {config.data.train, config.data.validation, *(stream.split for stream in config.data.streams.values())} - {None}
    return np.unique(np.concatenate([feed.rows(name) for name in names if name]))


def plan_of(setup: Setup, config: Experiment) -> list[Phase]:
    """The phases of an experiment that is built.

    Raises:
        ConfigError: its transfer does not go with its model, or an adapter would be idle.
    """
    transfer = setup.parts.build("transfer", config.transfer)
    try:
        plan = transfer.phases(setup.learner, planning.steps_of(config.train, setup.feed))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([(f"transfer ({config.transfer['name']})", str(error))]) from error
    planning.refuse(setup.learner, setup.feed, plan, config)
    selection.refuse(setup.learner, plan, config.train.select)
    return plan


def accelerator_of(config: Experiment, **more: Any) -> Accelerator:
    """The processes and the precision of a training, whatever this process trained before; ``more`` goes to Accelerate."""
    forget_precision()
    # only what batch norms count differs by rank; it is shared before it is read (distributed.share_buffers)
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(mixed_precision=config.train.precision, kwargs_handlers=handlers, **more)
    use_threads(accelerator, config.threads)
    return accelerator


def built_to_rest(
    config: Experiment, workshop: Workshop, splits: Sequence[str] | None = None
) -> tuple[Setup, list[Phase], Accelerator]:
    """An experiment built, with features of its encoders that rest in place.

    Args:
        config: with ``data.features``, or without: then nothing rests.
        workshop: what other trainings of this process made.
        splits: whose features are wanted; by default those that training and its evaluation read.
    """
    accelerator = accelerator_of(config)
    setup = build(config, workshop)
    plan = plan_of(setup, config)
    rows = used(setup.feed, config) if splits is None else np.unique(np.concatenate([setup.feed.rows(name) for name in splits]))
    rest(setup.learner, setup.feed, plan, rows, accelerator, workshop)
    return setup, plan, accelerator


def with_batch_size(config: Experiment, resume: bool, accelerator: Accelerator, workshop: Workshop) -> Experiment:
    """The same experiment with a number for ``data.batch_size: auto``: the run's that is resumed, or what fits.

    What is built to try it is built again afterwards: the steps that were tried leave no trace.
    """
    saved = Path(config.run) / "config.json"
    if resume and saved.is_file():
        return _of_size(config, checkpoint.read_json(saved)["data"]["batch_size"])
    batch_size.refuse(config.data, accelerator)
    one = _of_size(config, accelerator.num_processes)
    setup = build(one, workshop)
    plan = plan_of(setup, one)
    planning.spare_memory(setup.learner, plan, config, accelerator)
    rest(setup.learner, setup.feed, plan, used(setup.feed, one), accelerator, workshop)
    size = batch_size.find(setup.learner.to(accelerator.device), setup.feed, plan, config.train, accelerator)
    distributed.say(f"data.batch_size: {size} rows fit (auto)")
    return _of_size(config, size)


def _of_size(config: Experiment, size: int) -> Experiment:
    return config.model_copy(update={"data": config.data.model_copy(update={"batch_size": size})})


def _scalar(value: Any) -> Any:
    """What every tracker takes as a setting: a number, a switch or text."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def train(
    config: Experiment,
    *,
    resume: bool = False,
    dry: bool = False,
    max_time: float | None = None,
    workshop: Workshop | None = None,
    listener: Listener | None = None,
) -> list[Row] | dict[str, Any]:
    """Train, evaluate the best checkpoint on ``evaluate.split``, and write its card.

    Args:
        config: the experiment.
        resume: continue the run in its folder; where nothing was saved yet, from its first step.
        dry: only say what would happen; the return value is that, as plain data.
        max_time: seconds after which training stops at the next logged step.
        workshop: what other trainings of this process made, and may have from this one.
        listener: told on rank 0 what is logged; may stop the training.

    Raises:
        Stopped: by ``max_time``, SIGTERM, Ctrl-C or the listener; the state to resume from is saved.
    """
    refuse_sharding()
    refuse_absent(config.trackers)
    logs = ProjectConfiguration(project_dir=config.run, logging_dir=f"{config.run}/tensorboard")
    accelerator = accelerator_of(config, log_with=list(config.trackers) or None, project_config=logs)
    refuse_apart(accelerator)
    stop = Stop(accelerator, max_time)
    say_if_whole(accelerator)
    console = Console(stderr=True)
    workshop = workshop or Workshop()
    if config.data.batch_size == "auto":
        config = with_batch_size(config, resume, accelerator, workshop)
    setup = build(config, workshop)
    plan = plan_of(setup, config)
    planning.spare_memory(setup.learner, plan, config, accelerator)
    if dry:
        return dry_run(setup.learner, setup.feed, plan, config.train, console, accelerator.device)
    rest(setup.learner, setup.feed, plan, used(setup.feed, config), accelerator, workshop)
    content = workshop.get("fingerprint", [data_key(config), len(setup.bad)], lambda: fingerprint(setup.manifest))
    run = Run(config.run, config, content, resume=resume)
    if setup.bad and distributed.rank() == 0:
        list_bad_rows(setup.bad, run.folder / "bad_rows.jsonl")
    if config.trackers:
        accelerator.init_trackers("mmkt", config={name: _scalar(value) for name, value in flat(config.settings()).items()})
    if listener is not None:
        accelerator.trackers.append(Ear(accelerator, listener, sum(phase.steps for phase in plan)))
    try:
        with stop:
            speed = fit(setup.learner, setup.feed, plan, run, accelerator, config.train, seed=config.seed, resumed=run.resumed)
    except Stopped as stopped:
        stopped.asked = any(distributed.everyone(stop.asked))
        _finish(accelerator)
        raise
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        raise TrainingError(
            "another process of this run is gone (killed, out of memory, or stopped by an error of its own, which it has "
            f"printed); --resume continues from the last saved step: {error}"
        ) from None
    if speed.steps:
        share = speed.data / speed.total
        distributed.say(f"{speed.steps} steps in {speed.total:.0f} s, {share:.1%} of it waiting for data; best: {run.best}")
    model = setup.learner.model
    found = figures(model, setup.feed, setup.parts, accelerator)
    if distributed.rank() == 0:
        facts = environment() | {"data": content}
        (run.best / "README.md").write_text(model_card(model, found.rows, facts), encoding="utf-8")
        write_figures(run.best / f"evaluation-{config.evaluate.split}", found)
    _finish(accelerator)
    return found.rows


def evaluate_best(config: Experiment, split: str, workshop: Workshop, *, subsets: bool) -> None:
    """Evaluate the best checkpoint of a run that reads features (``data.features``) on a split, by features too.

    Args:
        config: the run's.
        split: its figures and predictions go to ``best/evaluation-SPLIT``.
        workshop: what other trainings of this process made.
        subsets: every subset of the modalities as well.

    Raises:
        CheckpointError: the encoders are not those that the run had.
    """
    asked: dict[str, Any] = {
        "split": split,
        "subsets": None if subsets else False,
        "missing": [],
        "page": False,
        "retrieval": False,
    }
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=asked)})
    setup, _, accelerator = built_to_rest(config, workshop, [split])
    model, best = setup.learner.model, checkpoint.settle(Path(config.run) / "best")
    model.refuse_other(best)
    checkpoint.load_strict(model, checkpoint.read_tensors(best / "model.safetensors"), best, model.referred[0])
    found = figures(model.to(accelerator.device), setup.feed, setup.parts, accelerator, whole=True)
    write_figures(best / f"evaluation-{split}", found)


def _finish(accelerator: Accelerator) -> None:
    """Close the trackers; the processes stay together, so that one of them prints."""
    for tracker in accelerator.trackers:
        tracker.finish()
