"""What is in a manifest and what is wrong with it: counts, unreadable cells, leaks across splits."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmkt.data import decode, media
from mmkt.data.decode import USUAL, Limits
from mmkt.data.manifest import RESERVED, Manifest, column_of
from mmkt.data.rows import is_absent

TEXTS = ("text", "question", "sentence", "caption")
UNNAMED = "(none)"  # a row without split, domain or group
_SUFFIXES = {
    "image": {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"},
    "audio": {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"},
}
_MAGIC = {
    "image": (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*"),
    "audio": (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"FORM"),
}


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
    straddling: dict[str, list[str]]  # groups that are in several splits
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
        columns: kind ("text", "image", "audio") of each media column.
        labels: label columns.
        content: fetch and decode every cell, with a progress bar on stderr; otherwise only texts and bytes are compared.
        limits: what one item may hold.

    Raises:
        ManifestError: there is no such column.
    """
    splits = [split or UNNAMED for split in manifest.table["split"].to_pylist()]
    ids = manifest.table["id"].to_pylist()
    hashes, missing, unreadable = {}, {}, []
    for column, kind in columns.items():
        hashes[column], missing[column], failed = _look(manifest, column, kind, splits, content, limits)
        unreadable += failed
    duplicates = {column: _across(zip(found, splits, ids)) for column, found in hashes.items()}
    if len(columns) > 1:
        # a row whose cell could not be read compares with nothing; one that lacks all modalities neither
        whole = [cells if any(cells) and None not in cells else None for cells in zip(*hashes.values())]
        duplicates["whole row"] = _across(zip(whole, splits, ids))
    report = Report(
        rows=len(ids),
        content=content,
        splits=dict(Counter(splits)),
        domains=_crossed(manifest, "domain", splits),
        groups={split: len(found.keys() - {UNNAMED}) for split, found in _crossed(manifest, "group", splits).items()},
        classes={column: _balance(column_of(manifest, column), splits) for column in labels},
        missing=missing,
        unreadable=unreadable,
        duplicates=duplicates,
        straddling=_straddling(manifest, splits),
        problems=[],
    )
    return report._replace(problems=_problems(report, columns))


def kinds(manifest: Manifest, texts: Iterable[str] = ()) -> dict[str, str]:
    """Guess the media columns and their kinds, from path endings and the first bytes of what is in cells.

    Text columns cannot be told from labels: only those named text, question, sentence or caption (perhaps with a
    number) or in ``texts`` are taken.
    """
    found = {}
    for name in manifest.table.column_names:
        if name in RESERVED:
            continue
        if name in texts or name.rstrip("_0123456789") in TEXTS:
            found[name] = "text"
            continue
        for cell in manifest.table[name].drop_null().slice(0, 20):
            if kind := _kind(cell.as_py()):
                found[name] = kind
                break
    return found


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
            console.print(f"{column}: {len(found)} contents in several splits, e.g. rows {', '.join(found[0][:6])}", markup=False)
    if not report.content:
        console.print("media were not read: unreadable and duplicate files are unknown")
    for problem in report.problems:
        console.print(f"problem: {problem}", style="red", markup=False)
    if not report.problems:
        console.print("no problems found", style="green")


def _look(
    manifest: Manifest, column: str, kind: str, splits: list[str], content: bool, limits: Limits
) -> tuple[list[str | None], dict[str, int], list[Unreadable]]:
    """Of one column: each row's content hash ("" where absent, None where unknown), missing by split, unreadable cells."""
    cells = column_of(manifest, column)
    ids = manifest.table["id"]
    hashes: list[str | None] = []
    missing = dict.fromkeys(splits, 0)
    unreadable = []
    stderr = Console(stderr=True)
    for row, cell in enumerate(
        track(cells, f"reading {column}", len(cells), console=stderr, disable=not content, transient=True)
    ):
        value = cell.as_py()
        missing[splits[row]] += is_absent(value)
        items = value if isinstance(value, list) else [value]
        try:
            parts = [_content(item, kind, manifest.root, content, limits) for item in items if not is_absent(item)]
        except (decode.DecodeError, media.MediaError) as error:
            unreadable.append(Unreadable(ids[row].as_py(), column, str(error)))
            parts = [None]
        hashes.append(None if None in parts else "+".join(filter(None, parts)))
    return hashes, missing, unreadable


_DECODERS: dict[str, Callable[[bytes, Limits], Any]] = {
    "image": decode.image,
    "audio": lambda data, limits: decode.audio(data, None, limits),
}


def _content(item: Any, kind: str, root: Path, content: bool, limits: Limits) -> str | None:
    """The hash of an item that decodes; None where its file is not to be read."""
    if kind == "text":
        return hashlib.sha256(" ".join(decode.text(item, limits).split()).encode()).hexdigest()
    if not content:
        data = item.get("bytes") if isinstance(item, dict) else item
        return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
    data = media.fetch(item, root)
    _DECODERS[kind](data, limits)
    return hashlib.sha256(data).hexdigest()


def _across(found: Iterable[tuple[Any, str, str]]) -> list[list[str]]:
    """Ids of rows that hold the same, where they are in more than one split."""
    by_hash: dict[Any, list[tuple[str, str]]] = defaultdict(list)
    for digest, split, row in found:
        if digest:
            by_hash[digest].append((split, row))
    return [[row for _, row in rows] for rows in by_hash.values() if len({split for split, _ in rows}) > 1]


def _crossed(manifest: Manifest, column: str, splits: list[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for split, value in zip(splits, manifest.table[column].to_pylist()):
        counts[split][value or UNNAMED] += 1
    return {split: dict(counter) for split, counter in counts.items()}


def _straddling(manifest: Manifest, splits: list[str]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for group, split in zip(manifest.table["group"].to_pylist(), splits):
        if group is not None:
            found[group][split] = None
    return {group: list(names) for group, names in found.items() if len(names) > 1}


def _balance(column: pa.ChunkedArray, splits: list[str]) -> dict[str, dict[str, float]]:
    """Rows by class (a list counts for each of its classes), or for floating-point labels a few figures."""
    values: dict[str, list[Any]] = {split: [] for split in splits}
    for split, value in zip(splits, column.to_pylist()):
        values[split].append(None if isinstance(value, float) and value != value else value)
    if pa.types.is_floating(column.type):
        return {split: _figures([v for v in found if v is not None], len(found)) for split, found in values.items()}
    counts = {split: Counter(str(v) for value in found for v in _classes(value)) for split, found in values.items()}
    return {split: dict(sorted(counter.items())) for split, counter in counts.items()}


def _classes(value: Any) -> list[Any]:
    return value if isinstance(value, list) else ["(unlabelled)" if value is None else value]


def _figures(values: list[float], rows: int) -> dict[str, float]:
    figures: dict[str, float] = {"labelled": len(values), "(unlabelled)": rows - len(values)}
    if values:
        figures |= {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}
    return figures


def _problems(report: Report, columns: Mapping[str, str]) -> list[str]:
    problems = [f"row {cell.row!r}, column {cell.column!r}: {cell.message}" for cell in report.unreadable]
    if UNNAMED in report.splits:
        problems.append(f"{report.splits[UNNAMED]} rows have no split")
    for column, by_split in report.missing.items():
        problems += [f"{column!r} is missing in every row of {s!r}" for s, n in by_split.items() if n == report.splits[s]]
    for column, found in report.duplicates.items():
        if found and (len(columns) == 1 or columns.get(column) != "text"):  # one text column is the whole row
            problems.append(f"{column!r}: {len(found)} contents stand in several splits, e.g. rows {', '.join(found[0][:6])}")
    for group, names in list(report.straddling.items())[:5]:
        problems.append(f"the group {group!r} is in several splits: {', '.join(names)}")
    if len(report.straddling) > 5:
        problems.append(f"and {len(report.straddling) - 5} more groups are in several splits")
    for column, classes in report.classes.items():
        for split, counts in classes.items():
            unseen = sorted(counts.keys() - classes.get("train", counts).keys() - {"(unlabelled)", "mean", "least", "most"})
            if unseen:
                problems.append(f"label {column!r}: {split!r} has classes that 'train' lacks: {', '.join(unseen[:5])}")
    return problems


def _kind(cell: Any) -> str | None:
    if isinstance(cell, list):
        return _kind(cell[0]) if cell else None
    if isinstance(cell, dict):
        return _kind(cell.get("bytes") or cell.get("path"))
    if isinstance(cell, str):
        return next((kind for kind, suffixes in _SUFFIXES.items() if Path(cell).suffix.lower() in suffixes), None)
    if isinstance(cell, bytes):
        if cell[:4] == b"RIFF":
            return {b"WAVE": "audio", b"WEBP": "image"}.get(cell[8:12])
        return next((kind for kind, starts in _MAGIC.items() if cell.startswith(starts)), None)
    return None
