"""Measures against worked examples and brute force, and the command that ranks a study's sources with them."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import call, refused, rows_of_three, write
from scipy import optimize, stats
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LinearRegression

from mmkt.measures import h_score, kendall, leep, logme, nce, proxy_a_distance
from mmkt.ranking import Line, agree
from mmkt.studies.transfer_gain import Transfer
from mmkt.study import Study
from mmkt.transferability import rank


def planted(separation: float, n: int = 240, width: int = 12, classes: int = 4, seed: int = 0):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return separation * random.normal(size=(classes, width))[labels] + random.normal(size=(n, width)), labels


# ---------------------------------------------------------------- worked examples


def evidence(x: np.ndarray, y: np.ndarray, log_alpha: float, log_beta: float) -> float:
    """log p(y | F, α, β) a row, in the paper's form: over weights, with A = αI + βFᵀF and m = βA⁻¹Fᵀy."""
    n, width = x.shape
    alpha, beta = math.exp(log_alpha), math.exp(log_beta)
    a = alpha * np.eye(width) + beta * x.T @ x
    m = beta * np.linalg.solve(a, x.T @ y)
    fit = -beta / 2 * np.sum((x @ m - y) ** 2) - alpha / 2 * m @ m
    return (n / 2 * (log_beta - math.log(2 * math.pi)) + width / 2 * log_alpha + fit - np.linalg.slogdet(a)[1] / 2) / n


@pytest.mark.parametrize(("n", "width"), [(40, 5), (16, 30), (24, 24)])
def test_logme_is_the_maximum_of_the_evidence(n, width):
    x, labels = planted(0.5, n, width, 2)
    found = []
    for c in (0, 1):
        y = (labels == c).astype(float)
        starts = [(a, b) for a in (-3, 0, 3) for b in (-1, 2, 6)]
        tried = [
            optimize.minimize(lambda p, y=y: -evidence(x, y, *p), s, method="L-BFGS-B", bounds=[(-12, 25), (-12, 25)])
            for s in starts
        ]
        found.append(-min(one.fun for one in tried))
    assert logme(x, labels) == pytest.approx(np.mean(found), abs=2e-4)
    assert logme(x, labels) >= np.mean(found) - 1e-9  # a maximum is not below what was tried


def test_logme_of_one_column_in_closed_form():
    """F = 1: y ~ N(0, β⁻¹(I + t 11ᵀ)) has two eigenvalues, and the best t makes the first one n·ȳ²·β."""
    labels = np.array([0] * 6 + [1] * 2)
    found = []
    for ones in (6, 2):
        between, within = ones**2 / 8, ones - ones**2 / 8  # of ‖y‖², along 1 and beside it
        s = within / 7
        found.append(-0.5 * (math.log(2 * math.pi) + 1 + (7 * math.log(s) + math.log(between)) / 8))
    assert logme(np.ones((8, 1)), labels) == pytest.approx(np.mean(found))


def test_logme_bears_any_scale_and_columns_that_repeat():
    x, labels = planted(1.0)
    plain = logme(x, labels)
    assert logme(1e6 * x, labels) == pytest.approx(plain)
    assert logme(1e-9 * x, labels) == pytest.approx(plain)
    twice = np.concatenate([x, x, 1e-12 * x, np.zeros((len(x), 2))], 1)
    assert logme(twice, labels) == pytest.approx(plain)
    assert math.isfinite(logme(np.zeros_like(x), labels))


def test_h_score_by_hand():
    x, labels = np.array([[1.0], [3.0], [5.0], [7.0]]), np.array([0, 0, 1, 1])
    assert h_score(x, labels) == pytest.approx(4 / 5)  # means 2 and 6 about 4: 4; all about 4: (9 + 1 + 1 + 9) / 4
    assert h_score(np.eye(3)[[0, 1, 2, 0, 1, 2]], [0, 1, 2, 0, 1, 2]) == pytest.approx(2)  # classes − 1
    assert h_score(np.ones((4, 3)), labels) == 0
    x, labels = planted(0.3, classes=2)
    assert h_score(x, labels) == pytest.approx(LinearRegression().fit(x, labels).score(x, labels))
    hard = x * np.logspace(0, -10, x.shape[1])
    assert h_score(hard, labels) == pytest.approx(h_score(x, labels), rel=1e-3)


@pytest.mark.parametrize("width", [6, 100])
def test_shrunk_h_score_by_its_definition(width):
    x, labels = planted(0.5, 60, width, 3)
    centred = x - x.mean(0)
    fitted = LedoitWolf(assume_centered=True).fit(centred)
    means = np.stack([centred[labels == c].mean(0) for c in labels])
    between = means.T @ means / len(x)
    by_hand = np.trace(np.linalg.inv(fitted.covariance_) @ between) * (1 - fitted.shrinkage_)
    assert h_score(x, labels, shrinkage=True) == pytest.approx(by_hand)
    if width > 60:
        noise = np.random.default_rng(1).normal(size=x.shape)
        assert h_score(x, labels) == pytest.approx(2)
        assert h_score(noise, labels) == pytest.approx(2)  # which says nothing; the shrunk one tells them apart
        assert h_score(noise, labels, shrinkage=True) < 0.5 * h_score(x, labels, shrinkage=True)


def test_leep_and_nce_by_hand():
    theta = [[1, 0], [0.5, 0.5], [0, 1]]
    # P(0, z) = (1.5, 0.5)/3, P(1, z) = (0, 1)/3: P(0 | z) = (1, 1/3), P(1 | z) = (0, 2/3)
    assert leep(theta, [0, 0, 1]) == pytest.approx((math.log(1) + 2 * math.log(2 / 3)) / 3)
    assert nce([5, 5, 9, 9], [0, 1, 1, 1]) == pytest.approx(-math.log(2) / 2)
    sure = np.eye(2)[[0, 0, 1, 1]]
    assert leep(sure, [0, 1, 1, 1]) == pytest.approx(nce([0, 0, 1, 1], [0, 1, 1, 1]))  # with no doubt they are one
    assert nce([0, 0, 1, 1], [3, 3, 4, 4]) == 0
    with pytest.raises(ValueError, match="sum to 1"):
        leep([[3.0, -1.0], [0.2, 0.8]], [0, 1])


def test_proxy_a_distance_of_like_and_of_apart():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(300, 5)), random.normal(size=(200, 5))
    assert abs(proxy_a_distance(x, y)) < 0.3
    assert proxy_a_distance(x, y + 8) == pytest.approx(2, abs=0.02)
    assert 0.3 < proxy_a_distance(x, y + 0.5) < 1.7
    assert proxy_a_distance(x, y[:40]) < 0.4  # a classifier that always says x is no distance
    with pytest.raises(ValueError, match="5 rows or more a side, found 300 and 3"):
        proxy_a_distance(x, y[:3])
    with pytest.raises(ValueError, match="of one width"):
        proxy_a_distance(x, y[:, :2])


def test_kendall_against_scipy_and_by_enumeration():
    x, y = [1, 2, 3, 4, 5, 6], [2, 1, 3, 5, 4, 6]
    tau, p = kendall(x, y)
    exact = stats.kendalltau(x, y, method="exact")
    assert (tau, p) == pytest.approx((exact.statistic, exact.pvalue))
    tied = [1, 1, 2, 3, 3, 4]
    tau, p = kendall(tied, y)
    every = [abs(stats.kendalltau(tied, [y[k] for k in o]).statistic) for o in permutations(range(6))]
    assert p == pytest.approx(np.mean(np.array(every) >= abs(tau) - 1e-12))
    x, y = np.arange(12), np.random.default_rng(3).permutation(12)
    assert kendall(x, y)[1] == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue, abs=0.02)
    assert kendall(x, x)[1] == pytest.approx(1e-4, abs=2e-4)
    assert all(map(math.isnan, kendall([1, 1, 1], [1, 2, 3])))


# ---------------------------------------------------------------- a ranking that is there, and one that is not


MEASURED = [logme, h_score, lambda x, y: h_score(x, y, shrinkage=True)]


@pytest.mark.parametrize("measure", MEASURED)
def test_a_planted_ranking_is_found(measure):
    separations = [0.0, 0.15, 0.3, 0.5, 0.8, 1.2]
    scores = [measure(*planted(separation, seed=k)) for k, separation in enumerate(separations)]
    assert kendall(scores, separations) == pytest.approx((1, 2 / 720))
    random = np.random.default_rng(0)
    shuffled = [measure(x, random.permutation(y)) for x, y in (planted(s, seed=k) for k, s in enumerate(separations))]
    assert np.ptp(shuffled) < 0.15 * np.ptp(scores)  # nothing but the features' own shape tells candidates apart


@pytest.mark.parametrize("measure", MEASURED)
def test_noise_is_ranked_and_shuffled_labels_have_no_ranking(measure):
    """Features of one shape: clusters that have so many of the labels wrong."""
    noise = [0.0, 0.15, 0.3, 0.5, 0.7, 1.0]
    candidates = []
    for k, share in enumerate(noise):
        x, clusters = planted(1.0, seed=10 + k)
        random = np.random.default_rng(k)
        wrong = random.random(len(clusters)) < share
        candidates.append((x, np.where(wrong, random.integers(0, 4, len(clusters)), clusters)))
    assert kendall([measure(*candidate) for candidate in candidates], noise)[0] == pytest.approx(-1)
    random = np.random.default_rng(0)
    taus = [kendall([measure(x, random.permutation(y)) for x, y in candidates], noise)[0] for _ in range(20)]
    assert max(map(abs, taus)) < 1
    assert abs(np.mean(taus)) < 3 * np.std(taus) / math.sqrt(20)


def test_distances_promise_most_where_they_are_lowest():
    lines = [Line(str(k), 2, {"logme": k, "otdd": -k} | dict.fromkeys(("h_score", "h_score_shrunk", "leep", "nce",
        "proxy_a_distance"), math.nan), 0.1 * k) for k in range(6)]  # fmt: skip
    found = {one.measure: one for one in agree(lines)}
    assert found.keys() == {"logme", "otdd"}
    assert [one.tau for one in found.values()] == pytest.approx([1, 1])
    assert [one.p for one in found.values()] == pytest.approx([2 / 720] * 2)
    assert agree(lines, higher=False)[0].tau == pytest.approx(-1)


def test_bad_arrays():
    x, labels = planted(1.0)
    with pytest.raises(ValueError, match=r"one class alone \(\[3\] in 240 rows\).*give rows of two classes or more"):
        logme(x, np.full(240, 3))
    with pytest.raises(ValueError, match="one label a row"):
        h_score(x, labels[:-1])
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 240 rows of features are not finite"):
        logme(x, labels)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert) -> Path:
    """An experiment on pictures through the blocks of a tiny BERT, and texts with labels."""
    folder = tmp_path_factory.mktemp("transferability")
    rows = [row | {"topic": row["text"].split()[0], "one": "a"} for row in rows_of_three(80)]
    manifest = write(rows, folder / "rows.parquet")
    image = {"name": "borrow", "reads": "image", "body": str(tiny_bert), "size": 16, "channels": 1, "patch": 8}
    config = {
        "data": {"manifest": str(manifest), "batch_size": 12},
        "model": {"dim": 32, "encoders": {"image": image}, "heads": {"kind": "classify"}},
        "objectives": {"kind": {"name": "classify", "task": "kind"}},
        "train": {"steps": 2, "lr": 0.01, "evaluate_every": 2},
        "evaluate": {"resamples": 0},
        "trackers": [],
        "threads": 1,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def study(folder):
    """Writes a study file, changed as asked."""

    def make(**changes) -> Path:
        data = {
            "experiment": str(folder / "experiment.yaml"),
            "run": str(folder / "runs"),
            "sources": {
                "pretrained": [],
                "random": ["model.encoders.image.weights=random"],
                "bodiless": ["model.encoders.image.layers=0"],
            },
            "grids": [{"lr": [0.01], "seeds": [0]}],
        }
        path = folder / "study.yaml"
        path.write_text(yaml.safe_dump(data | changes, sort_keys=False))
        return path

    return make


def test_the_command_ranks_before_and_after_training(capfd, folder, study):
    from mmkt.config import read

    path = study()
    status, out, err = call(capfd, "transferability", path, "--rows", 40)
    assert status == 0, err
    assert "fine-tuned: – for pretrained, random, bodiless: not all trainings by full have ended" in " ".join(out.split())
    assert "LEEP, NCE: – for pretrained, random, bodiless: model.start names no checkpoint" in " ".join(out.split())
    assert "A-distance, OTDD: – for all: the study names no source_rows" in " ".join(out.split())
    assert "fewer than 6 candidates means little" in " ".join(out.split())

    Transfer(read(Study, path)).carry_out()
    start = folder / "runs/pretrained-full-lr0.01-seed0/best"
    sources = {
        "pretrained": [],
        "random": ["model.encoders.image.weights=random"],
        "bodiless": ["model.encoders.image.layers=0"],
        "trained": [f"model.start={start}"],
    }
    texts = {"manifest": str(folder / "rows.parquet"), "label": "topic"}
    path = study(sources=sources, source_rows=texts)
    status, out, err = call(capfd, "transferability", path, "--rows", 40, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found == json.loads((folder / "runs/transferability.json").read_text())
    assert (found["rows"], found["classes"]) == (40, 8)
    values = {line["name"]: line["values"] for line in found["candidates"]}
    assert [name for name in values if values[name]["leep"] is not None] == ["trained"]
    assert [name for name in sources if values[name]["otdd"] is None] == ["bodiless"]
    assert values["pretrained"]["logme"] != values["random"]["logme"]
    assert all(value is not None for value in values["trained"].values())
    scores = [line["values"]["logme"] for line in found["candidates"]]
    assert scores == sorted(scores, reverse=True)
    figures = {line["name"]: line["figure"] for line in found["candidates"]}
    assert figures["trained"] is None
    accuracy = json.loads(
        (folder / "runs/random-full-lr0.01-seed0/best/evaluation-test/metrics.jsonl").read_text().split("\n")[0]
    )
    assert accuracy["metric"] == "accuracy"
    assert figures["random"] == accuracy["value"]
    logmes = next((one for one in found["agreements"] if one["measure"] == "logme"), None)
    assert logmes is not None
    assert logmes["candidates"] == 3


def test_texts_go_through_the_candidates_own_blocks(folder, tiny_bert):
    import torch

    from mmkt.candidates import Candidate
    from mmkt.config import read
    from mmkt.experiment import Experiment

    texts = ["what is it", "the large one"]
    found = {}
    body = "model.encoders.image"  # with seed 0 the random body would be drawn as the fixture was
    for name, more in {"pretrained": [], "random": [f"{body}.weights=random", "seed=1"], "one": [f"{body}.layers=1"]}.items():
        config = read(Experiment, folder / "experiment.yaml", more)
        candidate = Candidate(name, config, "kind", "image", torch.device("cpu"))
        own, side = candidate.encoder.body.state_dict(), candidate.text_side().body.state_dict()
        assert own.keys() < side.keys()  # words beside
        assert all(torch.equal(own[key], side[key]) for key in own)
        assert sum("encoder.layer.1." in key for key in side) == (0 if name == "one" else 16)
        found[name] = candidate.read_texts(texts)
    from mmkt.encoders.hf_text import HfText

    plain = HfText({}, None, model=str(tiny_bert)).eval()
    inputs = plain.processor().pad([plain.processor()(text) for text in texts])
    assert np.allclose(found["pretrained"], plain(inputs).pooled.detach().numpy(), atol=1e-6)
    assert not np.allclose(found["random"], found["pretrained"], atol=0.1)


def test_leep_is_that_of_the_checkpoint_itself(folder, study, trained, tiny_settings):
    """By hand from mmkt evaluate's own predictions of the rows."""
    from mmkt.config import read
    from mmkt.evaluate import evaluate

    path = folder / "three.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    changes = {"experiment": str(path), "sources": {"s": [f"model.start={trained}"]}, "run": str(folder / "three")}
    found = rank(read(Study, study(**changes)), modality="text", order={})
    answers = evaluate(str(trained), ["evaluate.split=train"], out=str(folder / "out"))[0].predictions
    logits = np.array(answers.table["kind.logits"].to_pylist())
    theta = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.unique(answers.table["kind.label"].to_pylist(), return_inverse=True)[1]
    assert found.lines[0].values["leep"] == pytest.approx(leep(theta, labels), abs=1e-5)
    assert found.lines[0].width == 32
    assert found.rows == 72


def test_bad_input(capfd, folder, study, tiny_settings, tmp_path):
    from mmkt.config import read

    path = study()
    assert "there is no method 'ful'; did you mean 'full'" in refused(capfd, "transferability", path, "--method", "ful")
    with pytest.raises(ValueError, match="there is no source 'pretraind'; did you mean 'pretrained'"):
        rank(read(Study, path), order={"pretraind": 0.5})
    assert "no modality 'text'; allowed: image" in refused(capfd, "transferability", path, "--modality", "text")
    assert "8 classes do not fit into 5 rows: give --rows 8" in refused(capfd, "transferability", path, "--rows", 5)
    one = study(settings=["data.labels.kind=one"])
    assert "needs two classes or more" in refused(capfd, "transferability", one)
    none = study(settings=["data.labels.kind=nothing"])
    assert "no column 'nothing'" in refused(capfd, "transferability", none)
    regress = [
        "model.heads.kind=null",
        "model.heads.size=regress",
        "objectives.kind=null",
        "objectives.r={name: regress, task: size}",
    ]
    assert "the head of size is one to regress" in refused(capfd, "transferability", study(settings=regress))
    other = study(sources={"a": [], "b": ["seed=7"]})
    assert "sources.b: reads other rows than a" in refused(capfd, "transferability", other, "--rows", 20)
    texts = study(source_rows={"manifest": str(folder / "rows.parquet"), "label": "topc"})
    assert "did you mean 'topic'" in refused(capfd, "transferability", texts)
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(tiny_settings))
    several = study(experiment=str(tmp_path / "three.yaml"), sources={"a": []})
    assert "say whose encoder is ranked, --modality audio" in refused(capfd, "transferability", several)
