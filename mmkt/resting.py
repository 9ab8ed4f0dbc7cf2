"""Encoders that rest: no phase trains them and nothing augments their inputs, so features stand in for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from mmkt import distributed
from mmkt.data.rows import Rows
from mmkt.experiment import Experiment
from mmkt.feature_cache import Features, features, key_of
from mmkt.feature_maker import Source
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.types import Objective, Phase
from mmkt.workshop import Workshop


def awake(learner: Learner, feed: Feed, plan: Sequence[Phase]) -> dict[str, str]:
    """The modalities whose encoders have to run in training, and why."""
    model, config = learner.model, learner.model.config
    assert config is not None
    trained = set().union(*(learner.trained_in(phase) for phase in plan))
    looking = [n for n, o in learner.objectives.items() if o.raw or o.needs or type(o).craft is not Objective.craft]
    found: dict[str, str] = {}
    for m in model.modalities:
        if any(name.startswith(f"encoders.{m}.") for name in trained):
            found[m] = "it trains (transfer.frozen would hold it)"
        elif feed.processors[m].draws:
            found[m] = f"its inputs are augmented (model.encoders.{m}.augment=false leaves them as they are)"
        elif m in feed.data.one_of:
            found[m] = "training draws one of its items (data.one_of)"
        elif looking:
            found[m] = f"the objective {looking[0]} looks at its inputs"
    for m, lender in borrowed(model).items():
        if m not in found and any(name.startswith(f"encoders.{lender}.") for name in trained):
            found[m] = f"{lender}, whose body it borrows, trains"
    return found


def borrowed(model: Model) -> dict[str, str]:
    """Modality → the modality whose body it borrows."""
    specs: Mapping[str, Any] = model.config.model.encoders if model.config else {}
    lent = [m for m in specs if getattr(model.encoders[m], "lender", None)]  # none where the body is a copy of its own
    return {m: specs[m]["body"] for m in lent if specs[m].get("body") in specs}


def rest(
    learner: Learner, feed: Feed, plan: Sequence[Phase], rows: np.ndarray, accelerator: Accelerator, workshop: Workshop
) -> None:
    """Let features stand in for every encoder that can rest (``data.features``), in training and evaluation.

    Args:
        learner: whose model then leaves those encoders out of its saves.
        feed: gets the features.
        plan: the phases.
        rows: numbers of the rows that training and its evaluation read.
        accelerator: device and precision.
        workshop: keeps encoders and features for the next training of this process.

    Raises:
        ConfigError: every encoder has to run, or the model is sharded.
    """
    model, config = learner.model, learner.model.config
    assert config is not None
    if config.data.features is None:
        return
    if accelerator.is_fsdp2:
        raise ConfigError([("data.features", "does not go with FSDP2: launch with ddp.yaml, or leave it out")])
    running = awake(learner, feed, plan)
    resting = [m for m in model.modalities if m not in running]
    if not resting:
        raise ConfigError([("data.features", "no encoder rests: " + "; ".join(f"{m}: {why}" for m, why in running.items()))])
    for m, why in running.items():
        distributed.say(f"{m} is encoded in every step: {why}")
    encoders, key = {m: model.encoders[m] for m in resting}, encoders_key(config)
    workshop.get("encoders", key, lambda: encoders)
    model.refer(resting, workshop.find("digest", [key, resting]))
    workshop.get("digest", [key, resting], lambda: model.referred[1])
    named = hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
    for m in resting:
        feed.features[m] = workshop.get(
            "features",
            [m, key, config.data.features, accelerator.mixed_precision, named],
            partial(stored, model, feed, m, rows, accelerator, workshop),
        )


def stored(model: Model, feed: Feed, m: str, rows: np.ndarray, accelerator: Accelerator, workshop: Workshop) -> Features:
    """One modality's features of some rows, from the folder that the config names or computed into it."""
    config = model.config
    assert config is not None
    assert config.data.features is not None
    encoder, lender = model.encoders[m], borrowed(model).get(m)
    source = Rows(feed.manifest, {m: feed.columns[m]}, {m: feed.processors[m]}, seed=0, train=False, limits=feed.limits)
    spec = config.model.encoders[m] | {"adapter": config.model.adapters.get(m)}
    body = model.encoders[lender] if lender else None  # not a submodule of the one that borrows it
    both = [encoder, *([body] if body is not None else [])]
    modes = {module: module.training for one in both for module in one.modules()}
    for one in both:
        one.to(accelerator.device).eval()
    try:
        described = Source(m, encoder, body, spec, source, accelerator.mixed_precision)
        key = workshop.get("key", [m, encoders_key(config), accelerator.mixed_precision], partial(key_of, described))
        return features(Path(config.data.features), described, key, rows, accelerator.autocast)
    finally:
        for module, mode in modes.items():
            module.training = mode


def encoders_key(config: Experiment) -> list[Any]:
    """What a process's encoders are known by."""
    model = config.model
    return [model.encoders, model.adapters, model.start, config.transfer, config.plugins, data_key(config)]


def data_key(config: Experiment) -> list[Any]:
    """What a process's manifests are known by; the seed draws splits, and encoders."""
    data = config.data
    splits = [data.fractions, data.train, data.validation, data.test]
    parts = [data.source, data.origin, data.manifest, data.columns, data.one_of, *splits]
    return [*parts, *(x.model_dump() if x else None for x in (data.fold, data.subset)), config.seed]
