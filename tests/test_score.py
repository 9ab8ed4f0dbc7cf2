"""Intervals that cover what they say, and rows for every slice."""

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from mmkt import score as module
from mmkt.metrics.accuracy import Accuracy
from mmkt.metrics.mae import Mae
from mmkt.metrics.recall import Recall
from mmkt.score import About, draws, score
from mmkt.types import Predictions

ACCURACY = {"k": [("accuracy", Accuracy())]}
DRAWS = [[0, 2, 1, 1, 1], [1, 3, 1, 0, 0], [1, 2, 0, 2, 0]]  # three resamples of five rows with seed 0


def answers(right, labels=None, **columns):
    """Predictions of a task "k" with classes a and b: right where ``right`` is."""
    right = np.asarray(right)
    labels = np.random.default_rng(0).integers(2, size=len(right)) if labels is None else labels
    logits = np.eye(2)[np.where(right, labels, 1 - labels)]
    none = pa.nulls(len(right), pa.string())
    columns = {"domain": none, "group": none, "k.label": np.array(["a", "b"])[labels], "k.logits": list(logits)} | columns
    return Predictions(pa.table(columns), {"k": "classify"}, {"k": {"classes": ["a", "b"], "counts": [1, 1]}})


def covered(level, p=0.8, n=150, sets=200):
    """In how many of ``sets`` simulated data sets the interval holds the true accuracy."""
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(sets):
        (row,) = score(answers(rng.random(n) < p), ACCURACY, about=About(), resamples=400, level=level, seed=seed)
        held += row.low <= p <= row.high
    return held


def test_the_interval_covers_the_truth_as_often_as_it_says():
    least, most = binom.interval(0.99, 200, 0.95)
    assert least <= covered(level=0.95) <= most


def test_a_narrower_interval_fails_that_check():
    assert covered(level=0.80) < binom.interval(0.99, 200, 0.95)[0]


def test_the_same_twice_and_in_any_chunks(monkeypatch):
    predictions = answers(np.random.default_rng(1).random(90) < 0.7)
    first = score(predictions, ACCURACY, about=About())
    assert score(predictions, ACCURACY, about=About()) == first
    monkeypatch.setattr(module, "CELLS", 1000)
    assert score(predictions, ACCURACY, about=About()) == first
    one, other = (np.concatenate(list(draws(np.arange(90), 5, seed))) for seed in (0, 1))
    assert (one != other).any(axis=1).all(), "another seed draws anew"


def test_draws_are_these():
    """Fixed by seed and n on every machine: committed numbers, each resample of n rows."""
    weights = np.concatenate(list(draws(np.arange(5), 3, seed=0)))
    assert (weights.sum(axis=1) == 5).all()
    generator = np.random.default_rng([0, 5])
    assert (weights == [np.bincount(generator.integers(5, size=5), minlength=5) for _ in range(3)]).all()
    assert weights.tolist() == DRAWS


def test_the_interval_is_that_of_a_bootstrap_written_out():
    right = np.random.default_rng(1).random(60) < 0.7
    (row,) = score(answers(right), ACCURACY, about=About(), resamples=300, level=0.9, seed=4)
    generator = np.random.default_rng([4, 60])
    means = [right[generator.integers(60, size=60)].mean() for _ in range(300)]
    assert (row.value, row.n) == (right.mean(), 60)
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])))


def test_rows_by_domain_group_and_class():
    right = np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)
    predictions = answers(
        right,
        labels=np.array([0, 1, 0, 1, 0, 1, 0]),
        domain=["x", "x", "x", "y", "y", "y", None],
        group=["p", "p", "p", "p", "p", "p", "q"],
    )
    about = About("runs/1", "lr", 7, "test", "image+text", "noise@3")
    rows = score(predictions, {"k": [("accuracy", Accuracy()), ("recall", Recall())]}, about=about, resamples=50)
    assert {row[:4] + row[5:7] for row in rows} == {("runs/1", "lr", 7, "test", "image+text", "noise@3")}
    found = {(row.metric, row.group): (row.value, row.n) for row in rows}
    assert found == {
        ("accuracy", "all"): (pytest.approx(4 / 7), 7),
        ("recall", "class=a"): (pytest.approx(2 / 4), 7),
        ("recall", "class=b"): (pytest.approx(2 / 3), 7),
        ("accuracy", "domain=x"): (pytest.approx(2 / 3), 3),
        ("accuracy", "domain=y"): (pytest.approx(1 / 3), 3),
        ("accuracy", "group=p"): (pytest.approx(3 / 6), 6),
        ("accuracy", "group=q"): (1.0, 1),
    }
    alone = next(row for row in rows if row.group == "group=q")
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert all(row.low <= row.value <= row.high for row in rows if row is not alone)


def test_one_domain_is_no_slice():
    rows = score(answers([True, False], domain=["x", "x"]), ACCURACY, about=About(), resamples=9)
    assert [row.group for row in rows] == ["all"]


def test_no_resamples_no_interval():
    (row,) = score(answers([True, False, True]), ACCURACY, about=About(), resamples=0)
    assert row.value == pytest.approx(2 / 3)
    assert math.isnan(row.low)
    assert math.isnan(row.high)


def test_a_metric_without_intervals_has_none():
    class Plain(Accuracy):
        resamples = False

    (row,) = score(answers([True, False, True]), {"k": [("plain", Plain())]}, about=About())
    assert (row.value, math.isnan(row.low)) == (pytest.approx(2 / 3), True)


def test_clusters_are_drawn_whole():
    """Ten speakers, each all right or all wrong: rows pretend to 200 independent answers, speakers own up to ten."""
    right = np.repeat([1, 1, 1, 0, 1, 0, 1, 1, 0, 1], 20).astype(bool)
    predictions = answers(right, speaker=np.repeat([f"s{i}" for i in range(10)], 20))
    (rows,), (whole,) = (score(predictions, ACCURACY, about=About(), cluster=c) for c in (None, "speaker"))
    assert rows.value == whole.value == pytest.approx(0.7)
    assert whole.high - whole.low > 3 * (rows.high - rows.low)
    (single,) = score(answers([True, False], speaker=["s", "s"]), ACCURACY, about=About(), cluster="speaker")
    assert math.isnan(single.low)
    with pytest.raises(ValueError, match="no column 'talker'"):
        score(predictions, ACCURACY, about=About(), cluster="talker")
    with pytest.raises(ValueError, match="'speaker' is empty in 1 of 2"):
        score(answers([True, False], speaker=["s", None]), ACCURACY, about=About(), cluster="speaker")


def test_unlabelled_rows_do_not_count():
    predictions = answers([True, False, True], **{"k.label": ["a", None, None]}, labels=np.array([0, 0, 0]))
    (row,) = score(predictions, ACCURACY, about=About())
    assert (row.value, row.n) == (1.0, 1)


def test_what_cannot_be_scored_is_refused():
    predictions = answers([True, False])
    empty = answers([True, False], **{"k.label": pa.nulls(2, pa.string())})
    with pytest.raises(ValueError, match=r"column 'k\.label' is empty in all 2 rows"):
        score(empty, ACCURACY, about=About())
    with pytest.raises(ValueError, match="no task 'j'"):
        score(predictions, {"j": []}, about=About())
    with pytest.raises(ValueError, match="'mae' judges regress, but task 'k' has a classify head"):
        score(predictions, {"k": [("mae", Mae())]}, about=About())
