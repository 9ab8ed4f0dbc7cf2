"""Differences over seeds and rows: coverage, corrections, and what goes wrong with rows alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mmkt.metrics.accuracy import Accuracy
from mmkt.score import interval, resampled
from mmkt.statistics import Difference, difference, holm
from mmkt.types import Predictions


def study(random, seeds=5, rows=200, gain=0.0, spread=0.06, resamples=300):
    """Values of a made-up study: right answers of two arms whose true accuracy differs by seed."""
    weights = np.concatenate([np.ones((1, rows)), random.multinomial(rows, np.full(rows, 1 / rows), resamples)])
    easy = random.uniform(-0.3, 0.3, rows)  # rows are equally hard to both arms
    found = []
    for _ in range(seeds):
        first, second = (random.random(rows) < 0.7 + easy + random.normal(g, spread) for g in (gain, 0.0))
        found.append(weights @ (first.astype(float) - second.astype(float)) / rows)
    return np.array(found)


def test_no_difference_is_rarely_claimed_and_rows_alone_claim_it_often():
    random = np.random.default_rng(0)
    studies = [study(random) for _ in range(250)]
    claimed = np.mean([difference(values).verdict() in ("gain", "loss") for values in studies])
    alone = np.mean([low > 0 or high < 0 for low, high in (interval(values[:, 1:].mean(0)) for values in studies)])
    covered = np.mean([d.low <= 0 <= d.high for d in map(difference, studies)])
    assert claimed < 0.06
    assert covered > 0.90
    assert alone > 0.2


def test_a_difference_is_found():
    random = np.random.default_rng(1)
    verdicts = [difference(study(random, gain=0.2)).verdict() for _ in range(30)]
    assert verdicts.count("gain") > 25
    assert [difference(-study(random, gain=0.2)).verdict() for _ in range(30)].count("loss") > 25


def test_few_seeds_are_a_sighting():
    random = np.random.default_rng(2)
    assert difference(study(random, seeds=4, gain=0.3)).verdict() == "sighting"
    one = difference(study(random, seeds=1, gain=0.3))
    assert one.verdict() == "sighting"
    assert np.isnan(one.p)
    assert one.low < one.mean < one.high  # rows alone


def test_a_worked_example():
    values = np.array([[0.02, 0.02], [0.04, 0.04], [0.03, 0.03], [0.05, 0.05], [0.01, 0.01]])
    found = difference(values)
    assert found.mean == pytest.approx(0.03)
    assert found.p == pytest.approx(0.01324, abs=1e-4)  # t = 0.03 / (0.0158 / √5) = 4.243 with 4 degrees of freedom
    assert found.needed == 4  # t(3; .975) = 3.182: 3.182 · 0.0158 / 2 = 0.0252 < 0.03; with 3 seeds 0.0393


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([float("nan"), 0.02, 0.9])[1:] == pytest.approx([0.04, 0.9])


def test_equal_rows_are_resampled_alike():
    random = np.random.default_rng(3)
    labels = random.integers(3, size=60)
    right = random.random(60) < 0.8

    def of(answers):
        table = pa.table({"t.label": labels, "t.logits": list(np.eye(3, dtype=np.float32)[answers])})
        return Predictions(table, {"t": "classify"}, {"t": {"classes": [0, 1, 2]}})

    first = resampled(of(np.where(right, labels, (labels + 1) % 3)), "t", Accuracy(), 300)
    again = resampled(of(np.where(right, labels, (labels + 2) % 3)), "t", Accuracy(), 300)
    assert first[0] == pytest.approx(right.mean())
    assert np.array_equal(first, again)  # wrong in the same rows: no resample tells them apart
    assert first[1:].std() == pytest.approx((right.mean() * (1 - right.mean()) / 60) ** 0.5, rel=0.2)


def test_verdicts_take_the_corrected_p():
    clear = Difference(0.1, 0.02, 0.2, 0.03, 5, 4)
    assert clear.verdict() == "gain"
    assert clear.verdict(0.09) == "not distinguishable"
