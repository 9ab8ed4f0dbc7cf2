"""Cross-validation: who is in which fold, and that a study which was cut off goes on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import rows_of_three, write
from scipy import stats

from mmkt import folds as study
from mmkt import launch
from mmkt.checkpoint import CheckpointError
from mmkt.config import check
from mmkt.data.manifest import ManifestError, from_rows
from mmkt.data.splits import assign_fold, folds_of
from mmkt.experiment import Experiment
from mmkt.parts import Parts
from mmkt.score import spread

NAMES = ("train", "validation", "test")


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    return [{"id": f"r{i}", "group": None if i % 7 == 0 else f"g{random.integers(40)}", "fold": i % 5 + 1} for i in range(500)]


def test_values_of_a_column_are_folds(rows):
    manifest = from_rows(rows)
    folds = folds_of(manifest, "fold", None, 0)
    assert folds == [str(row["fold"]) for row in rows]
    split = assign_fold(manifest, folds, "3", NAMES, 0.2, 0).table["split"].to_pylist()
    assert [name == "test" for name in split] == [row["fold"] == 3 for row in rows]
    by_group = {}
    for row, name in zip(rows, split):
        if row["group"] and name != "test":
            by_group.setdefault(row["group"], set()).add(name)
    assert all(len(names) == 1 for names in by_group.values())
    assert abs(split.count("validation") - 80) <= 12
    assert split != assign_fold(manifest, folds, "3", NAMES, 0.2, 1).table["split"].to_pylist()
    assert "validation" not in assign_fold(manifest, folds, "3", ("train", None, "test"), 0.2, 0).table["split"].to_pylist()


def test_k_folds_keep_groups_together_and_are_of_like_size(rows):
    folds = folds_of(from_rows(rows), "group", 5, 0)
    assert set(folds) == set("12345")
    assert all(abs(folds.count(name) - 100) <= 15 for name in "12345")
    by_group = {}
    for row, fold in zip(rows, folds):
        by_group.setdefault(row["group"] or row["id"], set()).add(fold)
    assert all(len(found) == 1 for found in by_group.values())
    shuffled = folds_of(from_rows(rows[::-1]), "group", 5, 0)
    assert shuffled[::-1] == folds
    assert folds_of(from_rows(rows), "group", 5, 1) != folds


def test_folds_that_cannot_be(rows):
    manifest = from_rows(rows)
    with pytest.raises(ManifestError, match="'group' is empty in 72 of 500 rows"):
        folds_of(manifest, "group", None, 0)
    with pytest.raises(ManifestError, match="no column 'flod'"):
        folds_of(manifest, "flod", None, 0)
    with pytest.raises(ManifestError, match="make fewer folds"):
        folds_of(from_rows([{"group": "a"}, {"group": "b"}]), "group", 3, 0)
    with pytest.raises(ManifestError, match="no fold '9'; there are 1, 2, 3"):
        assign_fold(manifest, folds_of(manifest, "fold", None, 0), "9", NAMES, 0.2, 0)


def test_interval_against_scipy():
    values = np.random.default_rng(0).normal(0.7, 0.1, 6).tolist()
    mean, deviation, low, high = spread(values)
    assert mean == pytest.approx(np.mean(values))
    assert deviation == pytest.approx(np.std(values, ddof=1))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 5, loc=np.mean(values), scale=stats.sem(values)))
    assert np.isnan(spread([0.5])[1:]).all()


@pytest.fixture
def config(tiny_settings, tmp_path):
    made = [row | {"place": k % 3} for k, row in enumerate(rows_of_three(96))]
    for row in made:
        del row["split"], row["group"]
    data = copy.deepcopy(tiny_settings)
    data["data"] |= {"manifest": str(write(made, tmp_path / "m.parquet")), "fold": {"by": "place", "test": "?"}}
    data["model"]["encoders"] = {"image": data["model"]["encoders"]["image"]}
    data["train"] |= {"steps": 3, "evaluate_every": 3}
    return check(Experiment, data, Parts())


def test_a_study_is_cut_off_and_goes_on(config, monkeypatch):
    train, calls = launch.train, []

    def cut(one, *, resume=False, dry=False):
        calls.append((one.data.fold.test, resume))
        if len(calls) == 2:
            Path(one.run).mkdir()
            (Path(one.run) / "config.json").write_text(one.model_dump_json())
            raise KeyboardInterrupt
        return train(one, resume=resume, dry=dry)

    monkeypatch.setattr(launch, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        study.folds(config)
    found = study.folds(config)
    assert calls == [("0", False), ("1", False), ("1", False), ("2", False)]  # the first is read
    again = study.folds(config)
    assert len(calls) == 4
    assert again == found
    accuracy = next(figure for figure in found if figure.metric == "accuracy")
    assert list(accuracy.folds) == ["0", "1", "2"]
    assert (accuracy.mean, accuracy.deviation) == spread(list(accuracy.folds.values()))[:2]
    for name, value in accuracy.folds.items():  # by hand from the fold's own rows
        import pyarrow.parquet as pq

        table = pq.read_table(Path(config.run) / f"fold-{name}/best/evaluation-test/predictions.parquet")
        assert {int(row[1:]) % 3 for row in table["id"].to_pylist()} == {int(name)}
        assert table.num_rows == 32
        right = np.mean([a == b for a, b in zip(table["kind.label"].to_pylist(), table["kind.prediction"].to_pylist())])
        assert value == pytest.approx(right)
    json.dumps(study.as_json(found), allow_nan=False)
    other = config.model_copy(update={"train": config.train.model_copy(update={"lr": 0.5})})
    with pytest.raises(CheckpointError, match=r"another train\.lr"):
        study.folds(other)
