"""Every subset of the modalities: one pass of the encoders, the same answers as rows that lack the rest, worked figures."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from conftest import call, experiment, rows_of_three, write

from mmkt import report, subsets
from mmkt.evaluate import evaluate
from mmkt.launch import build
from mmkt.metrics.accuracy import Accuracy
from mmkt.metrics.mae import Mae
from mmkt.model import Model
from mmkt.predictions import predict, predict_subsets
from mmkt.score import About
from mmkt.types import Predictions

ALL = ("text", "image", "audio")


def test_every_subset_at_its_place():
    found = subsets.power_set(ALL)
    assert found[0] == ()
    assert found[0b101] == ("text", "audio")
    assert found[-1] == ALL
    assert len(set(found)) == 8
    with pytest.raises(ValueError, match=r"9 modalities have 511 subsets; up to 8 .* evaluate.subsets=false"):
        subsets.power_set([f"m{k}" for k in range(9)])


def lacking(tmp_path, names) -> str:
    """A manifest whose test rows have ``names`` alone."""
    rows = rows_of_three(120)
    for row in rows:
        if row["split"] == "test":
            row |= dict.fromkeys(set(ALL) - set(names))
    return str(write(rows, tmp_path / "lacking.parquet"))


@pytest.mark.parametrize("keep", [("image",), ("text", "audio"), ()])
def test_answers_are_those_of_rows_that_lack_the_others(trained, tiny_settings, tmp_path, keep):
    model, setup = Model.from_pretrained(trained), build(experiment(tiny_settings))
    runs = []
    for encoder in model.encoders.values():
        encoder.register_forward_hook(lambda encoder, *_: runs.append(encoder))
    rows = setup.feed.rows("test")
    some, full = predict_subsets(model, setup.feed, rows, [keep, ALL])
    assert len(runs) == len(ALL) * -(-len(rows) // tiny_settings["data"]["batch_size"])  # once each a batch
    assert full.table.equals(predict(model, setup.feed, rows).table)
    assert not some.table["kind.logits"].equals(full.table["kind.logits"])
    tiny_settings["data"]["manifest"] = lacking(tmp_path, keep)
    other = predict(model, build(experiment(tiny_settings)).feed, rows)
    assert some.table.equals(other.table.select(some.table.column_names))  # to the bit; has.M too


def game(values: dict[str, float], n: int = 100, mae: bool = False) -> list[Predictions]:
    """Answers whose accuracy (or error) with a subset of two modalities, a and b, is as given; the first rows are right."""
    found = []
    for name in ("none", "a", "b", "a+b"):
        label = np.arange(n) % 2
        if mae:
            table = pa.table({"t.label": np.zeros(n), "t.prediction": np.full(n, values[name])})
            found.append(Predictions(table, {"t": "regress"}, {}))
        else:
            right = np.arange(n) < round(values[name] * n)
            table = pa.table({"t.label": label, "t.logits": list(np.eye(2, dtype=np.float32)[np.where(right, label, 1 - label)])})
            found.append(Predictions(table, {"t": "classify"}, {"t": {"classes": [0, 1]}}))
    return found


def of(rows) -> dict[tuple[str, str], float]:
    return {(row.modalities, row.metric): row.value for row in rows}


def test_figures_by_hand():
    answers = game({"none": 0.2, "a": 0.6, "b": 0.3, "a+b": 0.9})
    rows = subsets.measure(answers, ["a", "b"], {"t": [("accuracy", Accuracy())]}, about=About(), resamples=400)
    found = of(rows)
    assert [row.modalities for row in rows[:4]] == ["a+b", "b", "a", "none"]
    assert found["a", "accuracy"] == pytest.approx(0.6)
    assert found["a", "accuracy.drop"] == pytest.approx(0.3)
    assert found["none", "accuracy.drop"] == pytest.approx(0.7)
    assert found["a", "accuracy.shapley"] == pytest.approx((0.4 + 0.6) / 2)
    assert found["b", "accuracy.shapley"] == pytest.approx((0.1 + 0.3) / 2)
    assert found["a", "accuracy.reliance"] == pytest.approx(0.6 / 0.7)
    assert found["a+b", "accuracy.interaction"] == pytest.approx(0.9 - 0.6 - 0.3 + 0.2)
    assert found["a+b", "accuracy.synergy_gap"] == pytest.approx(0.3)
    drop = next(row for row in rows if (row.modalities, row.metric) == ("a", "accuracy.drop"))
    # paired by row: 30 of 100 rows differ, whatever the other 70 do
    assert drop.high - drop.low == pytest.approx(2 * 1.96 * (0.3 * 0.7 / 100) ** 0.5, rel=0.15)
    assert (drop.n, drop.task) == (100, "t")


def test_where_lower_is_better_gains_still_count_up():
    answers = game({"none": 9.0, "a": 4.0, "b": 12.0, "a+b": 2.0}, mae=True)
    rows = subsets.measure(answers, ["a", "b"], {"t": [("mae", Mae())]}, about=About(), resamples=20)
    found = of(rows)
    assert found["a", "mae"] == 4
    assert found["a", "mae.drop"] == 2  # lost without b
    assert found["a", "mae.reliance"] == pytest.approx(10 / 7)  # b alone errs more than nothing does
    assert found["a", "mae.shapley"] + found["b", "mae.shapley"] == pytest.approx(7)
    assert found["a+b", "mae.synergy_gap"] == 2


def test_nothing_gained_is_no_division():
    rows = subsets.measure(game(dict.fromkeys(("none", "a", "b", "a+b"), 0.5)), ["a", "b"], {"t": [("accuracy", Accuracy())]},
                           about=About(), resamples=0)  # fmt: skip
    assert np.isnan(of(rows)["a", "accuracy.reliance"])
    assert all(np.isnan(row.low) for row in rows)


def test_the_command(trained, capfd, tmp_path):
    status, out, err = call(capfd, "evaluate", trained, "--out", tmp_path / "out")
    assert status == 0, err
    assert "kind with some of the modalities (n = 24)" in out
    for words in ("audio+image+text", "none", "Shapley value", "reliance", "pairs: synergy", "beyond the best"):
        assert words in out
    rows = report.read(tmp_path / "out/subsets.jsonl")
    found = of(row for row in rows if row.group == "all")
    assert len([row for row in rows if (row.metric, row.group) == ("accuracy", "all")]) == 8
    assert len([row for row in rows if row.group == "domain=indoor"]) == 8
    gain = found["audio+image+text", "accuracy"] - found["none", "accuracy"]
    assert sum(found[m, "accuracy.shapley"] for m in ALL) == pytest.approx(gain, abs=1e-9)
    full = next(row for row in report.read(tmp_path / "out/metrics.jsonl") if (row.metric, row.group) == ("accuracy", "all"))
    assert full == rows[0]  # interval included: the same resamples
    status, out, _ = call(capfd, "evaluate", trained, "--json", "--out", tmp_path / "out")
    assert {row["modalities"] for row in json.loads(out)["subsets"]} == {row.modalities for row in rows}
    status, out, _ = call(capfd, "evaluate", trained, "evaluate.subsets=false", "--out", tmp_path / "out")
    assert "some of the modalities" not in out
    assert not (tmp_path / "out/subsets.jsonl").exists()


def test_one_modality_has_no_subsets(tiny_settings):
    from mmkt import launch

    tiny_settings["model"]["encoders"] = {"text": tiny_settings["model"]["encoders"]["text"]}
    launch.train(experiment(tiny_settings, "train.steps=1", "train.evaluate_every=1"))
    found, folder = evaluate(f"{tiny_settings['run']}/best")
    for name in ("subsets", "retrieval"):
        with pytest.raises(ValueError, match=f"evaluate.{name}: takes two modalities or more, and the model has text alone"):
            evaluate(f"{tiny_settings['run']}/best", [f"evaluate.{name}=true"])
    assert not found.across
    assert not (folder / "subsets.jsonl").exists()
