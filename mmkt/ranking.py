"""What measures promise of a study's sources, as a table and as JSON, beside the figures that training gave."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmkt import measures

MEASURES = {  # as a table names them
    "logme": "LogME",
    "h_score": "H-score",
    "h_score_shrunk": "shrunk H",
    "leep": "LEEP",
    "nce": "NCE",
    "proxy_a_distance": "A-distance",
    "otdd": "OTDD",
}
DISTANCES = ("proxy_a_distance", "otdd")  # lower promises more: they enter τ with their sign turned
FEW = 6  # candidates below which τ means little


class Line(NamedTuple):
    """A candidate."""

    name: str
    width: int  # of its vectors
    values: dict[str, float]  # by measure; NaN where it has none
    figure: float  # after fine-tuning, on test; NaN where there is none


class Agreement(NamedTuple):
    """Of a measure's order with that of the fine-tuned figures."""

    measure: str
    tau: float  # Kendall's τ_b; NaN where a side does not vary
    p: float  # two-sided, by permutation
    candidates: int  # that have both


class Ranking(NamedTuple):
    """What the measures say."""

    title: str
    rows: int
    classes: int
    lines: list[Line]  # in LogME's order
    agreements: list[Agreement]
    notes: list[str]


def agree(lines: list[Line], higher: bool = True) -> list[Agreement]:
    """Kendall's τ of each measure with the fine-tuned figures, over the candidates that have both, two or more.

    Args:
        lines: of the candidates.
        higher: whether a higher figure is better.
    """
    found = []
    for name in MEASURES:
        pairs = [(line.values[name], line.figure) for line in lines]
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if len(pairs) > 1:
            promise, truth = (np.array(side) for side in zip(*pairs))
            tau, p = measures.kendall(-promise if name in DISTANCES else promise, truth if higher else -truth)
            found.append(Agreement(name, tau, p, len(pairs)))
    return found


def as_json(ranking: Ranking) -> dict[str, Any]:
    """Plain data; what is not a finite number is null, which JSON requires."""

    def number(x: Any) -> Any:
        return None if isinstance(x, float) and not math.isfinite(x) else x

    lines = [line._asdict() | {"figure": number(line.figure)} for line in ranking.lines]
    for line in lines:
        line["values"] = {name: number(x) for name, x in line["values"].items()}
    agreements = [{key: number(x) for key, x in one._asdict().items()} for one in ranking.agreements]
    return {
        "title": ranking.title,
        "rows": ranking.rows,
        "classes": ranking.classes,
        "candidates": lines,
        "agreements": agreements,
        "notes": ranking.notes,
    }


def table(ranking: Ranking, console: Console) -> None:
    """Print a line a candidate with its place by each measure, then Kendall's τ and p; then what is to be said."""
    shown = Table(box=None, pad_edge=False, show_footer=False)
    names = [name for name in MEASURES if any(math.isfinite(line.values[name]) for line in ranking.lines)]
    figures = any(math.isfinite(line.figure) for line in ranking.lines)
    for heading in ("", *(MEASURES[name] for name in names), *(["fine-tuned"] if figures else [])):
        shown.add_column(Text(heading, "bold"), justify="right" if heading else "left", no_wrap=True)
    columns = [_places([line.values[name] for line in ranking.lines], name in DISTANCES) for name in names]
    columns += [[_number(line.figure) for line in ranking.lines]] if figures else []
    for line, *cells in zip(ranking.lines, *columns):
        shown.add_row(Text(line.name), *map(Text, cells))
    by_measure = {one.measure: one for one in ranking.agreements}
    for heading in ("tau", "p") if by_measure else ():
        cells = [_number(getattr(by_measure[name], heading)) if name in by_measure else "–" for name in names]
        shown.add_row(Text({"tau": "Kendall's τ", "p": "p"}[heading], "bold"), *map(Text, cells))
    console.print(Text(ranking.title, "bold cyan"), shown, sep="\n")
    for words in said(ranking):
        console.print(Text(words))


def said(ranking: Ranking) -> list[str]:
    """What stands under the table."""
    found = [
        f"{ranking.rows} rows of {ranking.classes} classes. (1) promises most: the highest, of A-distance and OTDD the lowest.",
    ]
    if ranking.agreements:
        found.append("τ: of the measure's order with the fine-tuned one; p: two-sided, by permutation.")
    if min([len(ranking.lines), *(one.candidates for one in ranking.agreements)]) < FEW:
        found.append(f"τ of fewer than {FEW} candidates means little.")
    return [*found, *ranking.notes]


def _places(values: list[float], lowest: bool) -> list[str]:
    """Each with its place, 1 for the one that promises most; equal ones share it."""
    known = [x for x in values if math.isfinite(x)]
    before = [sum(y < x if lowest else y > x for y in known) for x in values]
    return [f"{_number(x)} ({k + 1})" if math.isfinite(x) else "–" for x, k in zip(values, before)]


def _number(x: float) -> str:
    return f"{x:.3f}" if math.isfinite(x) else "–"
