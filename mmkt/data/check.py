"""What is in a manifest and what is wrong with it: counts, unreadable cells, leaks across splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmkt.data import limits as texts
from mmkt.data import media, vectors
from mmkt.data.columns import cells, codes, is_absent
from mmkt.data.duplicates import across, digest, whole
from mmkt.data.limits import USUAL, DecodeError, Limits
from mmkt.data.manifest import Manifest, column_of

UNNAMED = "(none)"  # a row without split, domain or group
UNLABELLED = "(unlabelled)"
SHOWN = 20  # problems on the screen
EXAMPLES = 1000  # contents, and groups, that a report names; it counts all


class Unreadable(NamedTuple):
    """A cell that cannot be decoded."""

    row: str  # its id
    column: str
    message: str


class Report(NamedTuple):
    """What ``check`` found; ``as_dict`` is for JSON."""

    rows: int
    content: bool  # whether media were read: if not, nothing is known of unreadable and little of duplicate cells
    splits: dict[str, int]
    domains: dict[str, dict[str, int]]  # by split
    groups: dict[str, int]  # by split, how many different ones
    classes: dict[str, dict[str, dict[str, float]]]  # by label column and split: rows of a class, or figures of a number
    missing: dict[str, dict[str, int]]  # by media column and split
    unreadable: list[Unreadable]
    duplicates: dict[str, list[list[str]]]  # by media column, and "whole row": ids that hold the same in several splits
    repeated: dict[str, int]  # how many contents that are, of which the first are named above, with their first rows
    straddling: dict[str, list[str]]  # groups that are in several splits, the first of them
    straddled: int  # how many there are
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The report in what JSON holds."""
        return {**self._asdict(), "unreadable": [cell._asdict() for cell in self.unreadable]}


def check(
    manifest: Manifest,
    columns: Mapping[str, str],
    labels: Sequence[str] = (),
    *,
    content: bool = True,
    limits: Limits = USUAL,
) -> Report:
    """Look at a whole manifest.

    Two cells are duplicates if their files are equal byte by byte or their texts equal but for white space. Short texts
    repeat by nature, so a repeated text alone is reported but is no problem; a repeated picture, sound or row is one.

    Args:
        manifest: what to look at.
        columns: kind ("text", "image", "audio", "features") of each media column.
        labels: label columns.
        content: fetch and decode every cell, with a progress bar on stderr; otherwise only texts and bytes are compared.
        limits: what one item may hold.

    Raises:
        ManifestError: there is no such column.
    """
    table, splits = manifest.table, Splits.of(manifest)
    digests, missing, unreadable = {}, {}, []
    for column, kind in columns.items():
        digests[column], absent, failed = _look(manifest, column, kind, content, limits)
        missing[column] = splits.named(np.bincount(splits.of_row[absent], minlength=len(splits.names)))
        unreadable += failed
    if len(columns) > 1:
        digests["whole row"] = whole(list(digests.values()))
    found = {column: across(digest, splits.of_row, EXAMPLES) for column, digest in digests.items()}
    domains, by_domain = splits.crossed(table["domain"])
    groups, by_group = splits.crossed(table["group"])
    in_splits = by_group[:, 1:] > 0  # the first column counts rows without a group
    shared = np.flatnonzero(in_splits.sum(0) > 1)
    report = Report(
        rows=len(table),
        content=content,
        splits=splits.named(np.bincount(splits.of_row)),
        domains={split: _counts(domains, n, UNNAMED) for split, n in zip(splits.names, by_domain)},
        groups=splits.named(in_splits.sum(1)),
        classes={column: _balance(column_of(manifest, column), splits) for column in labels},
        missing=missing,
        unreadable=unreadable,
        duplicates={column: [table["id"].take(rows).to_pylist() for rows in first] for column, (_, first) in found.items()},
        repeated={column: n for column, (n, _) in found.items()},
        straddling={
            groups[int(g)].as_py(): [splits.names[k] for k in np.flatnonzero(in_splits[:, g])] for g in shared[:EXAMPLES]
        },
        straddled=len(shared),
        problems=[],
    )
    return report._replace(problems=_problems(report, columns))


def render(report: Report, console: Console) -> None:
    """Print a report."""
    table = Table(title=f"{report.rows} rows", title_justify="left")
    for heading in ("split", "rows", "groups", "domains", "missing"):
        table.add_column(heading)
    for split, n in report.splits.items():
        domains = ", ".join(f"{name} {count}" for name, count in report.domains[split].items() if name != UNNAMED)
        missing = ", ".join(f"{column} {counts[split]}" for column, counts in report.missing.items() if counts[split])
        table.add_row(split, str(n), str(report.groups[split]), domains, missing)
    console.print(table)
    for column, by_split in report.classes.items():
        table = Table("", *by_split, title=f"label {column}", title_justify="left")
        for value in dict.fromkeys(value for counts in by_split.values() for value in counts):
            table.add_row(value, *(f"{counts.get(value, 0):g}" for counts in by_split.values()))
        console.print(table)
    for column, found in report.duplicates.items():
        if found:
            console.print(
                f"{column}: {report.repeated[column]} contents in several splits, e.g. rows {', '.join(found[0][:6])}",
                markup=False,
            )
    if list(report.splits) == [UNNAMED]:
        console.print("no row names a split: data.fractions will share them out, rows of one group together")
    if not report.content:
        console.print("media were not read: unreadable and duplicate files are unknown")
    for problem in report.problems[:SHOWN]:
        console.print(f"problem: {problem}", style="red", markup=False)
    if len(report.problems) > SHOWN:
        console.print(f"and {len(report.problems) - SHOWN} more problems (--json names all)", style="red")
    if not report.problems:
        console.print("no problems found", style="green")


class Splits(NamedTuple):
    """The splits in the order of their first rows, and each row's place among them, (n,)."""

    names: list[str]
    of_row: np.ndarray

    @classmethod
    def of(cls, manifest: Manifest) -> Splits:
        """Rows without a split are in one of their own."""
        column = manifest.table["split"]
        names, place = codes(pc.fill_null(column, UNNAMED) if column.null_count else column)
        return cls(names.to_pylist(), place)

    def named(self, values: np.ndarray) -> dict[str, Any]:
        """A value a split."""
        return dict(zip(self.names, values.tolist()))

    def crossed(self, column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
        """The column's G distinct values, and rows by split and value, (splits, 1 + G): null first."""
        values, place = codes(column)
        width = 1 + len(values)
        counts = np.bincount(self.of_row.astype(np.int64) * width + place + 1, minlength=len(self.names) * width)
        return values, counts.reshape(len(self.names), width)


def _look(
    manifest: Manifest, column: str, kind: str, content: bool, limits: Limits
) -> tuple[np.ndarray, np.ndarray, list[Unreadable]]:
    """Of one column: each row's digest, (n, 2), which rows lack it, (n,) bool, unreadable cells."""
    found, ids = column_of(manifest, column), manifest.table["id"]
    digests, absent, unreadable = bytearray(16 * len(found)), np.zeros(len(found), dtype=bool), []
    stderr, width = Console(stderr=True), vectors.usual_width(found) if kind == "features" else 0
    looking = track(cells(found), f"reading {column}", len(found), console=stderr, disable=not content, transient=True)
    for row, value in enumerate(looking):
        if is_absent(value):
            absent[row] = True
            continue
        items = value if isinstance(value, list) and kind != "features" else [value]
        try:
            parts = [_content(item, kind, manifest.root, content, limits, width) for item in items if not is_absent(item)]
        except (DecodeError, media.MediaError) as error:
            unreadable.append(Unreadable(ids[row].as_py(), column, str(error)))
            parts = [None]
        digests[16 * row : 16 * row + 16] = digest(*parts)
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2), absent, unreadable


def _content(item: Any, kind: str, root: Path, content: bool, limits: Limits, width: int) -> bytes | None:
    """What is compared of an item that decodes, None where its file is not to be read; ``width`` is that of vectors."""
    if kind == "features":
        return vectors.array(item, width).tobytes()
    if kind == "text":
        return " ".join(texts.text(item, limits).split()).encode()
    if not content:
        data = item.get("bytes") if isinstance(item, dict) else item
        return data if isinstance(data, bytes) else None
    from mmkt.data import decode  # heavy, and without content not needed

    data = media.fetch(item, root)
    if kind == "image":
        decode.image(data, limits)
    else:
        decode.audio(data, None, limits)
    return data


def _balance(column: pa.ChunkedArray, splits: Splits) -> dict[str, dict[str, float]]:
    """Rows by class (a list counts for each of its classes), or for floating-point labels a few figures."""
    if pa.types.is_floating(column.type):
        values = column.fill_null(float("nan")).to_numpy()
        return {split: _figures(values[splits.of_row == k]) for k, split in enumerate(splits.names)}
    if pa.types.is_nested(column.type):
        counts: dict[str, Counter[str]] = {split: Counter() for split in splits.names}
        for k, value in zip(splits.of_row, cells(column)):
            counts[splits.names[k]].update(map(str, _classes(value)))
        return {split: dict(sorted(counter.items())) for split, counter in counts.items()}
    classes, by_class = splits.crossed(column)
    return {split: dict(sorted(_counts(classes, n, UNLABELLED).items())) for split, n in zip(splits.names, by_class)}


def _counts(values: pa.Array, counts: np.ndarray, null: str) -> dict[str, int]:
    """Counts by value, of those that are not 0; the first is that of null."""
    there = np.flatnonzero(counts)
    return {str(values[k - 1].as_py()) if k else null: n for k, n in zip(there.tolist(), counts[there].tolist())}


def _classes(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [UNLABELLED if value is None else value]


def _figures(values: np.ndarray) -> dict[str, float]:
    known = values[~np.isnan(values)].astype(np.float64)
    figures: dict[str, float] = {"labelled": len(known), UNLABELLED: len(values) - len(known)}
    if len(known):
        figures |= {"mean": float(known.mean()), "least": float(known.min()), "most": float(known.max())}
    return figures


def _problems(report: Report, columns: Mapping[str, str]) -> list[str]:
    problems = [f"row {cell.row!r}, column {cell.column!r}: {cell.message}" for cell in report.unreadable]
    if UNNAMED in report.splits and len(report.splits) > 1:
        problems.append(f"{report.splits[UNNAMED]} rows have no split: name it in every row, or in none")
    for column, by_split in report.missing.items():
        problems += [f"{column!r} is missing in every row of {s!r}" for s, n in by_split.items() if n == report.splits[s]]
    for column, found in report.duplicates.items():
        if found and (len(columns) == 1 or columns.get(column) != "text"):  # one text column is the whole row
            problems.append(
                f"{column!r}: {report.repeated[column]} contents stand in several splits, e.g. rows {', '.join(found[0][:6])}"
            )
    for group, names in list(report.straddling.items())[:5]:
        problems.append(f"the group {group!r} is in several splits: {', '.join(names)}")
    if report.straddled > 5:
        problems.append(f"and {report.straddled - 5} more groups are in several splits")
    for column, classes in report.classes.items():
        for split, counts in classes.items():
            unseen = sorted(counts.keys() - classes.get("train", counts).keys() - {UNLABELLED, "mean", "least", "most"})
            if unseen:
                problems.append(f"label {column!r}: {split!r} has classes that 'train' lacks: {', '.join(unseen[:5])}")
    return problems
