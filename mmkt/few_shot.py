"""A few labelled rows a class on frozen vectors: which classifier, and how many does it take?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmkt import report
from mmkt.generators import seed_of
from mmkt.report import Sheet
from mmkt.score import About, spread
from mmkt.types import Row

KIND = "few-shot"
CHOOSING = 10  # episodes that a setting is chosen on, validation's rows
SCALE = 100.0  # of similarities beside the cache's votes, as CLIP's


class Vectors(NamedTuple):
    """Labelled rows."""

    x: Tensor  # (n, D) of length 1
    y: Tensor  # (n,) long, the class's place


Classifier = Callable[..., Tensor]  # support, queries (q, D), C, and what it has of settings → scores (q, C)


def _hot(y: Tensor, classes: int) -> Tensor:
    return F.one_hot(y, classes).float()


def nearest_class_mean(support: Vectors, queries: Tensor, classes: int) -> Tensor:
    """Cosine to the mean of a class's vectors (prototypes, Snell et al., 2017); a class without a row is never the answer."""
    hot = _hot(support.y, classes)
    means = F.normalize(hot.T @ support.x, dim=1)  # (C, D)
    return (queries @ means.T).masked_fill(hot.sum(0) == 0, -torch.inf)


def ridge(support: Vectors, queries: Tensor, classes: int, *, penalty: float) -> Tensor:
    """A linear least-squares probe with an intercept, on targets of 0 and 1; the penalty is on the squares of its weights."""
    x, y = support.x.double(), _hot(support.y, classes).double()
    mean, level = x.mean(0), y.mean(0)
    x = x - mean
    weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y - level))  # (D, C)
    return ((queries.double() - mean) @ weights + level).float()


def k_nearest(support: Vectors, queries: Tensor, classes: int, *, k: float) -> Tensor:
    """The k nearest rows vote, each with its similarity plus one."""
    similar, place = (queries @ support.x.T).topk(min(int(k), len(support.x)))
    return torch.zeros(len(queries), classes).scatter_add_(1, support.y[place], similar + 1)


def tip_adapter(support: Vectors, queries: Tensor, classes: int, *, named: Tensor, alpha: float, beta: float) -> Tensor:
    """Tip-Adapter without training (Zhang et al., 2022): α exp(−β (1 − cos)) votes of the rows, beside the names' similarity.

    Args:
        support: the cache.
        queries: (q, D).
        classes: C.
        named: (C, D), classes by their names.
        alpha: weight of the votes.
        beta: how much faster the vote of a near row counts than that of a far one.
    """
    votes = torch.exp(-beta * (1 - queries @ support.x.T)) @ _hot(support.y, classes)
    return alpha * votes + SCALE * queries @ named.T


GRIDS: dict[str, dict[str, Sequence[float]]] = {
    "ncm": {},
    "ridge": {"penalty": (1e-3, 1e-2, 1e-1, 1.0, 10.0)},
    "knn": {"k": (1, 3, 5, 9, 15)},
    "tip_adapter": {"alpha": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "beta": (1.0, 3.0, 5.5, 10.0, 30.0)},
}


def episode(places: Sequence[np.ndarray], shots: int, seed: int, number: int) -> Tensor:
    """Rows (n,) of every class, drawn without replacement: ``shots``, or all of a class that has fewer.

    Args:
        places: by class, its rows in the pool.
        shots: K.
        seed: of the episodes.
        number: which episode.
    """
    generator = np.random.default_rng(seed_of(seed, "episode", shots, number))
    return torch.from_numpy(np.concatenate([generator.permutation(rows)[:shots] for rows in places]))


def accuracy(scores: Tensor, y: Tensor) -> float:
    """Share of rows whose class scores highest; where another is as high, the first of them is the answer."""
    return float((scores.argmax(1) == y).double().mean())


def measure(
    pool: Vectors,
    validation: Vectors | None,
    test: Vectors,
    classes: int,
    shots: Sequence[int],
    episodes: int,
    *,
    task: str,
    about: About,
    named: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> list[Row]:
    """Accuracy on test rows by K shots and classifier: the mean over episodes and its 95 % interval (Student's t).

    The classifiers are ``ncm``, ``ridge``, ``knn`` and, with class names, ``tip_adapter LANGUAGE``. What has a setting chooses
    it, for every K, on validation rows with ten other episodes; test rows choose nothing. Every classifier sees the same
    episodes. The interval is about which rows are drawn; test rows are the same in all. A row's condition is
    ``few-shot K CLASSIFIER``; beside accuracies stands ``chance``.

    Args:
        pool: rows that episodes are drawn from.
        validation: rows that settings are chosen on; None: classifiers that have one are left out.
        test: rows that are judged.
        classes: C.
        shots: K, each.
        episodes: how many.
        task: what the labels are called.
        about: what the rows have in common.
        named: by language, classes by their names (C, D).
        seed: of the episodes.
    """
    ways: dict[str, tuple[str, Classifier]] = {"ncm": ("ncm", nearest_class_mean)}
    if validation is not None:
        ways["ridge"], ways["knn"] = ("ridge", ridge), ("knn", k_nearest)
        for language, vectors in (named or {}).items():
            ways[f"tip_adapter {language}"] = ("tip_adapter", partial(tip_adapter, named=vectors))
    places, found = [np.flatnonzero(pool.y.numpy() == c) for c in range(classes)], []
    for k in track(shots, f"few shots: {about.modalities}", console=Console(stderr=True), transient=True):
        # the same for every classifier; of those that settings are chosen on the numbers are negative
        drawn, choosing = ([episode(places, k, seed, e) for e in some] for some in (range(episodes), range(-CHOOSING, 0)))
        for name, (kind, classify) in ways.items():
            setting: dict[str, float] = {}
            if GRIDS[kind] and validation is not None:
                setting = _choose(classify, GRIDS[kind], pool, validation, classes, choosing)
            mean, _, low, high = spread(_accuracies(classify, setting, pool, test, classes, drawn))
            found.append(about._replace(condition=f"{KIND} {k} {name}").row(task, "accuracy", mean, len(test.y), low, high))
    return [*found, about._replace(condition=KIND).row(task, "chance", 1 / classes, len(test.y))]


def _accuracies(
    classify: Classifier, setting: Mapping[str, float], pool: Vectors, judged: Vectors, classes: int, episodes: Sequence[Tensor]
) -> list[float]:
    """Of a classifier in every episode."""
    supports = (Vectors(pool.x[rows], pool.y[rows]) for rows in episodes)
    return [accuracy(classify(support, judged.x, classes, **setting), judged.y) for support in supports]


def _choose(
    classify: Classifier,
    grid: Mapping[str, Sequence[float]],
    pool: Vectors,
    validation: Vectors,
    classes: int,
    episodes: Sequence[Tensor],
) -> dict[str, float]:
    """The setting with the highest mean accuracy on validation rows; of equal ones the first."""
    settings = (dict(zip(grid, values)) for values in product(*grid.values()))
    return max(settings, key=lambda setting: np.mean(_accuracies(classify, setting, pool, validation, classes, episodes)))


def sheets(rows: Sequence[Row]) -> Iterator[Sheet]:
    """A line a modality and classifier, shots side by side."""
    figures = {(row.task, row.modalities, row.condition): row for row in rows if row.metric == "accuracy"}
    for task in dict.fromkeys(row.task for row in rows):
        parts: list[tuple[str, str, str]] = [(m, *parsed(condition)) for t, m, condition in figures if t == task]
        lines, shots = list(dict.fromkeys((m, name) for m, _, name in parts)), list(dict.fromkeys(k for _, k, _ in parts))
        names = {"of": [m for m, _ in lines], "classifier": [name for _, name in lines]}
        numbers: dict[str, Any] = {
            f"K = {k}": [report.cell(figures.get((task, m, f"{KIND} {k} {name}"))) for m, name in lines] for k in shots
        }
        chances = [row for row in rows if row.task == task and row.metric == "chance"]
        n = "/".join(str(x) for x in dict.fromkeys(row.n for row in chances))
        title = f"{task} from K rows a class (n = {n}, chance {chances[0].value:.3f})"
        yield report.sheet(title, names, numbers)


def parsed(condition: str) -> tuple[str, str]:
    """Shots and classifier."""
    k, _, name = condition.removeprefix(f"{KIND} ").partition(" ")
    return k, name
