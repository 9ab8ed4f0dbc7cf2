"""Less to train on: shares of every class, nested, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import rows_of_three, write

from mmkt.data.manifest import ManifestError, from_rows
from mmkt.data.splits import assign_subset, rows_of
from mmkt.experiment import Data, SubsetOf
from mmkt.parts import Parts
from mmkt.preparation import open_manifest


def manifest():
    rows = [{"id": f"r{k}", "split": "train" if k % 4 else "test", "kind": "abb"[k % 3]} for k in range(400)]
    return from_rows([*rows, {"id": "none", "split": "train", "kind": None}])


def test_every_class_keeps_its_share_and_other_splits_all():
    before, found = manifest(), assign_subset(manifest(), "train", 0.2, "kind", 0)
    whole = Counter(before.table["kind"].take(rows_of(before, "train")).to_pylist())
    kept = Counter(found.table["kind"].take(rows_of(found, "train")).to_pylist())
    assert {name: kept[name] for name in "ab"} == {name: round(0.2 * whole[name]) for name in "ab"}
    assert len(rows_of(found, "test")) == 100
    assert found.table["id"].equals(before.table["id"])


def test_smaller_shares_lie_within_larger_ones_and_seeds_differ():
    small, large, other = (
        set(rows_of(assign_subset(manifest(), "train", *how), "train"))
        for how in ((0.1, "kind", 0), (0.5, "kind", 0), (0.1, "kind", 1))
    )
    assert small < large
    assert small != other
    assert len(rows_of(assign_subset(manifest(), "train", 0.1, None, 0), "train")) == 30


def test_a_class_left_empty_is_refused():
    rows = [{"id": f"r{k}", "split": "train", "kind": "rare" if k < 3 else "usual"} for k in range(100)]
    with pytest.raises(
        ManifestError, match=r"a share of 0.05 leaves 'rare' of kind \(3 rows in the split 'train'\) without a row"
    ):
        assign_subset(from_rows(rows), "train", 0.05, "kind", 0)
    with pytest.raises(ManifestError, match=r"data.subset.share=0.168 or more"):
        assign_subset(from_rows(rows), "train", 0.05, "kind", 0)
    assign_subset(from_rows(rows), "train", 0.168, "kind", 0)
    with pytest.raises(ManifestError, match="knd"):
        assign_subset(from_rows(rows), "train", 0.5, "knd", 0)


def test_a_config_takes_it(tmp_path):
    path = str(write(rows_of_three(80), tmp_path / "rows.parquet"))
    full = open_manifest(Data(manifest=path), 0, Parts())
    part = open_manifest(Data(manifest=path, subset=SubsetOf(share=0.5, by="kind")), 0, Parts())
    assert 2 * len(rows_of(part, "train")) == pytest.approx(len(rows_of(full, "train")), abs=8)
    assert len(rows_of(part, "validation")) == len(rows_of(full, "validation"))
