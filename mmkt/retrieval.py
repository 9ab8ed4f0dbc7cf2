"""Retrieval between modalities that share a space: ranks, recall, hubness, and the shape of the space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmkt import report
from mmkt.report import Sheet
from mmkt.score import About, draws, interval
from mmkt.types import Predictions, Row
from mmkt.vectors import unit_vectors

CELLS = 20_000_000  # similarities held at once: 80 MB
TIE = 1e-6  # of similarities: what rounding alone tells apart, such as one text in two batches, is as near as the other
NEAR = 10  # neighbours that say how much of a hub an item is
KS = (1, 5, 10)
ARROW = "→"


class Ranks(NamedTuple):
    """Of every query."""

    first: np.ndarray  # (Q,) the rank of the first relevant entry, from 1
    precision: np.ndarray  # (Q,) average precision over all relevant ones
    relevant: np.ndarray  # (Q,) how many there are


def rank(
    queries: Tensor, gallery: Tensor, wanted: Tensor, items: Tensor, penalties: Sequence[Tensor | None] = (None,)
) -> list[Ranks]:
    """Rank a gallery for every query by cosine similarity, some queries at a time: no (Q, G) matrix is ever whole.

    Ties (to 1e-6) count against the model: what is as similar as the relevant entry stands before it. So vectors that are all
    alike rank last.

    Args:
        queries: (Q, D), of length 1.
        gallery: (G, D), of length 1.
        wanted: (Q,) long, the item that each query asks for; there has to be one of it.
        items: (G,) long, what each entry is of; several may be of one item.
        penalties: each (G,), taken off the similarities (``hubness``); None takes nothing off.

    Returns:
        By penalty.
    """
    order = items.argsort(stable=True)
    start, stop = (torch.searchsorted(items[order], wanted, right=right) for right in (False, True))
    # written in place: small results that stay between large ones that go would keep the allocator from giving these back
    n, place = len(queries), 0
    found = [Ranks(np.empty(n, np.int64), np.empty(n), (stop - start).numpy()) for _ in penalties]
    for q in _chunks(queries, len(gallery)):
        here = slice(place, place + len(q))
        number = (stop - start)[here]
        inside = torch.arange(int(number.max())) < number[:, None]  # (q, R)
        relevant = order[(start[here, None] + torch.arange(inside.shape[1])).clamp(max=len(items) - 1)]
        plain = q @ gallery.T
        for ranks, penalty in zip(found, penalties, strict=True):
            first, precision = _ranks(plain if penalty is None else plain - penalty, relevant, inside)
            ranks.first[here], ranks.precision[here] = first.numpy(), precision.numpy()
        place += len(q)
    return found


def _ranks(similar: Tensor, relevant: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """First rank and average precision by some queries' similarities (q, G), the relevant entries and which are (q, R)."""
    best = similar.gather(1, relevant).masked_fill(~inside, -math.inf).sort(1, descending=True).values
    first, total = torch.empty(0), torch.zeros(len(similar), dtype=torch.float64)
    for k in range(best.shape[1]):
        bar = best[:, k : k + 1] - TIE
        right, all_above = (best >= bar).sum(1), (similar >= bar).sum(1)
        if k == 0:
            first = 1 + all_above - right
        total += torch.where(inside[:, k], right.double() / all_above, 0.0)
    return first, total / inside.sum(1)


def hubness(gallery: Tensor, queries: Tensor) -> Tensor:
    """Half the mean similarity of every entry to its 10 nearest queries: what CSLS (Conneau et al., 2018) takes off.

    Some entries are near to everything and are retrieved for queries that they don't answer. The correction looks at all
    queries together, so it is for a collection that is searched as a whole, not for one query alone.

    Returns:
        (G,).
    """
    near = min(NEAR, len(queries))
    return torch.cat([(g @ queries.T).topk(near).values.mean(1) / 2 for g in _chunks(gallery, len(queries))])


def modality_gap(x: Tensor, y: Tensor) -> float:
    """The distance between two modalities' mean vectors (Liang et al., 2022), both of length 1."""
    return float((x.mean(0) - y.mean(0)).norm())


def alignment(x: Tensor, y: Tensor) -> float:
    """The mean squared distance of pairs (Wang and Isola, 2020), row by row; 0 is the best."""
    return float((x - y).square().sum(1).mean())


def uniformity(x: Tensor) -> float:
    """Log mean exp(−2 ‖x_i − x_j‖²) over pairs i ≠ j (Wang and Isola, 2020): 0 where all are alike, lower where they spread."""
    n = len(x)
    if n < 2:
        return math.nan
    total = sum(float((4 * (part @ x.T) - 4).double().exp().sum()) for part in _chunks(x, n))
    return math.log(max(total - n, 1e-300) / (n * (n - 1)))


def _chunks(x: Tensor, width: int) -> Iterator[Tensor]:
    return iter(x.split(max(1, CELLS // max(1, width))))


def chance_recall(relevant: np.ndarray, gallery: int, k: int) -> float:
    """The recall at k of a random order: 1 − C(G − r, k) / C(G, k), the mean over queries, (Q,) of r relevant entries each."""
    numbers, counts = np.unique(relevant, return_counts=True)
    left = [math.comb(gallery - int(r), k) / math.comb(gallery, k) if k <= gallery else 0.0 for r in numbers]
    return float(1 - np.average(left, weights=counts))


# ---------------------------------------------------------------- of a model's answers


def measure(
    predictions: Predictions,
    modalities: Sequence[str],
    items: np.ndarray,
    cells: Mapping[str, np.ndarray],
    *,
    about: About,
    resamples: int = 1000,
) -> list[Row]:
    """Retrieval in every direction, and the space's shape, from predictions with their vectors.

    What one modality holds twice of one item (a picture beside each of its captions) is one query and one entry. The task of a
    row is ``image→text``; its metrics are ``recall@1``, ``@5``, ``@10``, ``median_rank``, ``map``, each with ``.csls`` too
    (``hubness``), and ``recall@1.chance`` … of a random order. Intervals resample items, whole. Of the task ``space`` are
    ``gap`` and ``alignment`` of pairs, over rows that have both, and ``uniformity`` of single modalities.

    Args:
        predictions: with the columns ``vector.M``.
        modalities: of the model.
        items: (n,) which item a row is of; every row is one of its own where nothing else is known.
        cells: by modality (n,), equal where two rows hold the same.
        about: what the rows have in common.
        resamples: of the bootstrap; 0 for no intervals.

    Raises:
        ValueError: vectors that are not finite.
    """
    vectors = {m: unit_vectors(predictions, m) for m in modalities}
    there = {m: np.flatnonzero(predictions.table[f"has.{m}"].to_numpy()) for m in modalities}
    once = entries_of(predictions, modalities, items, cells)
    found = []

    def row(task: str, of: Sequence[str], metric: str, values: np.ndarray, n: int) -> None:
        here = about._replace(modalities="+".join(sorted(of)))
        found.append(here.row(task, metric, values[0], n, *interval(values[1:])))

    for a, b in permutations([m for m in modalities if len(once[m])], 2):
        asked, entries = once[a][np.isin(items[once[a]], items[once[b]])], once[b]
        if not len(asked):
            continue
        queries, gallery, task = vectors[a][asked], vectors[b][entries], f"{a}{ARROW}{b}"
        units = np.unique(items[asked], return_inverse=True)[1]
        wanted, held = (torch.from_numpy(items[rows]) for rows in (asked, entries))
        plain, corrected = rank(queries, gallery, wanted, held, (None, hubness(gallery, queries)))
        for end, ranks in (("", plain), (".csls", corrected)):
            for metric, values in _figures(ranks, units, resamples).items():
                row(task, (a, b), metric + end, values, len(asked))
        for k in KS:
            row(task, (a, b), f"recall@{k}.chance", np.array([chance_recall(plain.relevant, len(entries), k)]), len(asked))
    for a, b in combinations(modalities, 2):
        both = np.intersect1d(there[a], there[b])
        for metric, figure in (("gap", modality_gap), ("alignment", alignment)) if len(both) else ():
            row("space", (a, b), metric, np.array([figure(vectors[a][both], vectors[b][both])]), len(both))
    for m in modalities:
        if len(once[m]) > 1:
            row("space", [m], "uniformity", np.array([uniformity(vectors[m][once[m]])]), len(once[m]))
    return found


def entries_of(
    predictions: Predictions, modalities: Sequence[str], items: np.ndarray, cells: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """By modality the rows that are searched, each cell of an item once (see ``measure``)."""
    there = {m: np.flatnonzero(predictions.table[f"has.{m}"].to_numpy()) for m in modalities}
    return {m: _once(there[m], items, cells[m]) for m in modalities}


def _once(rows: np.ndarray, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Of some rows those that hold a cell of an item for the first time."""
    _, firsts = np.unique(np.stack([items[rows], cells[rows]]), axis=1, return_index=True)
    return rows[np.sort(firsts)]


def _figures(ranks: Ranks, units: np.ndarray, resamples: int) -> dict[str, np.ndarray]:
    """By metric the value, then its resamples: (1 + R,)."""
    means = np.stack([*((ranks.first <= k).astype(float) for k in KS), ranks.precision])  # (4, Q)
    order = np.argsort(ranks.first, kind="stable")
    found = []
    for weights in [np.ones((1, len(units))), *draws(units, resamples, 0)]:
        total = weights.sum(1)
        half = np.argmax(weights[:, order].cumsum(1) >= total[:, None] / 2, axis=1)  # the lower median
        found.append(np.stack([*(means @ weights.T / total), ranks.first[order][half]]))
    names = [*(f"recall@{k}" for k in KS), "map", "median_rank"]
    return dict(zip(names, np.concatenate(found, 1), strict=True))


def sheets(rows: Sequence[Row]) -> Iterator[Sheet]:
    """Every direction plain, corrected and by chance, then the space's shape."""
    by = {(row.task, row.metric): row for row in rows if row.task != "space"}
    directions = list(dict.fromkeys(task for task, _ in by))
    for end, words in (("", "retrieval"), (".csls", "retrieval, corrected for hubs (CSLS)")):
        numbers = {f"R@{k}": [report.cell(by[task, f"recall@{k}{end}"]) for task in directions] for k in KS}
        numbers["median"] = [f"{by[task, f'median_rank{end}'].value:.0f}" for task in directions]
        numbers["mAP"] = [f"{by[task, f'map{end}'].value:.3f}" for task in directions]
        if directions:
            n = "/".join(str(x) for x in dict.fromkeys(by[task, "map"].n for task in directions))
            yield report.sheet(f"{words} (n = {n})", {"from": directions}, numbers)
    if directions:
        chance = {f"R@{k}": [report.number(by[task, f"recall@{k}.chance"].value) for task in directions] for k in KS}
        yield report.sheet("retrieval, in a random order", {"from": directions}, chance)
    space = [row for row in rows if row.task == "space"]
    names = {"of": [row.modalities for row in space], "space": [row.metric for row in space]}
    if space:
        yield report.sheet("shared space", names, {"value": [report.cell(row) for row in space]})
