"""Classifiers of a few rows on frozen vectors, each against its formula or scikit-learn's."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import call, refused
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from mmkt import few_shot, report
from mmkt.few_shot import Vectors
from mmkt.score import About

C, D = 4, 12


def blobs(n: int, seed: int, spread: float = 0.6) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(C, D, generator=torch.Generator().manual_seed(99))
    y = torch.arange(n) % C
    return Vectors(F.normalize(centres[y] + spread * torch.randn(n, D, generator=generator) * D**0.5 / 2, dim=1), y)


SUPPORT, QUERIES = blobs(24, 1), blobs(60, 2).x


def test_nearest_class_mean():
    found = few_shot.nearest_class_mean(SUPPORT, QUERIES, C)
    means = torch.stack([F.normalize(SUPPORT.x[SUPPORT.y == c].mean(0), dim=0) for c in range(C)])
    assert torch.allclose(found, QUERIES @ means.T, atol=1e-6)
    nearest = KNeighborsClassifier(1).fit(means.numpy(), np.arange(C))  # on the sphere cosine and distance order alike
    assert (found.argmax(1).numpy() == nearest.predict(QUERIES.numpy())).all()
    some = Vectors(SUPPORT.x[SUPPORT.y != 2], SUPPORT.y[SUPPORT.y != 2])
    assert not (few_shot.nearest_class_mean(some, QUERIES, C).argmax(1) == 2).any()


def test_ridge_is_scikit_learns():
    hot = np.eye(C)[SUPPORT.y.numpy()]
    for penalty in (0.01, 1.0):
        expected = Ridge(alpha=penalty).fit(SUPPORT.x.double().numpy(), hot).predict(QUERIES.double().numpy())
        assert few_shot.ridge(SUPPORT, QUERIES, C, penalty=penalty).numpy() == pytest.approx(expected, abs=1e-5)


def test_k_nearest_by_brute_force():
    found = few_shot.k_nearest(SUPPORT, QUERIES, C, k=5)
    for query, scores in zip(QUERIES[:10], found):
        similar = (SUPPORT.x @ query).tolist()
        near = sorted(range(24), key=lambda k: -similar[k])[:5]
        votes = [sum(similar[k] + 1 for k in near if SUPPORT.y[k] == c) for c in range(C)]
        assert scores.tolist() == pytest.approx(votes, abs=1e-5)
    assert few_shot.k_nearest(Vectors(SUPPORT.x[:2], SUPPORT.y[:2]), QUERIES, C, k=9).shape == (60, C)


def test_tip_adapter_by_its_formula():
    named = F.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(5)), dim=1)
    found = few_shot.tip_adapter(SUPPORT, QUERIES, C, named=named, alpha=2.0, beta=5.5)
    for query, scores in zip(QUERIES[:10], found):
        expected = 100 * named @ query
        for x, y in zip(SUPPORT.x, SUPPORT.y):
            expected[y] += 2.0 * torch.exp(-5.5 * (1 - x @ query))
        assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_episodes():
    y = np.array([0] * 30 + [1] * 18 + [2] * 2)
    places = [np.flatnonzero(y == c) for c in range(3)]
    one = few_shot.episode(places, 4, 0, 7)
    assert np.bincount(y[one]).tolist() == [4, 4, 2]
    assert len(set(one.tolist())) == 10
    assert torch.equal(one, few_shot.episode(places, 4, 0, 7))
    assert not torch.equal(one, few_shot.episode(places, 4, 0, 8))


def test_figures_learn_and_chance_does_not():
    found = few_shot.measure(blobs(200, 3), blobs(80, 4), blobs(200, 5), C, [1, 16], 30, task="t", about=About(modalities="m"))
    by = {row.condition: row for row in found}
    assert set(by) == {f"few-shot {k} {name}" for k in (1, 16) for name in ("ncm", "ridge", "knn")} | {"few-shot"}
    for name in ("ncm", "ridge", "knn"):
        few, many = by[f"few-shot 1 {name}"], by[f"few-shot 16 {name}"]
        assert 0.25 < few.low < few.value < few.high < many.low, name
    noise = Vectors(F.normalize(torch.randn(200, D, generator=torch.Generator().manual_seed(7)), dim=1), torch.arange(200) % C)
    lost = few_shot.measure(noise, None, blobs(200, 5), C, [4], 200, task="t", about=About())
    assert [row.condition for row in lost] == ["few-shot 4 ncm", "few-shot"]  # nothing to choose settings on
    assert lost[0].value == pytest.approx(0.25, abs=0.06)


def test_settings_are_chosen_on_validation_alone():
    """Names that are each another class's: with labels to match they are trusted, with the rows' own they are not."""
    pool, rows = blobs(200, 3), blobs(80, 4)
    named = torch.stack([pool.x[pool.y == c].mean(0) for c in range(C)]).roll(1, 0)
    rolled = Vectors(rows.x, (rows.y + 1) % C)
    classify, grid = partial(few_shot.tip_adapter, named=F.normalize(named, dim=1)), few_shot.GRIDS["tip_adapter"]
    places = [np.flatnonzero(pool.y.numpy() == c) for c in range(C)]
    drawn = [few_shot.episode(places, 8, 0, -1 - number) for number in range(10)]
    trusting, wary = (few_shot._choose(classify, grid, pool, some, C, drawn) for some in (rolled, rows))
    assert trusting["alpha"] < wary["alpha"]

    def value(validation, test):
        found = few_shot.measure(
            pool, validation, test, C, [8], 10, task="t", about=About(), named={"en": F.normalize(named, dim=1)}
        )
        return next(row.value for row in found if "tip_adapter en" in row.condition)

    assert value(rows, rolled) < 0.25 < 0.7 < value(rolled, rolled)  # test could have told
    assert value(rows, rows) > 0.7


def test_the_command(trained, capfd, tmp_path):
    typed = ["evaluate", trained, "--out", tmp_path / "out", "evaluate.shots=[1,2]", "evaluate.episodes=5"]
    status, out, err = call(capfd, *typed)
    assert status == 0, err
    assert "kind from K rows a class (n = 24, chance 0.125)" in out
    rows = report.read(tmp_path / "out/few_shot.jsonl")
    assert {row.modalities for row in rows} == {"text", "image", "audio", "fused"}
    assert {row.condition for row in rows if row.modalities == "fused"} == {
        "few-shot", *(f"few-shot {k} {name}" for k in (1, 2) for name in ("ncm", "ridge", "knn"))
    }  # fmt: skip
    assert "few_shot" in json.loads(call(capfd, *typed, "--json")[1])
    assert "evaluate.shots" in refused(capfd, "evaluate", trained, "evaluate.shots=[0]")
    assert "classes of test have no row in train" in refused(
        capfd, "evaluate", trained, "evaluate.shots=[1]", "evaluate.label=id"
    )
