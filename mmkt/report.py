"""Rows for people and for files: tables in the terminal, JSON, ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmkt.parts import Parts
from mmkt.types import Row

LINES = 12  # of a breakdown that are shown
GAP = 2  # blanks between columns
NAMES = ("run", "study", "seed", "split", "task", "modalities", "condition")  # what sets of rows differ in
WORST = ("domain", "group")  # breakdowns whose worst line is named
NUMBERS = ("value", "low", "high")


class Sheet(NamedTuple):
    """A table: what every form of a report is made from."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    notes: Sequence[str] = ()
    names: int = 1  # how many of the first columns are words


def sheet(
    title: str, names: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[str]], notes: Sequence[str] = ()
) -> Sheet:
    """From columns of words and columns of figures."""
    return Sheet(title, [*names, *numbers], [list(row) for row in zip(*names.values(), *numbers.values())], notes, len(names))


def show(sheets: Iterable[Sheet], console: Console) -> None:
    """Print tables. All is Text, not markup: a class may be called "[red]"."""
    for one in sheets:
        figures = Table(box=None, pad_edge=False, padding=(0, GAP // 2))
        for k, heading in enumerate(one.headings):
            figures.add_column(Text(heading, "bold"), justify="left" if k < one.names else "right", overflow="fold")
        for row in one.rows:
            figures.add_row(*(Text(cell) for cell in row))
        console.print(Text(one.title, "bold cyan"), figures, *(Text(note) for note in one.notes), "", sep="\n")


def markdown(one: Sheet) -> Iterator[str]:
    """A table's lines in Markdown, without its title."""
    yield "| " + " | ".join(one.headings) + " |"
    yield "|" + "---|" * len(one.headings)
    for row in one.rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    for note in one.notes:
        yield from ("", note)


def sheets(rows: Sequence[Row], parts: Parts | None = None, width: int | None = None) -> Iterator[Sheet]:
    """The main figures, then the breakdowns by domain, group and class, the worst domain and group named.

    A breakdown of more than 12 lines has the worst 12 by its first metric, and says how many more there are.

    Args:
        rows: figures of one run, or of several.
        parts: where metrics are looked up for which way is worse. One that is not there is better higher.
        width: characters a line: metrics that don't fit side by side stand one below the other; None: they all fit.
    """
    parts = parts or Parts()
    differing = [name for name in NAMES if len({getattr(row, name) for row in rows}) > 1]
    main = [row for row in rows if row.group == "all"]
    if main:
        same = [("seed " if name == "seed" else "") + str(getattr(main[0], name)) for name in NAMES if name not in differing]
        names = {name: [str(getattr(row, name)) for row in main] for name in [*differing, "metric"]}
        numbers = {"value": [number(row.value) for row in main], "interval": [_interval(row) for row in main]}
        yield sheet(" · ".join(text for text in same if text), names, numbers | {"n": [str(row.n) for row in main]})
    breakdowns = defaultdict(list)
    for row in rows:
        if row.group != "all":
            breakdowns[row.task, row.group.partition("=")[0]].append(row)
    for (task, kind), some in breakdowns.items():
        title = f"{task} by {kind}" if "task" in differing else f"by {kind}"
        yield from _breakdown(some, kind, title, [name for name in differing if name != "task"], width, parts)


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """``{"rows": [...]}``; what is not a finite number is null, which JSON requires."""
    return {"rows": [record(row) for row in rows]}


def append(rows: Iterable[Row], path: Path) -> None:
    """Add rows to a ``metrics.jsonl``, one JSON object a line."""
    text = "".join(json.dumps(record(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def read(path: Path) -> list[Row]:
    """Rows of a ``metrics.jsonl``; null comes back as NaN.

    Raises:
        ValueError: a line that is no row, by its number.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
                rows.append(Row(**record | {name: math.nan for name in NUMBERS if record[name] is None}))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number} is no row of metrics ({error}); remove that line") from error
    return rows


def _breakdown(
    rows: Sequence[Row], kind: str, title: str, differing: Sequence[str], width: int | None, parts: Parts
) -> Iterator[Sheet]:
    """A line for each group (of each set of rows), as many metrics side by side as fit, worst first where cut short."""
    lines: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        lines[(*(str(getattr(row, name)) for name in differing), row.group.partition("=")[2])][row.metric] = row
    metrics = list(dict.fromkeys(row.metric for row in rows))
    first = metrics[0]
    higher = first not in parts.files("metrics") or parts.find("metrics", first).higher_is_better  # type: ignore[attr-defined]
    order = sorted(lines, key=lambda key: _badness(lines[key].get(first), higher), reverse=True)
    shown = list(lines)
    if len(lines) > LINES:
        shown = order[:LINES]
        end = "lowest" if higher else "highest"
        title += f", the {LINES} with the {end} {first}; {len(lines) - LINES} more stand in the file"
    names = {name: [key[i] for key in shown] for i, name in enumerate([*differing, kind])}
    cells = {metric: [cell(lines[key].get(metric)) for key in shown] for metric in metrics}
    counts = [str(next(iter(lines[key].values())).n) for key in shown]
    if len(set(counts)) > 1:
        names["n"] = counts
    else:
        title += f" (n = {counts[0]})"
    worst = lines[order[0]].get(first)
    notes = [f"worst {kind}: {' '.join(order[0])}, {first} {cell(worst)}"] if kind in WORST and worst else []
    room = math.inf if width is None else width - sum(_width(name, column) for name, column in names.items()) + GAP
    some: dict[str, list[str]] = {}
    for metric, column in cells.items():
        if some and sum(_width(*item) for item in some.items()) + _width(metric, column) > room:
            yield sheet(title, names, some)
            some = {}
        some[metric] = column
    yield sheet(title, names, some, notes)


def rest(every: Sequence[Any]) -> list[str]:
    """What is said where only the first 12 are shown."""
    return [f"{len(every) - LINES} more stand in the file"] if len(every) > LINES else []


def _badness(row: Row | None, higher: bool) -> float:
    """Larger is worse; an undefined figure comes last."""
    if row is None or math.isnan(row.value):
        return -math.inf
    return -row.value if higher else row.value


def _width(name: str, column: Sequence[str]) -> int:
    return max(cell_len(text) for text in (name, *column)) + GAP


def number(value: float) -> str:
    """A figure in three digits or so; a dash where there is none."""
    if math.isnan(value):
        return "–"
    if value == 0 or 1e-2 <= abs(value) < 1e3:
        return f"{value:.3f}"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _interval(row: Row) -> str:
    return "" if math.isnan(row.low) else f"[{number(row.low)}, {number(row.high)}]"


def cell(row: Row | None) -> str:
    """A figure with its interval."""
    return f"{number(row.value)} {_interval(row)}".rstrip() if row else "–"


def record(row: Any) -> dict[str, Any]:
    """A named tuple as plain data; what is not a finite number is null, which JSON requires."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row._asdict().items()}
