"""Whose answers are perturbed, by an attack or by noise: a task and its rows, with everything refused that cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mmkt.experiment import Attacked, Smoothed
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.raw import refuse
from mmkt.threat import Threat


class Words(NamedTuple):
    """What refusals say."""

    where: str  # the settings' dotted path
    limits: str  # the setting that says how far raw numbers move
    reason: str  # why a class is needed
    what: str  # does not reach the raw numbers behind cached features


def task_and_rows(
    model: Model,
    feed: Feed,
    rows: np.ndarray,
    threats: Mapping[str, Threat],
    settings: Attacked | Smoothed,
    seed: int,
    words: Words,
) -> tuple[str, np.ndarray]:
    """The classifier that is perturbed, and which labelled rows it is asked about, ascending.

    Args:
        model: perturbed.
        feed: of its rows.
        rows: of the split.
        threats: by modality, what is done to its raw numbers.
        settings: say the task (by default the first classifier) and how many rows.
        seed: they are drawn by.
        words: of refusals.

    Raises:
        ConfigError: no classifier, other modalities than the model's, or features in the place of raw numbers.
    """
    known = [task for task, head in model.heads.items() if "classes" in head.vocabulary]
    if settings.task is None and not known:
        raise ConfigError([(f"{words.where}.task", f"{words.reason}, and the model has no classifier")])
    task = settings.task or known[0]
    try:
        refuse(model, task, threats)
    except ConfigError as error:
        problems = [(f"{words.where}.{path.replace('threats', words.limits)}", why) for path, why in error.problems]
        raise ConfigError(problems) from error
    held = sorted(set(threats) & set(feed.features))
    if held:
        why = f"{held[0]} comes as cached features, so that {words.what} reaches its raw numbers: say data.features=null"
        raise ConfigError([("data.features", why)])
    labelled = rows[feed.labels[task][1].numpy()[rows]]
    return task, np.sort(np.random.default_rng(seed).permutation(labelled)[: settings.rows])
