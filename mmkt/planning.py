"""What a plan asks of a learner: what does not go together is refused before anything trains; memory is spared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm

from mmkt import distributed, optim
from mmkt.experiment import Experiment, Train
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.model import matches
from mmkt.parts import ConfigError
from mmkt.types import Phase


def refuse(learner: Learner, feed: Feed, plan: Sequence[Phase], config: Experiment) -> None:
    """Refuse a plan that would stop later, perhaps after hours, or leave something idle.

    Raises:
        ConfigError: so it is.
    """
    optim.refuse_unread(config.train)
    refuse_idle(learner, plan)
    refuse_uneven(learner, feed)
    named = learner.objectives
    contrasts = [name for phase in plan for name in (named if phase.objectives is None else phase.objectives) if name in named]
    if config.train.accumulate > 1 and any(named[name].contrasts for name in contrasts):
        words = "contrastive objectives compare the rows of a batch: raise data.batch_size, and set train.chunk"
        raise ConfigError([("train.accumulate", words)])


def steps_of(train: Train, feed: Feed) -> int:
    """Optimiser steps: ``train.steps``, or what ``train.epochs`` passes over the streams' rows take."""
    if (train.steps is None) == (train.epochs is None):
        raise ConfigError(
            [("train", "give either train.steps or train.epochs, null for the other (train.epochs=null train.steps=200)")]
        )
    if train.steps is not None:
        return train.steps
    return math.ceil(train.epochs * feed.epoch() / train.accumulate)  # type: ignore[operator]


def refuse_idle(learner: Learner, plan: Sequence[Phase]) -> None:
    """Refuse an adapter that no phase trains.

    Raises:
        ConfigError: it would stay as it is, and the body with it.
    """
    trained = set().union(*(learner.trained_in(phase) for phase in plan))
    for m in learner.model.adapters:
        name = f"encoders.{m}.{learner.model.encoders[m].backbone}".rstrip(".")
        if not any(matches(other, name) for other in trained):
            words = f"no phase trains it ({', '.join(phase.name for phase in plan)}): say transfer=full, or leave the adapter out"
            raise ConfigError([(f"model.adapters.{m}", words)])


def refuse_uneven(learner: Learner, feed: Feed) -> None:
    """Refuse what some batches of ``data.tokens`` would stop, perhaps after hours.

    Raises:
        ConfigError: rows of several processes are compared, which have unequally many; or a batch norm has one row.
    """
    world, packing = distributed.world_size(), feed.packing
    if packing is None:
        return
    contrasts = [name for name, objective in learner.objectives.items() if objective.contrasts]
    rows = len(packing.stream.rows)
    if contrasts and rows % world:
        words = (
            f"{rows} training rows do not divide over {world} processes, and {contrasts[0]} compares as many rows of each: "
            "leave it out (data.group_by_length alone has equal batches), or train on one process"
        )
        raise ConfigError([("data.tokens", words)])
    least = packing.least // world
    if least < 2 and any(isinstance(module, _BatchNorm) for module in learner.modules()):
        words = f"the smallest batch has {least} row(s) a process, and a batch norm needs two: raise it, or take another model"
        raise ConfigError([("data.tokens", words)])


def spare_memory(learner: Learner, plan: Sequence[Phase], config: Experiment, accelerator: Accelerator) -> None:
    """What trades time for memory, where it is asked for."""
    if config.train.checkpointing:
        checkpoint_encoders(learner, plan)
    if config.train.chunk is not None:
        chunk_encoders(learner, plan, config.train.chunk, accelerator)


def checkpoint_encoders(learner: Learner, plan: Sequence[Phase]) -> None:
    """Turn gradient checkpointing on in every encoder that some phase trains."""
    trained = set().union(*(learner.trained_in(phase) for phase in plan))
    for m, encoder in learner.model.encoders.items():
        if any(matches(name, f"encoders.{m}") for name in trained):
            try:
                encoder.checkpoint_gradients()
            except ValueError as error:
                raise ConfigError([("train.checkpointing", f"encoders.{m}: {error}")]) from error


def chunk_encoders(learner: Learner, plan: Sequence[Phase], size: int, accelerator: Accelerator) -> None:
    """Give encoders so many items at a time.

    Raises:
        ConfigError: it would not be the same training: with batch norms, or under FSDP2.
    """
    if accelerator.is_fsdp2:
        raise ConfigError([("train.chunk", "ranks have different numbers of items, which FSDP2 can't be run on: use ddp.yaml")])
    trained = set().union(*(learner.trained_in(phase) for phase in plan))
    for m, encoder in learner.model.encoders.items():
        norms = any(isinstance(module, _BatchNorm) for module in encoder.modules())
        if norms and any(matches(name, f"encoders.{m}") for name in trained):
            words = f"encoders.{m} has batch norms, whose statistics would be of a chunk: take a model with group or layer norms"
            raise ConfigError([("train.chunk", words)])
    learner.model.chunk = size
