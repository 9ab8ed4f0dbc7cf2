"""Whose answers are perturbed, by an attack or by noise: a task and its rows, with everything refused that cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from mmkt.data.columns import is_absent
from mmkt.data.manifest import column_of
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
    """The classifier that is perturbed, and which rows it is asked about, ascending: with a label and one of the modalities.

    Args:
        model: perturbed.
        feed: of its rows.
        rows: of the split.
        threats: by modality, what is done to its raw numbers.
        settings: say the task (by default the first classifier) and how many rows.
        seed: they are drawn by.
        words: of refusals.

    Raises:
        ConfigError: no classifier, other modalities than the model's, features in the place of raw numbers, or no such row.
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
    found = _drawn(feed, np.random.default_rng(seed).permutation(labelled), threats, settings.rows)
    if not len(found):
        why = f"none of {len(labelled)} labelled rows has any of {', '.join(threats)}: name other modalities, or another split"
        raise ConfigError([(f"{words.where}.{words.limits}", why)])
    return task, found


def _drawn(feed: Feed, rows: np.ndarray, modalities: Iterable[str], most: int | None) -> np.ndarray:
    """The first of some rows that have one of the modalities, ascending: what has nothing to move says nothing."""
    columns = [column_of(feed.manifest, feed.columns[m]) for m in modalities]
    found = (row for row in rows.tolist() if not all(is_absent(column[row].as_py()) for column in columns))
    return np.sort(np.fromiter(islice(found, most), dtype=np.int64))
