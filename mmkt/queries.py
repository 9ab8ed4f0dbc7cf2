"""Many changes of a row's symbols, asked about together; the best of each row's is taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkt.raw import places
from mmkt.victim import Symbols, Victim

CHUNK = 256  # rows a forward
TIED = 1e-6  # what differs by less is the same: a text among others is padded otherwise, and differs by rounding


class Query(NamedTuple):
    """One item of a row (of the batch), changed."""

    row: int
    modality: str
    item: int  # place among the modality's N
    value: Any  # ids (L,), or a text


def margins(victim: Victim, points: Symbols, queries: Sequence[Query]) -> list[float]:
    """The margin of each query's row when its item alone is changed and all else is as in ``points``."""
    found: list[float] = []
    with torch.no_grad():
        for start in range(0, len(queries), CHUNK):
            found += _margins(victim, points, queries[start : start + CHUNK]).tolist()
    return found


def _margins(victim: Victim, points: Symbols, queries: Sequence[Query]) -> Tensor:
    rows = torch.tensor([query.row for query in queries], device=victim.batch.row.device)
    asked, changed = victim.again(rows, points)
    for m, x in changed.items():
        place = places(victim.batch.inputs[m]["items"], rows).tolist()  # type: ignore[call-overload]
        for k, (item, number) in enumerate(zip(place, asked.rows[m].tolist(), strict=True)):
            query = queries[number]
            if query.modality == m and query.item == item:
                x[k] = query.value
    return asked.goal.loss("margin", asked.logits(changed))


class Standing:
    """Where a greedy search stands, row by row: the points, their margins, how many edits are left.

    Args:
        victim: whose points are symbols.
        edits: that a row has, over all of its items and modalities.
    """

    def __init__(self, victim: Victim, edits: int):
        self.victim = victim
        self.points: dict[str, Any] = {m: x.clone() if isinstance(x, Tensor) else list(x) for m, x in victim.clean.items()}
        logits = victim.logits(self.points)
        self.margin: list[float] = victim.goal.loss("margin", logits).tolist()
        self.left = [edits if able else 0 for able in victim.attackable.tolist()]
        for row, there in enumerate(victim.goal.reached(logits).tolist()):
            if there:  # it is wrong as it came
                self.left[row] = 0

    @property
    def open(self) -> list[int]:
        """Rows that may still be changed."""
        return [row for row, left in enumerate(self.left) if left]

    def take(self, queries: Sequence[Query]) -> dict[int, int]:
        """Make the best of each row's changes, if it makes things worse; a row that is wrong by then has no edits left.

        Returns:
            By row, which of the queries was made. Of changes that are tied the first.
        """
        found = margins(self.victim, self.points, queries)
        made = {}
        for row, own in _by_row(queries).items():
            best = max(found[k] for k in own)
            if best <= self.margin[row] + _slack(self.margin[row]):
                continue
            first = next(k for k in own if found[k] >= best - _slack(best))
            query = queries[first]
            self.points[query.modality][query.item] = query.value
            made[row], self.margin[row] = first, found[first]
            self.left[row] = 0 if found[first] > 0 else self.left[row] - 1
        return made


def _slack(value: float) -> float:
    return TIED * max(1.0, abs(value))


def _by_row(queries: Iterable[Query]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for k, query in enumerate(queries):
        found.setdefault(query.row, []).append(k)
    return found
