"""From a model and rows to predictions, and from predictions to figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mmkt import distributed
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.types import Batch, Metric, Predictions

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
    training, found = model.training, []
    model.eval()
    try:
        with torch.inference_mode(), autocast():
            for batch in _batches(model, feed, rows):
                outputs = model(batch.to(device))
                logits = {task: x.float().cpu() for task, x in outputs.logits.items()}
                pooled = {m: x.pooled for m, x in outputs.encoded.items()} | {"fused": outputs.fused.pooled} if vectors else {}
                kept = {name: x.float().cpu().numpy() for name, x in pooled.items()}
                found.append((batch.row.numpy(), {m: p.numpy() for m, p in batch.present.items()}, logits, kept))
                advance(batch.size)
    finally:
        model.train(training)
    parts = [part for every in distributed.everyone(found) for part in every]
    return _gathered(model, feed, rows, parts, vectors)


def _batches(model: Model, feed: Feed, rows: np.ndarray) -> Iterator[Batch]:
    """This process's batches. A sharded model has to run equally often everywhere, as it is gathered by running."""
    world = distributed.world_size()
    if distributed.is_sharded(model) and len(rows) < world:
        raise ConfigError(f"{world} processes that share a model evaluate {world} rows or more, found {len(rows)}: launch fewer")
    return feed.evaluation(rows)


def _gathered(model: Model, feed: Feed, rows: np.ndarray, parts: list, vectors: bool) -> Predictions:
    """What every process found, batch by batch, as one table in row order."""
    order = np.argsort(np.concatenate([row for row, *_ in parts]), kind="stable")
    table = feed.manifest.table.select(["id", "split", "domain", "group"]).take(np.sort(rows))
    columns: dict[str, Any] = {"row": np.sort(rows)} | {name: table[name] for name in table.column_names}
    assert len(order) == len(rows), "a row was lost or doubled"
    for m in model.modalities:
        columns[f"has.{m}"] = np.concatenate([present[m] for _, present, *_ in parts])[order]
    for task, head in model.heads.items():
        scores = torch.cat([x[task] for _, _, x, _ in parts])[torch.from_numpy(order)]
        column = feed.label_column(task)
        known = column in feed.manifest.table.column_names
        columns[f"{task}.label"] = feed.manifest.table[column].take(np.sort(rows)) if known else pa.nulls(len(rows))
        columns |= {f"{task}.{name}": values for name, values in head.decode(scores).items()}
        columns[f"{task}.logits"] = pa.array(list(scores.numpy()), pa.list_(pa.float32()))
    for name in (*model.modalities, "fused") if vectors else ():
        there = columns.get(f"has.{name}", np.ones(len(rows), dtype=bool))
        every = np.concatenate([kept[name] for *_, kept in parts])[order]  # (rows, D)
        columns[f"vector.{name}"] = pa.array([x if on else None for x, on in zip(every, there)], pa.list_(pa.float32()))
    tasks = {task: spec["name"] for task, spec in model.config.model.heads.items()} if model.config else {}
    return Predictions(pa.table(columns), tasks, model.vocabularies)


def judges(model: Model, extra: Mapping[str, Mapping[str, Any]], parts: Parts) -> dict[str, list[tuple[str, Metric]]]:
    """By task, the metrics to judge it by: its head's own, with those of the config beside or in place of them."""
    found: dict[str, list[tuple[str, Metric]]] = {}
    for task, head in model.heads.items():
        kind = type(head).__name__.lower()
        own = {name: parts.find("metrics", name)() for name in head.metrics}
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
