"""Every metric against scikit-learn, under random integer weights with zeros and scores with ties."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn import metrics as reference

from mmkt.heads.classify import Classify
from mmkt.heads.tag import Tag
from mmkt.metrics import _counts, _ranks
from mmkt.metrics.ece import Ece
from mmkt.metrics.r2 import R2
from mmkt.metrics.top_k import TopK
from mmkt.parts import Parts
from mmkt.types import Metric, Predictions

CLASSES = ["cat", "dog", "eel", "fox", "never"]  # the last one occurs in neither labels nor predictions
METRICS = {name: Parts().find("metrics", name)() for name in Parts().files("metrics")} | {"top_k": TopK(k=2)}  # five classes
SEEDS = range(4)


def tied(rng, n, width):
    """Logits (n, width) from a pool of 25 rows, on a coarse grid: ties within and between rows."""
    return np.round(rng.normal(size=(25, width)) * 2)[rng.integers(25, size=n)] / 2


def choices(seed, n=120):
    rng = np.random.default_rng(seed)
    logits = tied(rng, n, 5)
    logits[:, 4] = -30
    labels = np.where(rng.random(n) < 0.6, logits.argmax(axis=1), rng.integers(4, size=n))
    sets = [[c for c, on in zip(CLASSES, row) if on] for row in rng.random((n, 5)) < 0.5]
    columns = {"k.label": [CLASSES[i] for i in labels], "k.logits": pa.array(list(logits.astype(np.float32))), "k.set": sets}
    return Predictions(pa.table(columns), {"k": "classify"}, {"k": {"classes": CLASSES, "counts": [1] * 5}}), labels, logits


def tags(seed, n=120):
    rng = np.random.default_rng(seed)
    logits = tied(rng, n, 5) - 0.25
    truth = rng.random((n, 5)) < 1 / (1 + np.exp(-logits))
    logits[:, 4], truth[:, 4] = -30, False
    named = [[CLASSES[c] for c in np.flatnonzero(row)] for row in truth]
    columns = {"k.label": pa.array(named, pa.list_(pa.string())), "k.logits": pa.array(list(logits.astype(np.float32)))}
    return Predictions(pa.table(columns), {"k": "tag"}, {"k": {"classes": CLASSES, "counts": [1] * 5}}), truth, logits


def measurements(seed, n=120):
    rng = np.random.default_rng(seed)
    label = rng.normal(1000, 3, size=n)
    prediction = label + rng.normal(size=n)
    return Predictions(pa.table({"k.label": label, "k.prediction": prediction}), {"k": "regress"}, {"k": {}}), label, prediction


MAKERS = {"classify": choices, "tag": tags, "regress": measurements}
PAIRS = [(name, head) for name, metric in METRICS.items() for head in metric.heads if head in MAKERS]


def draw(seed, n=120):
    weights = np.random.default_rng(seed + 100).integers(0, 4, size=n).astype(float)
    assert (weights == 0).any()
    return weights


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def one(name, predictions, weights):
    return {group: values[0] for group, values in METRICS[name](predictions, "k", weights[None]).items()}


def one_vs_rest(function, truth, scores, weights):
    """Mean over the classes that have both positives and negatives."""
    kept = [c for c in range(truth.shape[1]) if 0 < weights @ truth[:, c] < weights.sum()]
    return np.mean([function(truth[:, c], scores[:, c], sample_weight=weights) for c in kept])


@pytest.mark.parametrize("seed", SEEDS)
def test_choices_match_scikit_learn(seed):
    predictions, labels, logits = choices(seed)
    weights, guess, probabilities, hot = draw(seed), logits.argmax(axis=1), softmax(logits), np.eye(5, dtype=bool)[labels]
    expected = {
        "accuracy": reference.accuracy_score(labels, guess, sample_weight=weights),
        "macro_f1": reference.f1_score(labels, guess, sample_weight=weights, average="macro", zero_division=0),
        "auroc": one_vs_rest(reference.roc_auc_score, hot, probabilities, weights),
        "auprc": one_vs_rest(reference.average_precision_score, hot, probabilities, weights),
        "nll": reference.log_loss(labels, probabilities, sample_weight=weights, labels=range(5)),
        "brier": reference.brier_score_loss(labels, probabilities, sample_weight=weights, labels=range(5), scale_by_half=False),
    }
    for name, value in expected.items():
        assert one(name, predictions, weights)["all"] == pytest.approx(value, rel=1e-9), name
        assert one(name, predictions, np.ones(120))["all"] != pytest.approx(value, rel=1e-6), f"{name}: the weights matter"
    by_class = reference.precision_recall_fscore_support(
        labels, guess, sample_weight=weights, labels=range(4), average=None, zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1"), by_class[:3]):
        found = one(name, predictions, weights)
        assert [found[f"class={c}"] for c in CLASSES[:4]] == pytest.approx(values), name
        assert np.isnan(found["class=never"])


def test_top_k_matches_scikit_learn_and_ties_count_against_the_model():
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(size=(80, 5)).astype(np.float32), rng.integers(5, size=80), draw(0, 80)
    columns = {"k.label": [CLASSES[i] for i in labels], "k.logits": pa.array(list(logits))}
    predictions = Predictions(pa.table(columns), {"k": "classify"}, {"k": {"classes": CLASSES}})
    for k in (1, 2, 4):
        expected = reference.top_k_accuracy_score(labels, logits, k=k, sample_weight=weights, labels=range(5))
        assert TopK(k=k)(predictions, "k", weights[None])["all"][0] == pytest.approx(expected)
    columns["k.logits"] = pa.array(list(np.zeros((80, 5), np.float32)))
    flat = predictions._replace(table=pa.table(columns))
    assert TopK(k=4)(flat, "k", weights[None])["all"][0] == 0
    assert TopK(k=5)(flat, "k", weights[None])["all"][0] == 1
    columns["k.logits"] = pa.array(list(np.full((80, 5), np.nan, np.float32)))
    assert TopK(k=4)(flat._replace(table=pa.table(columns)), "k", weights[None])["all"][0] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_tags_match_scikit_learn(seed):
    predictions, truth, logits = tags(seed)
    weights, guess, probabilities = draw(seed), logits > 0, 1 / (1 + np.exp(-logits))
    by_class = reference.precision_recall_fscore_support(
        truth, guess, sample_weight=weights, labels=range(4), average=None, zero_division=0
    )
    expected = {
        "accuracy": reference.accuracy_score(truth, guess, sample_weight=weights),
        "macro_f1": by_class[2].mean(),
        "auroc": one_vs_rest(reference.roc_auc_score, truth, probabilities, weights),
        "auprc": one_vs_rest(reference.average_precision_score, truth, probabilities, weights),
    }
    for name, value in expected.items():
        assert one(name, predictions, weights)["all"] == pytest.approx(value, rel=1e-9), name
    for name, values in zip(("precision", "recall", "f1"), by_class[:3]):
        found = one(name, predictions, weights)
        assert [found[f"class={c}"] for c in CLASSES[:4]] == pytest.approx(values), name
        assert np.isnan(found["class=never"])


@pytest.mark.parametrize("seed", SEEDS)
def test_regressions_match_scikit_learn(seed):
    predictions, label, prediction = measurements(seed)
    weights = draw(seed)
    expected = {
        "mae": reference.mean_absolute_error,
        "rmse": reference.root_mean_squared_error,
        "r2": reference.r2_score,
    }
    for name, function in expected.items():
        value = function(label, prediction, sample_weight=weights)
        assert one(name, predictions, weights)["all"] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_a_weight_is_a_repetition(name, head, monkeypatch):
    """The property a bootstrap by weights rests on; R and its chunks change nothing."""
    predictions, *_ = MAKERS[head](0, n=40)
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=7).astype(float)
    together = METRICS[name](predictions, "k", weights)
    monkeypatch.setattr(_ranks, "CELLS", 80)
    monkeypatch.setattr(_counts, "CLASSES", 2)
    chunked = METRICS[name](predictions, "k", weights)
    for r, row in enumerate(weights):
        repeated = predictions._replace(table=predictions.table.take(np.repeat(np.arange(40), row.astype(int))))
        for group, value in one(name, repeated, np.ones(40)).items():
            assert together[group][r] == pytest.approx(value, rel=1e-9, nan_ok=True), group
            assert chunked[group][r] == pytest.approx(value, rel=1e-9, nan_ok=True), group
    if name not in ("precision", "recall", "f1"):
        assert len(set(together["all"].round(9))) > 1, "seven resamples of random data are not all alike"


def test_every_metric_is_tried():
    assert {name for name, _ in PAIRS} == set(METRICS)
    assert all(isinstance(metric, Metric) for metric in METRICS.values())
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"ece", "nll", "brier", "mae", "rmse", "aurc", "set_size"}


def test_ece_by_hand():
    """Confidences ½, ½ (right, right) and 0.8, 0.9 (wrong, right): sums of right − confidence are 1 and −0.7."""
    logits = [[float(np.log(p)), float(np.log1p(-p))] for p in (0.5, 0.5, 0.8, 0.9)]
    table = pa.table({"k.label": ["a", "a", "b", "a"], "k.logits": logits})
    predictions = Predictions(table, {"k": "classify"}, {"k": {"classes": ["a", "b"], "counts": [3, 1]}})
    assert Ece(bins=2)(predictions, "k", np.ones((1, 4)))["all"] == pytest.approx((1 + 0.7) / 4)  # ½ is in the lower bin
    assert Ece(bins=1)(predictions, "k", np.ones((1, 4)))["all"] == pytest.approx((1 - 0.7) / 4)
    assert Ece(bins=2)(predictions, "k", np.array([[1.0, 0, 3, 0]]))["all"] == pytest.approx((0.5 + 3 * 0.8) / 4)


def test_undefined_is_nan():
    predictions, labels, _ = choices(0)
    same = predictions._replace(table=predictions.table.filter(labels == 1))
    ones = np.ones(same.table.num_rows)
    assert np.isnan(one("auroc", same, ones)["all"])
    assert np.isnan(one("auprc", same, ones)["all"])
    constant = Predictions(pa.table({"k.label": [0.1] * 9, "k.prediction": [0.1] * 8 + [0.3]}), {"k": "regress"}, {"k": {}})
    assert np.isnan(R2()(constant, "k", np.ones((1, 9)))["all"][0])
    varied, *_ = measurements(0)
    assert np.isnan(R2()(varied, "k", 3 * np.eye(120))["all"]).all(), "one row again and again is constant, rounding aside"


def test_a_class_that_is_never_found_counts_nothing():
    """One class labelled and missed, one predicted and wrong, one right: the mean F1 is a third, as zero_division=0 says."""
    table = pa.table({"k.label": ["cat", "dog", "dog"], "k.logits": [[0.0, 0.0, 1, 0, 0], [0.0, 1, 0, 0, 0], [0.0, 1, 0, 0, 0]]})
    predictions = Predictions(table, {"k": "classify"}, {"k": {"classes": CLASSES, "counts": [1] * 5}})
    assert one("macro_f1", predictions, np.ones(3))["all"] == pytest.approx(1 / 3)
    assert one("precision", predictions, np.ones(3))["class=cat"] == 0
    assert one("recall", predictions, np.ones(3))["class=eel"] == 0


def test_metrics_and_heads_agree_on_what_is_predicted():
    """Ties included: equal logits of a choice, a tag of exactly one half."""
    logits = torch.tensor([[0.0, -1, 0, 2, -2], [1, 1, 0, 1, 0], [-1, -1, -1, -1, -1]])
    for name, head in (("tag", Tag), ("classify", Classify)):
        vocabulary = {"classes": CLASSES, "counts": [1] * 5, "rows": 5}
        decoded = head(3, vocabulary).decode(logits)["prediction"]
        table = pa.table({"k.label": decoded, "k.logits": logits.tolist()})
        assert one("accuracy", Predictions(table, {"k": name}, {"k": vocabulary}), np.ones(3))["all"] == 1, name


def test_an_unknown_label_is_named():
    predictions, *_ = choices(0)
    short = predictions._replace(vocabularies={"k": {"classes": CLASSES[1:], "counts": [1] * 4}})
    with pytest.raises(ValueError, match=r"k\.label holds \['cat'\]"):
        one("accuracy", short, np.ones(120))
