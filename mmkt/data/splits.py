"""Which split a row is in: named, shared out by group, or by fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmkt.data.manifest import Manifest, ManifestError, column_of, some, strings
from mmkt.data.sampling import seed_of


def rows_of(manifest: Manifest, split: str) -> np.ndarray:
    """Row numbers of a split, int64, ascending.

    Raises:
        ManifestError: the split has no rows; the message names those that have.
    """
    rows = np.flatnonzero(np.array(pc.fill_null(pc.equal(manifest.table["split"], split), False)))
    if not len(rows):
        counts = Counter(manifest.table["split"].to_pylist())
        unnamed = counts.pop(None, 0)
        found = [f"{name} ({n} rows)" for name, n in counts.items()] + [f"{unnamed} rows without a split"] * bool(unnamed)
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
    return _with_splits(manifest, _shared_out(_units(table, "group"), fractions, seed, "split"))


def folds_of(manifest: Manifest, by: str, k: int | None, seed: int) -> list[str]:
    """The fold of every row: its value in the column ``by``, or one of "1" … "k".

    Raises:
        ManifestError: there is no such column, rows have no value in it, or there are fewer values than folds.
    """
    values = strings(column_of(manifest, by).to_pylist(), by, str(manifest.path or "these rows"))
    if k is not None:
        table = manifest.table.select(["id"]).append_column(by, values) if by != "id" else manifest.table
        return _shared_out(_units(table, by), {str(i + 1): 1 / k for i in range(k)}, seed, "fold")
    if values.null_count:
        raise ManifestError(f"the column {by!r} is empty in {values.null_count} of {len(values)} rows: folds need it in all")
    return values.to_pylist()


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
    rest = [i for i, fold in enumerate(folds) if fold != test]
    train, validation, held = names
    fractions = {train: 1 - share, validation: share} if validation and share else {train: 1.0}
    units, split = _units(manifest.table, "group"), [held] * len(folds)
    for i, name in zip(rest, _shared_out([units[i] for i in rest], fractions, seed, "split")):
        split[i] = name
    return _with_splits(manifest, split)


def without(manifest: Manifest, ids: Collection[str]) -> Manifest:
    """The manifest without some rows; those after them are numbered anew.

    Raises:
        ManifestError: none would be left.
    """
    kept = pc.invert(pc.is_in(manifest.table["id"], pa.array(list(ids), pa.string())))
    table = manifest.table.filter(kept)
    if not len(table):
        raise ManifestError(f"{manifest.path or 'these rows'}: none of the {len(manifest.table)} rows can be used")
    return manifest._replace(table=table)


def _with_splits(manifest: Manifest, splits: Sequence[str | None]) -> Manifest:
    table = manifest.table
    return manifest._replace(table=table.set_column(table.column_names.index("split"), "split", pa.array(splits, pa.string())))


def _units(table: pa.Table, column: str) -> list[tuple[str, str]]:
    """What each row has to stay together with: those of its group, or nothing but itself."""
    return [(column, g) if g is not None else ("id", i) for g, i in zip(table[column].to_pylist(), table["id"].to_pylist())]


def _shared_out(keys: Sequence[tuple[str, str]], fractions: Mapping[str, float], seed: int, what: str) -> list[str]:
    """A name of ``fractions`` for each row; rows of one key get one name."""
    deficit = {name: fraction * len(keys) for name, fraction in fractions.items()}
    found: dict[tuple[str, str], str] = {}
    sizes = Counter(keys)
    for key in sorted(sizes, key=lambda k: seed_of(seed, what, *k)):
        found[key] = max(deficit, key=deficit.__getitem__)
        deficit[found[key]] -= sizes[key]
    if starved := sorted(set(fractions) - set(found.values())):
        raise ManifestError(
            f"the {what} {starved[0]!r} would get no row: there are {len(sizes)} groups (rows without a group are one each) "
            f"for {dict(fractions)}; "
            + ("raise its share (data.fractions, data.fold.validation)" if what == "split" else "make fewer folds")
        )
    return [found[key] for key in keys]
