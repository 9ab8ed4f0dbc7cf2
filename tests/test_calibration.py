"""Temperature, prediction sets, risk and coverage: worked cases, coverage as asked, what a checkpoint keeps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from conftest import call, refused
from scipy.special import log_softmax, softmax
from scipy.stats import binom

from mmkt.calibration import conformal_threshold, fit_temperature
from mmkt.evaluate import evaluate
from mmkt.metrics.aurc import Aurc
from mmkt.metrics.coverage import Coverage
from mmkt.metrics.ece import Ece
from mmkt.metrics.set_size import SetSize
from mmkt.model import Model
from mmkt.types import Predictions


def drawn(rows: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right about their own probabilities, and labels drawn from these."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (rows, classes))
    return logits, (softmax(logits, 1).cumsum(1) < random.random((rows, 1))).sum(1)


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_the_temperature_that_was_applied_is_found(t):
    logits, labels = drawn(20_000)
    found = fit_temperature(logits * t, labels)
    assert found == pytest.approx(t, rel=0.05)
    # the likelihood's derivative in 1 / T is the mean logit of the truth less the expected one
    x = logits * t
    expected = (softmax(x / found, 1) * x).sum(1) - x[np.arange(len(x)), labels]
    assert abs(expected.mean()) < 1e-3 * t


def test_without_mistakes_confidence_grows_until_nothing_is_lost():
    labels = np.arange(50) % 3
    t = fit_temperature(np.eye(3)[labels], labels)
    assert 0.01 <= t < 0.05
    assert softmax(np.eye(3)[0] / t)[0] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("rows", [10, 57])
def test_sets_hold_the_truth_as_often_as_asked(rows):
    """Calibration rows and one new row, 2,000 times; without the n + 1 ten rows would hold it in 82 % of cases."""
    held, short = 0, 0
    for seed in range(2000):
        logits, labels = drawn(rows + 1, seed=seed)
        probabilities = softmax(logits, 1)
        least = conformal_threshold(probabilities[:-1], labels[:-1], 0.9)
        new = probabilities[-1, labels[-1]]
        held += new >= least
        short += new >= np.sort(probabilities[np.arange(rows), labels[:-1]])[::-1][int(np.ceil(rows * 0.9)) - 1]
    exact = np.ceil((rows + 1) * 0.9) / (rows + 1)
    low, high = binom.interval(0.999, 2000, exact)
    assert low <= held <= high
    if rows == 10:
        assert short < low


def test_the_threshold_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    labels = np.array([0, 1, 1, 0])  # of the truth: 0.9, 0.4, 0.8, 0.7
    assert conformal_threshold(probabilities, labels, 0.6) == 0.7  # ⌈5 · 0.6⌉ = 3rd
    assert conformal_threshold(probabilities, labels, 0.8) == 0.4
    assert conformal_threshold(probabilities, labels, 0.9) == 0  # ⌈4.5⌉ = 5 of 4


def answers(confidence, right, sets=None) -> Predictions:
    """Of two classes: the first is answered with some confidence, and is or is not the truth."""
    confidence = np.asarray(confidence)
    logits = log_softmax(np.log(np.stack([confidence, 1 - confidence], 1)), axis=1)
    label = np.where(right, "a", "b")
    columns = {"k.label": label, "k.prediction": ["a"] * len(label), "k.logits": list(logits.astype(np.float64))}
    table = pa.table(columns | ({} if sets is None else {"k.set": pa.array(sets, pa.list_(pa.string()))}))
    return Predictions(table, {"k": "classify"}, {"k": {"classes": ["a", "b"]}})


def test_aurc_by_hand():
    plain = np.ones((1, 4))
    found = answers([0.7, 0.99, 0.9, 0.8], [True, True, False, True])  # sorted: right, wrong, right, right
    assert Aurc()(found, "k", plain)["all"][0] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    tied = answers([0.9, 0.9, 0.9, 0.8], [True, False, True, True])  # three answered together
    assert Aurc()(tied, "k", plain)["all"][0] == pytest.approx((3 * (1 / 3) + 1 / 4) / 4)
    blind = answers([0.9] * 4, [True, False, True, True])
    assert Aurc()(blind, "k", plain)["all"][0] == pytest.approx(0.25)  # its error rate
    twice = answers([0.7, 0.99, 0.99, 0.9, 0.8], [True, True, True, False, True])
    weighted = Aurc()(found, "k", np.array([[1.0, 2, 1, 1], [0, 0, 1, 0]]))["all"]
    assert weighted[0] == pytest.approx(Aurc()(twice, "k", np.ones((1, 5)))["all"][0])
    assert weighted[1] == 1  # the wrong one alone


def test_ece_of_equal_mass_by_hand():
    found = answers([0.6, 0.7, 0.8, 0.9], [True, False, True, True])
    mass = Ece(bins=2, equal="mass")(found, "k", np.ones((1, 4)))["all"][0]
    assert mass == pytest.approx((abs(1 - 1.3) + abs(2 - 1.7)) / 4)
    assert Ece(bins=2)(found, "k", np.ones((1, 4)))["all"][0] == pytest.approx(0)  # all lie over one half


def test_coverage_and_set_size_by_hand():
    found = answers([0.9, 0.8, 0.6], [True, False, False], [["a"], ["a", "b"], ["a"]])
    assert Coverage()(found, "k", np.ones((1, 3)))["all"][0] == pytest.approx(2 / 3)
    assert SetSize()(found, "k", np.array([[1.0, 1, 2]]))["all"][0] == pytest.approx(5 / 4)
    with pytest.raises(ValueError, match="no sets: mmkt calibrate CHECKPOINT fits them"):
        Coverage()(answers([0.9], [True]), "k", np.ones((1, 1)))


@pytest.fixture
def best(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "best")


def test_a_checkpoint_keeps_what_is_fitted(best, trained, capfd):
    status, out, err = call(capfd, "calibrate", best, "--coverage", 0.8, "--json")
    assert status == 0, err
    (one,) = json.loads(out)["tasks"]
    vocabulary = json.loads((best / "vocabularies.json").read_text())["kind"]
    told = {"temperature": one["temperature"], "coverage": 0.8, "threshold": one["threshold"], "rows": 24}
    assert vocabulary["calibration"] == told
    assert one["nll"][1] < one["nll"][0]
    on = "evaluate.split=validation", "evaluate.resamples=0"
    after, before = (evaluate(str(path), [*on])[0] for path in (best, trained))
    figures = {row.metric: row.value for row in after.rows if row.group == "all"}
    assert figures["nll"] == pytest.approx(one["nll"][1], abs=1e-6)
    assert figures["coverage"] >= 0.8
    assert figures["set_size"] == pytest.approx(one["size"])
    assert {"coverage", "set_size"}.isdisjoint({row.metric for row in before.rows})
    assert after.predictions.table["kind.prediction"].equals(before.predictions.table["kind.prediction"])
    raw, tempered = (np.array(x.predictions.table["kind.logits"].to_pylist()) for x in (before, after))
    np.testing.assert_allclose(tempered, raw / one["temperature"], rtol=1e-5)
    (answer,) = Model.from_pretrained(best).predict([{"text": "large"}])
    assert answer["kind"]["prediction"] in answer["kind"]["set"]
    # fitted again it is the same: what was fitted before is forgotten
    status, out, _ = call(capfd, "calibrate", best, "--coverage", 0.8)
    assert json.loads((best / "vocabularies.json").read_text())["kind"] == vocabulary
    assert "fitted on validation" in out
    status, out, _ = call(capfd, "calibrate", best, "--coverage", 0.99)
    assert "24 rows are too few for a coverage of 0.99: its sets hold every class" in out


def test_what_cannot_be_calibrated(best, capfd, tmp_path):
    assert "--coverage lies between 0 and 1" in refused(capfd, "calibrate", best, "--coverage", 90)
    assert "so name one here, as RUN/best" in refused(capfd, "calibrate", "me/model")
    assert "data.validation: is null" in refused(capfd, "calibrate", best, "data.validation=null")
    assert "the split 'holdout' is empty" in refused(capfd, "calibrate", best, "data.validation=holdout")
    before = (best / "vocabularies.json").read_text()
    config = json.loads((best / "config.json").read_text())
    config["model"]["heads"]["kind"]["name"] = "tag"
    config["objectives"]["kind"]["name"] = "tag"
    (best / "config.json").write_text(json.dumps(config))
    vocabularies = json.loads(before)
    vocabularies["kind"]["rows"] = 72
    (best / "vocabularies.json").write_text(json.dumps(vocabularies))
    assert "has no head classify" in refused(capfd, "calibrate", best)
