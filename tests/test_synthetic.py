"""Synthetic tasks: ceilings beside the best decision by brute force on the rows; settings; a model that reaches one."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import call, experiment, refused
from scipy.special import logsumexp
from scipy.stats import norm

from mmkt import launch
from mmkt.config import check
from mmkt.data.manifest import read
from mmkt.data.sources.synthetic import Synthetic
from mmkt.experiment import Data
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.preparation import open_manifest

DRAWS = 200_000
WITHIN = 0.005  # five standard deviations of the accuracy of so many draws
STRENGTH = [1.2, 0.8, 0.5]
LOST = {"missing": 0.3}
BIASED = {"missing": 0.3, "missing_bias": 0.9}
NOISY = {"noisy": "b", "noisy_rate": 0.4, "noise": 4.0}
ALL = {**NOISY, "tokens": 2, "owner": "b", "missing": 0.3, "missing_bias": -0.8, "missing_of": ["b"]}


def settings(task: str, *more: dict, modalities: int = 2) -> dict:
    known = {"task": task, "modalities": modalities, "strength": STRENGTH[:modalities]}
    for each in more:
        known |= each
    return known


SETTINGS = {
    f"{task}-{name}": settings(task, more, modalities=3 if name == "plain" else 2)
    for task in ("redundant", "unique", "xor")
    for name, more in (
        ("plain", {}),
        ("tokens", {"tokens": 3}),
        ("noisy", NOISY),
        ("lost", LOST),
        ("biased", BIASED),
        ("all", ALL),
    )
}
SETTINGS["xor of three, biased"] = settings("xor", BIASED, modalities=3)
SETTINGS["certain"] = settings("redundant", {"missing": 0.5, "missing_bias": 1.0, "missing_of": ["a"]})


def evidence(rows: pa.Table, m: str, sign: int, known: dict, source: Synthetic) -> np.ndarray:
    """log p(what each row shows of a modality | its sign), (n,), but for what does not depend on the sign: plain densities."""
    k, tokens, noisy = source.names.index(m), max(1, known.get("tokens", 0)), known.get("noisy") == m
    may = m in known.get("missing_of", source.names)
    chance = known.get("missing", 0.0) * (1 + known.get("missing_bias", 0.0) * sign) if may else 0.0
    lost = rows[m].is_null().to_numpy()
    with np.errstate(divide="ignore"):
        found = np.where(lost, np.log(chance), np.log1p(-chance))
    values = rows[m].combine_chunks().drop_null()
    while pa.types.is_list(values.type):
        values = values.flatten()
    x = values.to_numpy().astype(np.float64).reshape(-1, tokens, source.dim + noisy)
    deviation = np.where(x[..., -1:] == 1, known["noise"], 1.0) if noisy else 1.0
    centre = sign * STRENGTH[k] / math.sqrt(tokens) * source.direction(m)
    found[~lost] += norm.logpdf(x[..., : source.dim], centre, deviation).sum((1, 2))
    return found


def simulated(known: dict) -> dict[str, float]:
    """Accuracy of the best decision for every subset: every hypothesis on all signs, weighed by its likelihood."""
    source = Synthetic(**known, dim=3, test=DRAWS, seed=3)
    rows, names = source.table("test"), source.names
    shown = {(m, sign): evidence(rows, m, sign, known, source) for m in names for sign in (-1, 1)}
    signs = list(itertools.product((-1, 1), repeat=len(names)))
    owner = names.index(known.get("owner", "a"))
    worlds = {
        "redundant": [(s, s[0]) for s in signs if len(set(s)) == 1],
        "unique": [(s, s[owner]) for s in signs],
        "xor": [(s, math.prod(s)) for s in signs],
    }[known["task"]]
    truth, found = np.array(rows["label"].to_pylist()) == "yes", {}
    for size in range(1, len(names) + 1):
        for subset in itertools.combinations(names, size):
            scores = [(label, sum(shown[m, s[names.index(m)]] for m in subset)) for s, label in worlds]
            yes, no = (logsumexp([score for label, score in scores if label == side], axis=0) for side in (1, -1))
            undecided = np.isclose(yes, no, rtol=0, atol=1e-9)
            found["+".join(subset)] = float(np.where(undecided, 0.5, (yes > no) == truth).mean())
    return found


def agree(one: dict[str, float], two: dict[str, float]) -> bool:
    return one.keys() == two.keys() and all(abs(one[key] - two[key]) < WITHIN for key in one)


@pytest.mark.parametrize("name", SETTINGS)
def test_ceilings_are_what_the_best_decision_reaches(name):
    found = simulated(SETTINGS[name])
    assert agree(Synthetic(**SETTINGS[name]).ceilings(), found), found


def test_wrong_formulas_would_be_noticed():
    """The controls: evidence of loss left out, a noisy modality at its mean strength, strengths added plainly."""
    found = simulated(settings("redundant", BIASED))
    assert not agree(Synthetic(**settings("redundant", LOST)).ceilings(), found)
    found = simulated(settings("unique", NOISY, {"owner": "b"}))
    mean = 0.8 * (0.6 + 0.4 / 4)
    assert abs(norm.cdf(mean) - found["b"]) > WITHIN
    found = simulated(settings("redundant"))
    assert abs(norm.cdf(1.2 + 0.8) - found["a+b"]) > WITHIN


def test_the_plain_ceilings_are_the_formulas_of_the_docstring():
    redundant, unique, xor = (Synthetic(**settings(task, modalities=3)) for task in ("redundant", "unique", "xor"))
    assert redundant.ceiling("a+c") == pytest.approx(norm.cdf(math.hypot(1.2, 0.5)))
    assert (unique.ceiling("a+b"), unique.ceiling("b+c")) == (pytest.approx(norm.cdf(1.2)), 0.5)
    assert xor.ceiling(["a", "b", "c"]) == pytest.approx(0.5 * (1 + np.prod([2 * norm.cdf(a) - 1 for a in STRENGTH])))
    assert xor.ceiling("a+b") == 0.5
    assert redundant.ceiling("") == unique.ceiling(()) == xor.ceiling("") == 0.5
    lost = Synthetic(**settings("xor", LOST))
    assert 2 * lost.ceiling("a+b") - 1 == pytest.approx(0.7**2 * (2 * norm.cdf(1.2) - 1) * (2 * norm.cdf(0.8) - 1))
    assert list(redundant.ceilings()) == ["a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]
    assert Synthetic(strength=0.0).ceilings() == {"a": 0.5, "b": 0.5, "a+b": 0.5}
    many = Synthetic(modalities=8, strength=1.0, missing=0.5, missing_bias=1.0, noisy="h")
    assert len(many.ceilings()) == 255
    assert many.ceiling(list("abcdefgh")) == pytest.approx(1.0)  # loss says all


# ---------------------------------------------------------------- the manifest


SMALL = {"rows": 300, "validation": 40, "test": 60}


def test_the_manifest_is_what_the_settings_say(tmp_path):
    source = Synthetic(**SMALL, tokens=3, dim=5, noisy="b", missing=0.4, missing_of=["a"], missing_in=["train"], strength=1.0)
    rows = read(source.prepare(tmp_path / "out", None)).table
    assert json.loads((tmp_path / "out/ceilings.json").read_text()) == source.ceilings()
    assert source.ceilings() == Synthetic(noisy="b", strength=1.0).ceilings()  # nothing is lost in the test split
    assert Counter(rows["split"].to_pylist()) == {"train": 300, "validation": 40, "test": 60}
    assert rows.schema.field("a").type.value_type.value_type == pa.float32()
    lost = Counter(row["split"] for row in rows.to_pylist() if row["a"] is None)
    assert lost.keys() == {"train"}
    assert 80 < lost["train"] < 160
    for row in rows.to_pylist():
        assert row["a"] is None or [len(token) for token in row["a"]] == [5, 5, 5]
        assert [len(token) for token in row["b"]] == [6, 6, 6]
        assert {token[-1] for token in row["b"]} in ({0.0}, {1.0})
    assert 0.4 < Counter(rows["label"].to_pylist())["yes"] / len(rows) < 0.6


def test_the_same_seed_makes_the_same_bytes_and_loss_leaves_the_rest_as_it_is(tmp_path):
    one, same, other = (Synthetic(**SMALL, seed=s).prepare(tmp_path / str(k), None) for k, s in enumerate((0, 0, 1)))
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    lossy = pq.read_table(Synthetic(**SMALL, missing=0.5, missing_bias=-1).prepare(tmp_path / "lossy", None)).to_pylist()
    for plain, row in zip(pq.read_table(one).to_pylist(), lossy, strict=True):
        assert row == {name: None if row[name] is None else value for name, value in plain.items()}
    assert sum(row["a"] is None for row in lossy if row["label"] == "no") > 0.9 * sum(row["label"] == "no" for row in lossy)
    assert not any(row["a"] is None for row in lossy if row["label"] == "yes")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strength": [1.0]}, r"strength has 1 numbers, and there are 2 modalities \(a, b\)"),
        ({"owner": "c"}, "owner names no modality 'c'.*; there are a, b"),
        ({"noisy": "z"}, "noisy names no modality 'z'"),
        ({"missing_of": ["a", "q"]}, "missing_of names no modality 'q'"),
        ({"missing": 0.6, "missing_bias": -1.0}, "with probability 1.2: with this bias missing is at most 0.5"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        Synthetic(**wrong)


def test_the_command_and_what_it_refuses(capfd, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert call(capfd, "data", "prepare", "synthetic", "rows=20", "strength=[1, 2]", *out)[0] == 0
    assert json.loads((tmp_path / "out/source.json").read_text())["strength"] == [1.0, 2.0]
    assert "missing_of names no modality 'q'" in refused(capfd, "data", "prepare", "synthetic", "missing_of=[q]", *out)
    assert "did you mean 'xor'?" in refused(capfd, "data", "prepare", "synthetic", "task=xro", *out)
    assert "source.modalities" in refused(capfd, "data", "prepare", "synthetic", "modalities=9", *out)
    with pytest.raises(ValueError, match="a subset names no modality 'd'"):
        Synthetic().ceiling("a+d")


def test_a_manifest_of_before_a_setting_was_there_is_as_usual(capfd, tmp_path):
    assert call(capfd, "data", "prepare", "synthetic", "rows=20", "--out", tmp_path)[0] == 0
    note = json.loads((tmp_path / "source.json").read_text())
    del note["strength"]
    (tmp_path / "source.json").write_text(json.dumps(note))
    data = {"source": {"name": "synthetic", "rows": 20}, "manifest": str(tmp_path / "manifest.parquet")}
    assert len(open_manifest(check(Data, data, Parts()), 0, Parts()).table)
    data["source"] |= {"strength": [9.0, 9.0]}
    with pytest.raises(ConfigError, match="was made with strength"):
        open_manifest(check(Data, data, Parts()), 0, Parts())


# ---------------------------------------------------------------- whole experiments


def recipe(tmp_path, source: dict, **train) -> dict:
    names = "abc"[: source.get("modalities", 2)]
    return {
        "run": str(tmp_path / "run"),
        "data": {
            "source": {"name": "synthetic", **source},
            "manifest": str(tmp_path / "data/manifest.parquet"),
            "batch_size": 64,
        },
        "model": {"dim": 16, "encoders": dict.fromkeys(names, "features"), "heads": {"label": "classify"}},
        "objectives": {"label": {"name": "classify", "task": "label"}},
        "train": {"steps": 5, "lr": 3e-3, **train},
        "evaluate": {"resamples": 20},
        "trackers": [],
        "threads": 1,
    }


def test_trained_on_rows_that_lack_some_or_all(tmp_path):
    source = {"task": "unique", "tokens": 2, "missing": 0.5, "noisy": "a", "rows": 200, "validation": 40, "test": 60}
    figures = launch.train(experiment(recipe(tmp_path, source)))
    assert any(row.metric == "accuracy" for row in figures)
    rows = read(tmp_path / "data/manifest.parquet").table
    assert any(a is None and b is None for a, b in zip(rows["a"].to_pylist(), rows["b"].to_pylist()))
    model = Model.from_pretrained(tmp_path / "run/best")
    assert [encoder.width for encoder in model.encoders.values()] == [9, 8]


@pytest.mark.slow  # half a minute; conformance trains on the same tasks
def test_a_model_comes_near_the_ceiling_and_not_above(tmp_path):
    source = {"task": "xor", "strength": 2.0, "dim": 4, "rows": 6000, "validation": 1000, "test": 4000}
    figures = launch.train(experiment(recipe(tmp_path, source, steps=300, lr=6e-3)))
    found = next(row.value for row in figures if row.metric == "accuracy" and row.group == "all")
    ceiling = json.loads((tmp_path / "data/ceilings.json").read_text())["a+b"]
    assert ceiling - 0.03 < found < ceiling + 0.01
