"""Comparisons on the same rows: worked tests, chance claimed as often as said, refusals."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import call, refused
from scipy.stats import binom

from mmkt import compare as comparing
from mmkt.compare import compare
from mmkt.evaluate import Evaluation, evaluate, write_figures
from mmkt.metrics.accuracy import Accuracy
from mmkt.metrics.auroc import Auroc
from mmkt.metrics.mae import Mae
from mmkt.statistics import mcnemar, permutation_test
from mmkt.stored import load
from mmkt.types import Predictions


def answers(right, label=None, ids=None) -> Predictions:
    """Of a task k with the classes a, b."""
    right = np.asarray(right, dtype=bool)
    label = np.arange(len(right)) % 2 if label is None else label
    said = np.where(right, label, 1 - label)
    names = np.array(["a", "b"])
    columns = {"id": ids or [f"r{k}" for k in range(len(right))], "k.label": names[label], "k.prediction": names[said]}
    table = pa.table(columns | {"k.logits": list(np.eye(2, dtype=np.float32)[said])})
    return Predictions(table, {"k": "classify"}, {"k": {"classes": ["a", "b"]}})


def numbers(said) -> Predictions:
    said = np.asarray(said, dtype=float)
    table = pa.table({"id": np.arange(len(said)), "k.label": np.zeros(len(said)), "k.prediction": said})
    return Predictions(table, {"k": "regress"}, {"k": {"mean": 0.0, "std": 1.0}})


def folder(tmp_path, name: str, found: Predictions) -> str:
    write_figures(tmp_path / name, Evaluation([], found))
    return str(tmp_path / name)


def test_mcnemar_by_hand():
    first, other = np.array([1] * 8 + [0] * 2 + [1] * 5, bool), np.array([0] * 8 + [1] * 2 + [1] * 5, bool)
    assert mcnemar(first, other) == (8, 2, pytest.approx(2 * binom.cdf(2, 10, 0.5)))
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_the_permutation_test_is_that_over_all_exchanges():
    """Of six rows all 64 exchanges, written out."""
    one, two = np.array([1.0, 3, 2, 5, 4, 1]), np.array([0.5, 1, 2.5, 2, 3, 2])
    seen = np.mean(one) - np.mean(two)
    every = [np.mean(np.where(swap, two - one, one - two)) for swap in product([False, True], repeat=6)]
    exact = np.mean([abs(x) >= abs(seen) - 1e-12 for x in every])
    found = permutation_test(numbers(one), numbers(two), "k", Mae(), 40_000)
    assert found == pytest.approx(exact, abs=3 * (exact * (1 - exact) / 40_000) ** 0.5)
    assert 0.05 < exact < 0.5


@pytest.mark.parametrize("gap", [0.0, 0.2])
def test_chance_is_claimed_as_often_as_said(gap):
    """Of equal models 5 % at the most; of unequal ones most."""
    random, found = np.random.default_rng(0), []
    for _ in range(200):
        shared = random.random(150) < 0.5  # rows that both find easy
        one, two = (shared | (random.random(150) < p) for p in (0.5, 0.5 + 2 * gap))
        found.append(permutation_test(answers(one), answers(two), "k", Accuracy(), 200) < 0.05)
    if gap:
        assert np.mean(found) > 0.7
    else:
        assert np.sum(found) <= binom.ppf(0.99, 200, 0.05)


def test_a_unit_changes_no_p():
    one, two = np.random.default_rng(0).normal(size=(2, 60))
    two[3:] = one[3:]  # many exchanges give just the difference that is seen
    small, large = (permutation_test(numbers(one * unit), numbers(two * unit), "k", Mae(), 2000) for unit in (1.0, 1e7))
    assert small == large


def test_what_is_undefined_has_no_p():
    alike = answers([True] * 6, label=np.zeros(6, dtype=int))
    assert np.isnan(permutation_test(alike, alike, "k", Auroc(), 50))


def tags(said) -> Predictions:
    logits = np.where([["a" in x] for x in said], 1.0, -1.0).astype(np.float32)
    table = pa.table({"id": np.arange(len(said)), "k.label": [["a"]] * len(said), "k.prediction": said, "k.logits": list(logits)})
    return Predictions(table, {"k": "tag"}, {"k": {"classes": ["a"], "rows": 3}})


def test_a_model_that_never_tags_is_compared(tmp_path):
    paths = [folder(tmp_path, name, tags(said)) for name, said in (("some", [["a"], [], ["a"]]), ("none", [[], [], []]))]
    (line,) = compare(paths, metrics=["k/accuracy"], resamples=50)
    assert (line.only_first, line.only_other) == (2, 0)


def test_figures_and_holm(tmp_path):
    base, same, better = np.arange(200) % 4 == 0, np.arange(200) % 4 == 1, np.arange(200) % 4 != 3
    paths = [folder(tmp_path, name, answers(x)) for name, x in (("base", base), ("same", same), ("better", better))]
    level, up = compare(paths, resamples=2000)
    assert (level.name, up.name) == ("same", "better")
    assert (level.difference, level.first, level.other) == (0, 0.25, 0.25)
    assert level.low < 0 < level.high
    assert level.p == level.mcnemar == 1  # of 50 to 50
    assert (up.only_first, up.only_other) == (0, 100)
    assert up.difference == pytest.approx(0.5)
    assert up.p == pytest.approx(2 / 2001, abs=1e-9)  # the smallest of 2,000 draws, twice by Holm
    # rows that differ: half, paired; unpaired the interval would be wider by 1.2
    assert up.high - up.low == pytest.approx(2 * 1.96 * 0.5 / 200**0.5, rel=0.1)
    assert compare(paths[:2], metrics=["k/macro_f1"], resamples=200)[0].metric == "macro_f1"


def test_where_lower_is_better(tmp_path):
    paths = [folder(tmp_path, name, numbers(x)) for name, x in (("far", np.full(40, 2.0)), ("near", np.full(40, -0.5)))]
    (line,) = compare(paths, resamples=500)
    assert line.difference == 1.5
    assert line.only_first is None
    assert np.isnan(line.mcnemar)


def test_other_rows_are_refused(tmp_path):
    one = folder(tmp_path, "one", answers([1, 0, 1]))
    changed = {
        "ids": answers([1, 0, 1], ids=["r0", "r1", "s2"]),
        "labels": answers([1, 0, 1], label=np.array([1, 1, 1])),
        "classes": answers([1, 0, 1])._replace(vocabularies={"k": {"classes": ["a", "b", "c"]}}),
        "tasks": numbers([1, 0, 1]),
    }
    words = {
        "ids": r"not evaluated on the same rows: 3 and 3, of which 2 have the same id",
        "labels": "other labels of k in the same rows",
        "classes": "other classes of k",
        "tasks": r"other tasks: k \(classify\); k \(regress\)",
    }
    for name, found in changed.items():
        with pytest.raises(ValueError, match=words[name]):
            compare([one, folder(tmp_path, name, found)])
    with pytest.raises(ValueError, match="give two or more"):
        compare([one])
    with pytest.raises(ValueError, match=r"no task 'kk'; did you mean 'k'\?; allowed: k"):
        compare([one, one], metrics=["kk/accuracy"])
    for name in ("mae", "f1"):  # the second is by class alone
        with pytest.raises(ValueError, match=f"'{name}' does not judge k"):
            compare([one, one], metrics=[f"k/{name}"])
    with pytest.raises(ValueError, match="--resamples is 1 or more, such as 10000, found 0"):
        compare([one, one], resamples=0)


def test_the_command(trained, tmp_path, capfd):
    evaluate(str(trained), ["evaluate.subsets=false", "evaluate.split=validation"])
    _, other = evaluate(str(trained), ["evaluate.subsets=false", "data.columns.text=domain"], out=str(tmp_path / "other"))
    status, out, err = call(capfd, "compare", trained.parent, other, "--resamples", 100)
    assert status == 0, err
    for words in ("kind: accuracy, against", "better by", "right alone", "McNemar p", "It is about"):
        assert words in out
    status, out, _ = call(capfd, "compare", trained, other, "--resamples", 100, "--json")
    (line,) = json.loads(out)["comparisons"]
    assert line["n"] == 24
    assert "it has one on test, validation; mmkt evaluate" in refused(capfd, "compare", trained, other, "--split", "train")
    assert "not evaluated on the same rows" in refused(capfd, "compare", trained / "evaluation-validation", other)
    # predictions of before, which do not say what they mean: the checkpoint beside them does
    file = trained / "evaluation-test/predictions.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    assert load(trained, "test").tasks == {"kind": "classify"}
    file = other / "predictions.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    assert "evaluate the checkpoint again" in refused(capfd, "compare", trained, other)


def test_effective_robustness_by_hand(answers_of, monkeypatch):
    """The first loses 0.3 of 0.8, the other 0.1 of 0.6."""
    ids = {"id": [str(k) for k in range(100)]}
    clean = {"a": answers_of(0.8, **ids), "b": answers_of(0.6, **ids)}
    worse = {"a": {"m.x@1": answers_of(0.6), "m.x@2": answers_of(0.4)}, "b": {"m.x@1": answers_of(0.6), "m.x@2": answers_of(0.4)}}
    monkeypatch.setattr(comparing, "load", lambda path, split: clean[str(path)])
    monkeypatch.setattr(comparing, "load_corrupted", lambda path, split: worse[str(path)])
    found = {line.condition: line for line in comparing.robustness(["a", "b"], resamples=200)}
    assert set(found) == {"m.x", "m"}
    line = found["m.x"]
    assert (line.first, line.other) == pytest.approx((0.5 / 0.8, 0.5 / 0.6))
    assert line.effective == pytest.approx(-0.1 + 0.3)
    assert line.low < line.effective < line.high
    worse["b"] |= {"joint@1": answers_of(0.5), "m.y@1": answers_of(0.5)}
    worse["a"] |= {"joint@1": answers_of(0.5)}
    assert "joint" not in {line.condition for line in comparing.robustness(["a", "b"], resamples=5)}, (
        "drawn from other corruptions"
    )
    worse["a"] |= {"m.y@1": answers_of(0.5)}
    assert "joint" in {line.condition for line in comparing.robustness(["a", "b"], resamples=5)}
    worse["b"] = {}
    assert comparing.robustness(["a", "b"]) == []


def test_the_command_compares_robustness(trained, capfd, tmp_path):
    from mmkt.evaluate import evaluate

    settings = ["evaluate.subsets=false", "evaluate.corruptions=[jpeg,typos]", "evaluate.severities=[5]"]
    for name, more in (("one", []), ("two", ["data.columns.audio=audio"])):
        evaluate(str(trained), [*settings, *more], out=str(tmp_path / name))
    status, out, err = call(capfd, "compare", tmp_path / "one", tmp_path / "two", "--resamples", "50")
    assert status == 0, err
    assert "kind: accuracy under corruption, beside" in out
    status, out, _ = call(capfd, "compare", tmp_path / "one", tmp_path / "two", "--resamples", "50", "--json")
    found = json.loads(out)["robustness"]
    assert {line["condition"] for line in found} == {"image.jpeg", "text.typos", "joint", "image", "text"}
    assert all(line["effective"] == 0 for line in found), "one and the same"
