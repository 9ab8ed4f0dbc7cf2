"""Classes told by their names alone: no row of them has to have been seen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import csr_array
from torch import Tensor

from mmkt import report
from mmkt.metrics._columns import guess, labels
from mmkt.metrics.accuracy import Accuracy
from mmkt.metrics.top_k import TopK
from mmkt.report import Sheet
from mmkt.score import About, score
from mmkt.types import Metric, Predictions, Row
from mmkt.vectors import unit_vectors

KIND = "zero-shot"
PLAIN = ("accuracy", "top5", "chance")


class Seen(Metric):
    """Accuracy over classes, each counting alike, of those that training had, of the others, or the harmonic mean of the two.

    Generalised zero-shot (Xian et al., 2018): every class is a candidate for every row, and H = 2su / (s + u) is high where the
    model neither prefers what it was trained on nor forgets it.

    Args:
        seen: (C,) bool, which classes training had.
        part: ``seen``, ``unseen`` or ``harmonic``.
    """

    heads = ("classify",)

    def __init__(self, seen: np.ndarray, part: str):
        self.seen, self.part = seen, part

    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Under ``"all"``, (R,); of classes that a resample holds."""
        places = labels(predictions, task)
        right = guess(predictions, task)[np.arange(len(places)), places]
        known, place = np.unique(places, return_inverse=True)
        hot = csr_array((np.ones(len(place)), (np.arange(len(place)), place)))  # (n, C')
        of, found = weights @ hot, (weights * right) @ hot  # (R, C')
        rate = np.divide(found, of, out=np.zeros_like(of), where=of > 0)

        def mean(on: np.ndarray) -> np.ndarray:
            number = ((of > 0) & on).sum(1)
            return np.divide((rate * on).sum(1), number, out=np.full(len(of), np.nan), where=number > 0)

        s, u = mean(self.seen[known]), mean(~self.seen[known])
        both = np.divide(2 * s * u, s + u, out=np.zeros_like(s), where=s + u > 0) + 0 * (s + u)  # NaN where one is
        return {"all": {"seen": s, "unseen": u, "harmonic": both}[self.part]}


def measure(
    predictions: Predictions,
    column: Sequence[Any],
    by_language: Mapping[str, tuple[Sequence[str], Tensor]],
    modalities: Sequence[str],
    seen: Collection[str],
    task: str,
    *,
    about: About,
    resamples: int = 1000,
) -> list[Row]:
    """Rows answered by the class whose name is nearest (cosine), by modality and language; overall and by domain and group.

    Metrics are ``accuracy`` and ``top5`` (six classes or more) among all classes of the prompts, and ``chance``. Where rows are
    of classes that training had and of others: ``seen``, ``unseen`` and ``harmonic`` (``Seen``), and ``unseen_alone``, the
    accuracy of rows of unseen classes with these alone as candidates, and its chance. A row's condition is
    ``zero-shot LANGUAGE``.

    Args:
        predictions: with the columns ``vector.M``.
        column: the label of each row as text, None where it has none.
        by_language: classes, and their vectors (C, D) of length 1.
        modalities: that are asked, each by itself.
        seen: classes that rows of the training split have; empty where that is not known.
        task: what the labels are called.
        about: what the rows have in common.
        resamples: of the bootstrap over rows.
    """
    found: list[Row] = []
    for m in modalities:
        vectors = unit_vectors(predictions, m)
        there = np.array([label is not None for label in column]) & predictions.table[f"has.{m}"].to_numpy()
        if not there.any():
            continue
        rows = np.flatnonzero(there)
        known = [column[k] for k in rows.tolist()]
        for language, (classes, named) in by_language.items():
            here = about._replace(modalities=m, condition=f"{KIND} {language}")
            old = np.array([name in seen for name in classes])
            similar = vectors[torch.from_numpy(rows)] @ named.T  # (n, C)
            answers = _answers(predictions, rows, known, list(classes), similar, task)
            metrics: list[tuple[str, Metric]] = [("accuracy", Accuracy())]
            if len(classes) > 5:
                metrics.append(("top5", TopK(k=5)))
            of_old = np.array([name in seen for name in known])
            if of_old.any() and not of_old.all():
                metrics += [(part, Seen(old, part)) for part in ("seen", "unseen", "harmonic")]
            found += score(answers, {task: metrics}, about=here, resamples=resamples)
            found.append(here.row(task, "chance", 1 / len(classes), len(rows)))
            if of_old.any() and not of_old.all():
                alone = rows[~of_old]
                names = [name for name, on in zip(classes, old) if not on]
                left = similar[torch.from_numpy(~of_old)][:, torch.from_numpy(~old)]
                some = _answers(predictions, alone, [column[k] for k in alone.tolist()], names, left, task)
                judges: list[tuple[str, Metric]] = [("unseen_alone", Accuracy())]
                found += score(some, {task: judges}, about=here, resamples=resamples)
                found.append(here.row(task, "unseen_alone.chance", 1 / len(names), len(alone)))
    return found


def _answers(
    predictions: Predictions, rows: np.ndarray, known: Sequence[str], classes: list[str], similar: Tensor, task: str
) -> Predictions:
    """Similarities (n, C) as a classifier's answers."""
    table = predictions.table.select(["domain", "group"]).take(rows)
    columns = {name: table[name] for name in table.column_names}
    columns[f"{task}.label"] = pa.array(known, pa.string())
    columns[f"{task}.logits"] = pa.array(list(similar.numpy()), pa.list_(pa.float32()))
    return Predictions(pa.table(columns), {task: "classify"}, {task: {"classes": classes}})


def sheets(rows: Sequence[Row]) -> Iterator[Sheet]:
    """A line a modality and language, then the accuracy by domain and group."""
    by = {(row.task, row.modalities, row.condition, row.metric): row for row in rows if row.group == "all"}
    for task in dict.fromkeys(row.task for row in rows):
        lines = list(dict.fromkeys((m, condition) for t, m, condition, _ in by if t == task))
        metrics = list(dict.fromkeys(metric for t, _, _, metric in by if t == task))
        plain, generalised = ([x for x in metrics if (x in PLAIN) is on] for on in (True, False))
        names = {"from": [m for m, _ in lines], "names": [condition.removeprefix(f"{KIND} ") for _, condition in lines]}
        cells = {metric: [report.cell(by.get((task, *line, metric))) for line in lines] for metric in metrics}
        n = "/".join(str(x) for x in dict.fromkeys(by[task, *line, "accuracy"].n for line in lines))
        yield report.sheet(f"{task} by name, zero-shot (n = {n})", names, {metric: cells[metric] for metric in plain})
        if generalised:
            yield report.sheet("classes that training had, and others", names, {metric: cells[metric] for metric in generalised})
        parts = {(row.modalities, row.condition, row.group): row for row in rows if row.task == task and row.metric == "accuracy"}
        groups = [group for group in dict.fromkeys(group for _, _, group in parts) if group != "all"]
        if groups:
            shown = {group: [_value(parts.get((*line, group))) for line in lines] for group in groups[: report.LINES]}
            yield report.sheet("accuracy by domain and group", names, shown, report.rest(groups))


def _value(row: Row | None) -> str:
    return report.number(row.value) if row else "–"
