"""All that an evaluation was asked for beside its figures, measured after the last pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mmkt import (
    attacked,
    certified,
    distributed,
    few_shot,
    missing,
    prompts,
    retrieval,
    robust_accuracy,
    robustness,
    subsets,
    zero_shot,
)
from mmkt.asked import Plan, label_cells, same_cells
from mmkt.data.columns import spelled
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.report import Sheet
from mmkt.score import About
from mmkt.types import Metric, Predictions, Row
from mmkt.vectors import unit_vectors

SHEETS: dict[str, Callable[[Sequence[Row]], Iterator[Sheet]]] = {  # by file, in the order of the report
    "subsets": subsets.sheets,
    "missing": missing.sheets,
    "corruptions": robustness.sheets,
    "attacks": robust_accuracy.sheets,
    "certificates": certified.sheets,
    "retrieval": retrieval.sheets,
    "zero_shot": zero_shot.sheets,
    "few_shot": few_shot.sheets,
}


class Answers(NamedTuple):
    """Of a model, as planned."""

    by_subset: Sequence[Predictions]
    whole: Predictions  # of all modalities, with vectors where they are needed
    corrupted: Mapping[str, Predictions]  # by condition
    pool: Predictions | None
    validation: Predictions | None
    named: Mapping[str, tuple[Sequence[str], Tensor]]  # by language, classes and their vectors
    attacked: attacked.Found = attacked.Found()
    certificates: certified.Certificates | None = None


def class_vectors(
    model: Model, asked: Plan, device: torch.device | str, autocast: Callable[[], AbstractContextManager]
) -> dict[str, tuple[Sequence[str], Tensor]]:
    """By language, the classes of the prompts and their vectors."""
    return {
        language: (list(some.names), prompts.class_vectors(model, some, device=device, autocast=autocast))
        for language, some in asked.prompts.items()
    }


def measure(
    asked: Plan,
    answers: Answers,
    model: Model,
    feed: Feed,
    rows: np.ndarray,
    judges: Mapping[str, Sequence[tuple[str, Metric]]],
    about: About,
) -> dict[str, list[Row]]:
    """By the name of its file, all that was planned; on one process."""
    config, names, found = model.config, model.modalities, {}
    assert config is not None
    settings = config.evaluate
    times: Any = {"about": about, "resamples": settings.resamples}
    if asked.subsets:
        found["subsets"] = subsets.measure(answers.by_subset, names, judges, **times)
        if settings.missing:
            found["missing"] = missing.measure(answers.by_subset, names, judges, settings.missing, **times)
    if answers.corrupted:
        found["corruptions"] = robustness.measure(answers.whole, answers.corrupted, judges, **times)
    if asked.siege is not None:
        siege, outcomes = asked.siege, answers.attacked.outcomes
        found["attacks"] = robust_accuracy.measure(outcomes, siege.kinds, siege.task, about, settings.resamples)
        if siege.target is not None:
            name = model.heads[siege.task].vocabulary["classes"][siege.target]
            found["attacks"].append(robust_accuracy.aimed(about, siege.task, name, siege.target))
    if asked.smoothing is not None and answers.certificates is not None:
        found["certificates"] = certified.measure(answers.certificates, asked.smoothing, about, settings.resamples)
    if asked.items is not None:
        found["retrieval"] = retrieval.measure(answers.whole, names, asked.items, same_cells(feed, rows), **times)
    if asked.prompts:
        seen = _seen(model, feed, asked.column, config)
        column = label_cells(feed.manifest, asked.column, rows)
        others = [m for m in names if m != prompts.text_modality(model)]
        found["zero_shot"] = zero_shot.measure(answers.whole, column, answers.named, others, seen, asked.column, **times)
    if answers.pool is not None:
        found["few_shot"] = _few_shot(asked, answers, model, feed, rows, about)
    return {name: some for name, some in found.items() if some}


def _seen(model: Model, feed: Feed, column: str, config: Experiment) -> set[str]:
    """Classes that training had: those of its rows; where the manifest has none of them, of the head that this column is of."""
    names = pa.array({config.data.train, *(stream.split for stream in config.data.streams.values())})
    rows = np.flatnonzero(np.array(pc.is_in(feed.manifest.table["split"], names)))
    if not len(rows):
        heads = (head for task, head in model.heads.items() if feed.label_column(task) == column)
        return {spelled(name) for head in heads for name in head.vocabulary.get("classes", ())}
    return set(label_cells(feed.manifest, column, rows)) - {None}


def _few_shot(asked: Plan, answers: Answers, model: Model, feed: Feed, rows: np.ndarray, about: About) -> list[Row]:
    """Of every modality by itself, and fused."""
    assert model.config is not None
    assert asked.pool is not None
    settings, found = model.config.evaluate, []
    parts = [(answers.pool, asked.pool), (answers.whole, rows), (answers.validation, asked.validation)]
    labels = [None if x is None else label_cells(feed.manifest, asked.column, x) for _, x in parts]
    classes = sorted({x for x in labels[0] or () if x is not None})
    place = {name: k for k, name in enumerate(classes)}
    text = prompts.text_modality(model) if asked.prompts else None
    named = {}
    for language, (known, vectors) in answers.named.items():
        where = {name: k for k, name in enumerate(known)}
        named[language] = vectors[[where[name] for name in classes]]  # (C, D)
    for m in (*model.modalities, "fused"):
        pool, test, validation = (
            _labelled(some, m, column, place) if some is not None else None
            for (some, _), column in zip(parts, labels, strict=True)
        )
        if pool is None or test is None or not len(pool.y) or not len(test.y):
            continue
        here: Any = {"task": asked.column, "about": about._replace(modalities=m), "seed": model.config.seed}
        here["named"] = named if m not in (text, "fused") else {}
        checks = validation if validation is not None and len(validation.y) else None
        if validation is not None and checks is None:
            distributed.say(f"few shots: no row of validation has {m}, so that what has a setting (all but ncm) is left out")
        found += few_shot.measure(pool, checks, test, len(classes), settings.shots, settings.episodes, **here)
    return found


def _labelled(some: Predictions, m: str, column: Sequence[Any] | None, place: Mapping[str, int]) -> few_shot.Vectors:
    """The rows that have the modality and a label that the pool has too."""
    there = some.table[f"has.{m}"].to_numpy() if m != "fused" else np.ones(len(some.table), dtype=bool)
    y = np.array([place.get(label, -1) for label in column or ()])
    kept = torch.from_numpy(there & (y >= 0))
    return few_shot.Vectors(unit_vectors(some, m)[kept], torch.from_numpy(y)[kept])
