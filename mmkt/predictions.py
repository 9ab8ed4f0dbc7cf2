"""From a model and rows to predictions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mmkt import distributed
from mmkt.data.rows import Change
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.types import Batch, Metric, Outputs, Predictions

Autocast = Callable[[], AbstractContextManager]


def predict(
    model: Model,
    feed: Feed,
    rows: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
    advance: Callable[[int], object] = id,
    vectors: bool = False,
) -> Predictions:
    """A model's answers to some rows, in row order, each row once whatever the batch size and the number of processes.

    Args:
        model: on ``device``; it is left in the mode it was in.
        feed: the rows' manifest.
        rows: row numbers.
        device: to compute on.
        autocast: makes the context of mixed precision.
        advance: is told how many rows of this process are done.
        vectors: adds a column ``vector.M`` a modality (null where the row lacks it) and ``vector.fused``, (D,) float32.

    Returns:
        On every process, the whole.
    """

    def answer(batch: Batch) -> list[_Answer]:
        return [_Answer.of(model(batch), vectors)]

    return _predictions(model, feed, rows, device, autocast, advance, answer, [model.modalities])[-1]


def predict_subsets(
    model: Model,
    feed: Feed,
    rows: np.ndarray,
    subsets: Sequence[Collection[str]],
    *,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
    advance: Callable[[int], object] = id,
    vectors: bool = False,
) -> list[Predictions]:
    """As ``predict``, with some of the modalities at a time: encoders run once, what comes after them once a subset.

    A modality that is left out is missing, as in a row that lacks it; ``has.M`` says so.

    Args:
        model: on ``device``, not sharded; it is left in the mode it was in.
        feed: the rows' manifest.
        rows: row numbers.
        subsets: of the model's modalities, all of them last.
        device: to compute on.
        autocast: makes the context of mixed precision.
        advance: is told how many rows of this process are done.
        vectors: as in ``predict``, of the last subset.

    Returns:
        By subset, on rank 0; without ``id``, ``split``, ``domain`` and ``group`` but for the last one. On the other processes
        the last one alone.
    """
    assert not distributed.is_sharded(model), "the parts of a sharded model are gathered by running it as a whole"

    def answer(batch: Batch) -> list[_Answer]:
        encoded = model.encode(batch)
        return [_Answer.of(model.fuse(encoded, keep), vectors and k == len(subsets)) for k, keep in enumerate(subsets, 1)]

    return _predictions(model, feed, rows, device, autocast, advance, answer, subsets)


def predict_changed(
    model: Model,
    feed: Feed,
    rows: np.ndarray,
    changes: Mapping[str, Mapping[str, Change]],
    *,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
    advance: Callable[[int], object] = id,
) -> dict[str, Predictions]:
    """As ``predict``, with some inputs changed: what no change touches is encoded once for all of them.

    Args:
        model: on ``device``, not sharded; it is left in the mode it was in.
        feed: the rows' manifest.
        rows: row numbers.
        changes: by name, by modality, what is done to a raw item (see ``Rows``).
        device: to compute on.
        autocast: makes the context of mixed precision.
        advance: is told how many rows of this process are done.

    Returns:
        By name, on rank 0; without ``id``, ``split``, ``domain`` and ``group``. On the other processes the last one alone.
    """
    assert not distributed.is_sharded(model), "the parts of a sharded model are gathered by running it as a whole"
    kept = [m for m in model.modalities if not all(m in some for some in changes.values())]

    def answer(batch: Batch) -> list[_Answer]:
        encoded = model.encode(batch, kept)
        worse = [encoded | model.encode(batch._replace(inputs=batch.views[name]), some) for name, some in changes.items()]
        return [_Answer.of(model.fuse(x), False) for x in worse]

    every = [model.modalities] * len(changes)
    found = _predictions(model, feed, rows, device, autocast, advance, answer, every, changes)
    return dict(zip([*changes][-len(found) :], found, strict=True))


class _Answer(NamedTuple):
    """To a batch."""

    logits: dict[str, Tensor]
    vectors: dict[str, np.ndarray]

    @classmethod
    def of(cls, outputs: Outputs, vectors: bool) -> _Answer:
        pooled = {m: x.pooled for m, x in outputs.encoded.items()} | {"fused": outputs.fused.pooled} if vectors else {}
        kept = {name: x.float().cpu().numpy() for name, x in pooled.items()}
        return cls({t: x.float().cpu() for t, x in outputs.logits.items()}, kept)


class _Rows(NamedTuple):
    """What is known of a batch's rows before it is asked about."""

    row: np.ndarray
    present: dict[str, np.ndarray]


def _predictions(
    model: Model,
    feed: Feed,
    rows: np.ndarray,
    device: torch.device | str,
    autocast: Autocast,
    advance: Callable[[int], object],
    answer: Callable[[Batch], list[_Answer]],
    subsets: Sequence[Collection[str]],
    changes: Mapping[str, Mapping[str, Change]] = MappingProxyType({}),
) -> list[Predictions]:
    """Every batch's answers, one a subset, each subset's as one table in row order (see ``predict_subsets``)."""
    training, found = model.training, []
    model.eval()
    try:
        with torch.inference_mode(), autocast():
            for batch in _batches(model, feed, rows, changes):
                known = _Rows(batch.row.numpy(), {m: p.numpy() for m, p in batch.present.items()})
                found.append((known, answer(batch.to(device))))
                advance(batch.size)
    finally:
        model.train(training)
    parts = [part for every in distributed.everyone(found) for part in every]
    asked, answers = [part for part, _ in parts], list(zip(*(some for _, some in parts), strict=True))
    first = 0 if distributed.rank() == 0 else len(subsets) - 1
    return [
        _gathered(model, feed, rows, asked, some, keep, bare=some is not answers[-1])
        for some, keep in list(zip(answers, subsets, strict=True))[first:]
    ]


def _batches(
    model: Model, feed: Feed, rows: np.ndarray, changes: Mapping[str, Mapping[str, Change]] = MappingProxyType({})
) -> Iterator[Batch]:
    """This process's batches. A sharded model has to run equally often everywhere, as it is gathered by running."""
    world = distributed.world_size()
    if distributed.is_sharded(model) and len(rows) < world:
        raise ConfigError(f"{world} processes that share a model evaluate {world} rows or more, found {len(rows)}: launch fewer")
    return feed.evaluation(rows, changes)


def _gathered(
    model: Model,
    feed: Feed,
    rows: np.ndarray,
    asked: Sequence[_Rows],
    answers: Sequence[_Answer],
    keep: Collection[str],
    bare: bool,
) -> Predictions:
    """What every process found, batch by batch, as one table in row order; ``bare``: without what is said of a row itself."""
    order = np.argsort(np.concatenate([part.row for part in asked]), kind="stable")
    table = feed.manifest.table.select([] if bare else ["id", "split", "domain", "group"]).take(np.sort(rows))
    columns: dict[str, Any] = {"row": np.sort(rows)} | {name: table[name] for name in table.column_names}
    assert len(order) == len(rows), "a row was lost or doubled"
    for m in model.modalities:
        columns[f"has.{m}"] = np.concatenate([part.present[m] for part in asked])[order] & (m in keep)
    for task, head in model.heads.items():
        scores = head.calibrated(torch.cat([answer.logits[task] for answer in answers])[torch.from_numpy(order)])
        column = feed.label_column(task)
        known = column in feed.manifest.table.column_names
        labels = feed.manifest.table[column].take(np.sort(rows)) if known else pa.nulls(len(rows))
        if pa.types.is_floating(labels.type):
            labels = pc.if_else(pc.is_nan(labels), None, labels)  # unlabelled too, as in training
        columns[f"{task}.label"] = labels
        columns |= {f"{task}.{name}": values for name, values in (head.decode(scores) | head.prediction_sets(scores)).items()}
        columns[f"{task}.logits"] = pa.array(list(scores.numpy()), pa.list_(pa.float32()))
    for name in answers[0].vectors:
        there = columns.get(f"has.{name}", np.ones(len(rows), dtype=bool))
        every = np.concatenate([answer.vectors[name] for answer in answers])[order]  # (rows, D)
        columns[f"vector.{name}"] = pa.array([x if on else None for x, on in zip(every, there)], pa.list_(pa.float32()))
    tasks = {task: spec["name"] for task, spec in model.config.model.heads.items()} if model.config else {}
    return Predictions(pa.table(columns), tasks, model.vocabularies)


def judges(model: Model, extra: Mapping[str, Mapping[str, Any]], parts: Parts) -> dict[str, list[tuple[str, Metric]]]:
    """By task, the metrics to judge it by: its head's own, with those of the config beside or in place of them."""
    found: dict[str, list[tuple[str, Metric]]] = {}
    for task, head in model.heads.items():
        kind = type(head).__name__.lower()
        sets = ("coverage", "set_size") if "calibration" in head.vocabulary else ()
        own = {name: parts.find("metrics", name)() for name in (*head.metrics, *sets)}
        for name, spec in extra.items():
            metric = parts.build("metrics", spec)
            if kind in metric.heads:
                own[name] = metric
        found[task] = list(own.items())
    return found


def mean_loss(learner: Learner, feed: Feed, rows: np.ndarray, device: torch.device | str, autocast: Autocast) -> float:
    """The weighted loss over some rows: each objective's mean over its items, and each term's over batches."""
    training = learner.training
    learner.eval()
    weights = [learner.weights[name] for name in learner.active]
    sums = torch.zeros(len(weights), 2, dtype=torch.float64)
    terms, batches = 0.0, 0
    try:
        with torch.inference_mode(), autocast():
            for batch in _batches(learner.model, feed, rows):
                batch = batch.to(device)
                outputs = learner.model(batch)
                for k, (_, objective) in enumerate(learner.parts()):
                    sums[k, 0] += objective(learner.model, batch, outputs).double().cpu()
                    sums[k, 1] += objective.count(batch).cpu()
                terms += sum(learner.terms[name] * float(x) for name, x in outputs.terms.items())
                batches += 1
    finally:
        learner.train(training)
    figures = torch.cat([sums.flatten(), torch.tensor([terms, batches], dtype=torch.float64)])
    total = distributed.total(figures.to(device)).cpu()  # NCCL sums what is on a GPU alone
    pairs = total[:-2].view(-1, 2)
    means = pairs[:, 0] / pairs[:, 1].clamp(min=1)
    return float((means * torch.tensor(weights, dtype=torch.float64)).sum() + total[-2] / total[-1].clamp(min=1))
