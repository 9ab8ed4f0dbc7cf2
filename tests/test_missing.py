"""Modalities that go missing at random: how likely what is left, and the figure over all of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from conftest import call

from mmkt import missing, report
from mmkt.metrics.accuracy import Accuracy
from mmkt.score import About
from mmkt.subsets import power_set


def test_chances_are_those_of_dropout_in_training():
    """As ``data.dropout`` does it: drawn anew here, by its words."""
    rng, rate = np.random.default_rng(0), 0.6
    there = np.array([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    likely = missing.probabilities(there, rate)
    assert likely.sum(0) == pytest.approx(1)
    counts = np.zeros_like(likely)
    for _ in range(6_000):
        kept = there & (rng.random(there.shape) >= rate)
        for row in np.flatnonzero(~kept.any(1) & there.any(1)):
            kept[row, rng.choice(np.flatnonzero(there[row]))] = True
        counts[kept @ (1 << np.arange(3)), np.arange(4)] += 1
    assert counts / 6_000 == pytest.approx(likely, abs=0.03)
    assert missing.probabilities(there, 0.0)[[7, 5, 2, 0], range(4)] == pytest.approx(1)
    assert missing.probabilities(there, 1.0)[[1, 2, 4], 0] == pytest.approx(1 / 3)


def test_figures_by_hand(answers_of):
    has = {"has.a": np.ones(100, dtype=bool), "has.b": np.arange(100) >= 50}  # the second half has both
    shares = {(): 0.1, ("a",): 0.6, ("b",): 0.5, ("a", "b"): 1.0}
    answers = [answers_of(shares[some], **has) for some in power_set(["a", "b"])]
    rows = missing.measure(answers, ["a", "b"], {"t": [("accuracy", Accuracy())]}, [0.0, 0.5, 1.0], about=About(), resamples=200)
    assert [row.condition for row in rows] == ["missing@0", "missing@0.5", "missing@1"]
    # the first half has a alone and keeps it: answered by {a} (right: 50 of 50), never by a+b, whose answers are its own
    only_a, both_a, both_b = 1.0, 0.2, 0.0  # accuracy of {a} on either half, of {b} on the second
    assert rows[0].value == pytest.approx((0.5 * only_a) + 0.5 * 1.0)
    left = 0.25 + 0.25 / 2
    assert rows[1].value == pytest.approx(0.5 * only_a + 0.5 * (0.25 * 1.0 + left * both_a + left * both_b))
    assert rows[2].value == pytest.approx(0.5 * only_a + 0.5 * (0.5 * both_a + 0.5 * both_b))
    assert rows[1].low < rows[1].value < rows[1].high
    assert rows[1].n == 100


def test_rows_without_a_label_do_not_count(answers_of):
    has = {"has.a": np.ones(100, dtype=bool)}
    answers = [answers_of(0.2, **has), answers_of(0.8, **has)]
    holes = pa.array([None if k >= 80 else k % 2 for k in range(100)])
    answers = [some._replace(table=some.table.set_column(0, "t.label", holes)) for some in answers]
    (row,) = missing.measure(answers, ["a"], {"t": [("accuracy", Accuracy())]}, [0.5], about=About(), resamples=0)
    assert (row.n, row.value) == (80, 1.0)


def test_the_command(trained, capfd, tmp_path):
    status, out, err = call(capfd, "evaluate", trained, "--out", tmp_path / "out", "evaluate.missing=[0,0.9]")
    assert status == 0, err
    assert "each modality missing at a rate" in out
    rows = report.read(tmp_path / "out/missing.jsonl")
    full = report.read(tmp_path / "out/metrics.jsonl")[0]
    assert rows[0]._replace(condition="clean") == full
    call(capfd, "evaluate", trained, "--out", tmp_path / "out", "evaluate.missing=[]")
    assert not (tmp_path / "out/missing.jsonl").exists()
