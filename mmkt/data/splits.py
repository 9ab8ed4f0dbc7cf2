"""Which split a row is in: named, shared out by group, or by fold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmkt.data.columns import codes, some, strings
from mmkt.data.manifest import Manifest, ManifestError, column_of
from mmkt.generators import seed_of


def rows_of(manifest: Manifest, split: str) -> np.ndarray:
    """Row numbers of a split, int64, ascending.

    Raises:
        ManifestError: the split has no rows; the message names those that have.
    """
    rows = np.flatnonzero(np.array(pc.fill_null(pc.equal(manifest.table["split"], split), False)))
    if not len(rows):
        names, place = codes(manifest.table["split"])
        unnamed, *counts = np.bincount(place + 1, minlength=len(names) + 1).tolist()
        found = [f"{name} ({n} rows)" for name, n in zip(names.to_pylist(), counts)]
        found += [f"{unnamed} rows without a split"] * bool(unnamed)
        raise ManifestError(f"the split {split!r} is empty: the manifest has {', '.join(found)}")
    return rows.astype(np.int64)


def assign_splits(manifest: Manifest, fractions: Mapping[str, float], seed: int) -> Manifest:
    """Fill the column ``split``: rows of one group stay together, and the order of rows does not matter.

    Groups are taken in an order hashed from (seed, group), each goes to the split that is furthest below its size.

    Args:
        manifest: a manifest in which no row has a split.
        fractions: the split's share by name; they sum to 1.
        seed: another seed gives another assignment.

    Raises:
        ManifestError: rows have splits already, the fractions are off, or a split would get no row.
    """
    table = manifest.table
    named = len(table) - table["split"].null_count
    if named:
        raise ManifestError(
            f"{named} of {len(table)} rows have a split already: name it in every row, or in none to have it assigned"
        )
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ManifestError(f"the fractions of the splits must be positive and sum to 1, not {dict(fractions)}")
    return _with_splits(manifest, list(fractions), _shared_out(_Units.of(table, "group"), fractions, seed, "split"))


def folds_of(manifest: Manifest, by: str, k: int | None, seed: int) -> list[str]:
    """The fold of every row: its value in the column ``by``, or one of "1" … "k".

    Raises:
        ManifestError: there is no such column, rows have no value in it, or there are fewer values than folds.
    """
    values = strings(column_of(manifest, by), by, str(manifest.path or "these rows"))
    if k is not None:
        table = manifest.table.select(["id"]).append_column(by, values) if by != "id" else manifest.table
        names = [str(i + 1) for i in range(k)]
        return [names[i] for i in _shared_out(_Units.of(table, by), dict.fromkeys(names, 1 / k), seed, "fold")]
    if values.null_count:
        raise ManifestError(f"the column {by!r} is empty in {values.null_count} of {len(values)} rows: folds need it in all")
    distinct, place = codes(values)
    names = distinct.to_pylist()
    return [names[i] for i in place]  # a string a fold, not a row


def assign_fold(
    manifest: Manifest,
    folds: Sequence[str],
    test: str,
    names: tuple[str, str | None, str],
    share: float,
    seed: int,
) -> Manifest:
    """Fill the column ``split`` anew: one fold is the test split, a share of the others validates, the rest trains.

    Args:
        manifest: n rows; what split they had does not matter.
        folds: (n,) the fold of each row, from ``folds_of``.
        test: which fold is the test split.
        names: what the training, validation and test splits are called; None for no validation.
        share: of the other rows, for validation; rows of one group stay together.
        seed: of the choice of validation rows.

    Raises:
        ManifestError: there is no such fold, or a split would get no row.
    """
    if test not in folds:
        raise ManifestError(f"there is no fold {test!r}; there are {some(sorted(set(folds)))}")
    rest = np.flatnonzero([fold != test for fold in folds])
    train, validation, held = names
    fractions = {train: 1 - share, validation: share} if validation and share else {train: 1.0}
    split = np.full(len(folds), len(fractions))
    split[rest] = _shared_out(_Units.of(manifest.table, "group", rest), fractions, seed, "split")
    return _with_splits(manifest, [*fractions, held], split)


def assign_subset(manifest: Manifest, split: str, share: float, by: str | None, seed: int) -> Manifest:
    """Take rows out of a split (their ``split`` is null afterwards), so that a share of it is left.

    Rows are kept in an order hashed from (seed, id): with one seed, a smaller share is part of a larger one.

    Args:
        manifest: with every row in a split.
        split: which one, such as the training split.
        share: of its rows that stay, rounded.
        by: a column of which every value keeps this share; None for no such column.
        seed: another seed gives other rows.

    Raises:
        ManifestError: there is no such column, or a value of it would have no row left.
    """
    rows, kept = rows_of(manifest, split), []
    column = manifest.table["split"] if by is None else column_of(manifest, by)
    known, place = codes(column.take(pa.array(rows)))
    ids = manifest.table["id"].take(pa.array(rows))
    order = np.argsort(np.fromiter((seed_of(seed, "subset", i.as_py()) for i in ids), np.int64, len(rows)), kind="stable")
    for k in np.unique(place):
        own = order[place[order] == k]
        number = round(share * len(own))
        if not number and k >= 0:
            least = min(1.0, 0.5 / np.bincount(place[place >= 0]).min() + 1e-3)
            name = repr(known[int(k)].as_py()) + (f" of {by}" if by else "")
            raise ManifestError(
                f"a share of {share:g} leaves {name} ({len(own)} rows in the split {split!r}) without a row: "
                f"data.subset.share={least:.3f} or more leaves one of each"
            )
        kept.append(rows[own[:number]])
    names, code = codes(manifest.table["split"])
    out = np.setdiff1d(rows, np.concatenate(kept))
    indices = code.astype(np.int32)
    indices[out] = -1
    splits = pa.DictionaryArray.from_arrays(pa.array(indices, mask=indices < 0), names).cast(pa.string())
    return manifest._replace(table=manifest.table.set_column(manifest.table.column_names.index("split"), "split", splits))


def without(manifest: Manifest, ids: Collection[str]) -> Manifest:
    """The manifest without some rows; those after them are numbered anew.

    Raises:
        ManifestError: none would be left.
    """
    bad = np.flatnonzero(pc.is_in(manifest.table["id"], pa.array(list(ids), pa.string())))
    edges = [-1, *bad.tolist(), len(manifest.table)]
    # the stretches between them as they lie: a filter would copy every row
    table = pa.concat_tables(manifest.table.slice(a + 1, b - a - 1) for a, b in pairwise(edges))
    if not len(table):
        raise ManifestError(f"{manifest.path or 'these rows'}: none of the {len(manifest.table)} rows can be used")
    return manifest._replace(table=table)


def _with_splits(manifest: Manifest, names: Sequence[str], split: np.ndarray) -> Manifest:
    table = manifest.table
    column = pa.DictionaryArray.from_arrays(split.astype(np.int32), names).cast(pa.string())
    return manifest._replace(table=table.set_column(table.column_names.index("split"), "split", column))


class _Units(NamedTuple):
    """What each row has to stay together with: those of its group, or nothing but itself."""

    column: str
    names: pa.Array  # of the groups
    ids: pa.ChunkedArray  # of the rows
    unit: np.ndarray  # (n,) a row's group, or past them all, a number of its own
    alone: np.ndarray  # rows without a group, in the order of their numbers

    @classmethod
    def of(cls, table: pa.Table, column: str, rows: np.ndarray | None = None) -> _Units:
        """The units of a table, or of some of its rows."""
        if rows is not None:
            table = table.select(["id", column]).take(rows)
        names, place = codes(table[column])
        alone = np.flatnonzero(place < 0)
        unit = place.astype(np.int64)
        unit[alone] = len(names) + np.arange(len(alone))
        return cls(column, names, table["id"], unit, alone)

    def seeds(self, *parts: int | str) -> np.ndarray:
        """A number to order each unit by that depends on the parts and its name alone."""
        groups = (seed_of(*parts, self.column, name.as_py()) for name in self.names)
        rows = (seed_of(*parts, "id", self.ids[row].as_py()) for row in self.alone)
        return np.fromiter(chain(groups, rows), dtype=np.int64, count=len(self.names) + len(self.alone))


def _shared_out(units: _Units, fractions: Mapping[str, float], seed: int, what: str) -> np.ndarray:
    """Which of ``fractions`` each row gets; rows of one unit get the same."""
    sizes = np.bincount(units.unit)
    deficit = [fraction * len(units.unit) for fraction in fractions.values()]
    found = np.empty(len(sizes), dtype=np.int64)
    for unit in np.argsort(units.seeds(seed, what), kind="stable"):
        found[unit] = deficit.index(max(deficit))
        deficit[found[unit]] -= sizes[unit]
    if starved := sorted(name for k, name in enumerate(fractions) if k not in found):
        raise ManifestError(
            f"the {what} {starved[0]!r} would get no row: there are {len(sizes)} groups (rows without a group are one each) "
            f"for {dict(fractions)}; "
            + ("raise its share (data.fractions, data.fold.validation)" if what == "split" else "make fewer folds")
        )
    return found[units.unit]
