"""What a model reaches when modalities go missing at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from mmkt import report
from mmkt.report import Sheet
from mmkt.score import About, draws, interval, labelled, leading
from mmkt.types import Metric, Predictions, Row


def probabilities(there: np.ndarray, rate: float) -> np.ndarray:
    """How likely each subset is what is left of a row, in the order of ``subsets.power_set``.

    Each modality that the row has goes missing with probability ``rate``; if all would, one of them, drawn uniformly, stays: as
    ``data.dropout`` does in training.

    Args:
        there: (n, M) bool, which modalities each row has.
        rate: from 0 to 1.

    Returns:
        (2^M, n); over subsets they sum to 1. A row that has nothing stays as it is.
    """
    n, m = there.shape
    number = there.sum(1)
    found = np.zeros((2**m, n))
    for place in range(2**m):
        inside = np.array([bool(place >> i & 1) for i in range(m)])
        size = int(inside.sum())
        possible = (there | ~inside).all(1)  # a subset of what the row has
        if size:
            found[place] = possible * rate ** (number - size).clip(min=0) * (1 - rate) ** size
        if size == 1:
            found[place] += possible * rate**number / number.clip(min=1)
    found[0] = number == 0
    return found


def measure(
    answers: Sequence[Predictions],
    modalities: Sequence[str],
    judges: Mapping[str, Sequence[tuple[str, Metric]]],
    rates: Sequence[float],
    *,
    about: About,
    resamples: int = 1000,
) -> list[Row]:
    """Each task's first metric that can be resampled, where modalities go missing at each rate; no row is drawn.

    Every row counts with every subset that can be left of it, by how likely it is: the figure is over all ways in which
    modalities can go missing, not one draw of them. A row's condition is ``missing@0.5``.

    Args:
        answers: by subset, in the order of ``subsets.power_set``.
        modalities: of the model.
        judges: by task, metrics with the names that rows carry.
        rates: from 0 to 1.
        about: what the rows have in common, beside the condition.
        resamples: of the bootstrap over rows.
    """
    found = []
    for task, name, metric in leading(judges):
        parts = [labelled(some, task) for some in answers]
        there = np.stack([parts[-1].table[f"has.{m}"].to_numpy() for m in modalities], 1)
        n = len(there)
        columns = [x for x in parts[-1].table.column_names if x.startswith(f"{task}.")]
        tables = [part.table.select(columns) for part in parts]  # a list that is empty in every row has no type of its own
        every = parts[-1]._replace(table=pa.concat_tables(tables, promote_options="permissive").combine_chunks())
        for rate in rates:
            likely = probabilities(there, rate).reshape(-1)  # (2^M · n,)
            values = []
            for weights in [np.ones((1, n)), *draws(np.arange(n), resamples, 0)]:
                step = max(1, 4_000_000 // len(likely))
                for k in range(0, len(weights), step):
                    values.append(metric(every, task, np.tile(weights[k : k + step], len(answers)) * likely)["all"])
            x = np.concatenate(values)
            found.append(about._replace(condition=f"missing@{rate:g}").row(task, name, x[0], n, *interval(x[1:])))
    return found


def sheets(rows: Sequence[Row]) -> Iterator[Sheet]:
    """A line a task, rates side by side."""
    tasks = list(dict.fromkeys((row.task, row.metric) for row in rows))
    conditions = list(dict.fromkeys(row.condition for row in rows))
    by = {(row.task, row.condition): row for row in rows}
    if tasks:
        numbers = {c.partition("@")[2]: [report.cell(by[task, c]) for task, _ in tasks] for c in conditions}
        names = {"task": [f"{task}/{metric}" for task, metric in tasks]}
        yield report.sheet("each modality missing at a rate", names, numbers)
