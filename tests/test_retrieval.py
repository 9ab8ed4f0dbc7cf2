"""Retrieval beside brute force; ties, hubs, chance; pictures with several captions; the command."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from conftest import call, experiment, refused

from mmkt import launch, report, retrieval
from mmkt.score import About
from mmkt.types import Predictions


def unit(rows: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("cells", [7, 10_000])
def test_ranks_are_those_of_a_sorted_matrix(monkeypatch, cells):
    monkeypatch.setattr(retrieval, "CELLS", cells)
    queries, gallery = unit(23), unit(40, seed=1)
    items = torch.arange(40) % 13  # three or four right ones each
    wanted = torch.randint(13, (23,), generator=torch.Generator().manual_seed(2))
    (found,) = retrieval.rank(queries, gallery, wanted, items)
    for q in range(23):
        order = np.argsort(-(queries[q] @ gallery.T).numpy())
        places = np.flatnonzero(items.numpy()[order] == int(wanted[q])) + 1
        assert found.first[q] == places[0]
        assert found.precision[q] == pytest.approx(np.mean(np.arange(1, len(places) + 1) / places))
        assert found.relevant[q] == len(places)


def test_alike_vectors_rank_last():
    same = unit(1).expand(10, -1)
    (found,) = retrieval.rank(same, same, torch.arange(10), torch.arange(10))
    assert (found.first == 10).all()
    np.testing.assert_allclose(found.precision, 0.1)


def test_csls_takes_hubs_back():
    """Every query is near its answer, but nearer to one entry that is near to all."""
    common = unit(1, 32)
    answers = unit(50, 32, seed=1)
    queries = F.normalize(answers + 1.5 * common, dim=1)
    gallery = torch.cat([answers, common])
    here = torch.arange(50), torch.arange(51)
    penalty = retrieval.hubness(gallery, queries)
    similar = (queries @ gallery.T).numpy()
    np.testing.assert_allclose(penalty, np.sort(similar, 0)[-10:].mean(0) / 2, atol=1e-6)
    plain, fair = retrieval.rank(queries, gallery, *here, (None, penalty))
    assert np.mean(plain.first == 1) < 0.1
    assert np.mean(fair.first == 1) > 0.8


def test_chance_by_hand_and_by_drawing():
    assert retrieval.chance_recall(np.array([1, 1]), 10, 1) == pytest.approx(0.1)
    assert retrieval.chance_recall(np.array([2, 1]), 4, 2) == pytest.approx((1 - 1 / 6 + 1 - 1 / 2) / 2)
    assert retrieval.chance_recall(np.array([1]), 3, 5) == 1
    random = np.random.default_rng(0)
    drawn = np.mean([random.permutation(20)[:5].min() < 3 for _ in range(20_000)])  # five of 20, the first three are right
    assert retrieval.chance_recall(np.array([3]), 20, 5) == pytest.approx(drawn, abs=0.015)


def test_the_space_by_hand(monkeypatch):
    monkeypatch.setattr(retrieval, "CELLS", 50)
    x, y = unit(12), unit(12, seed=1)
    assert retrieval.modality_gap(x, y) == pytest.approx(float((x.mean(0) - y.mean(0)).norm()))
    assert retrieval.alignment(x, y) == pytest.approx(float(np.mean([((a - b) ** 2).sum() for a, b in zip(x, y)])))
    pairs = [float(torch.exp(-2 * ((x[i] - x[j]) ** 2).sum())) for i in range(12) for j in range(12) if i != j]
    assert retrieval.uniformity(x) == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)
    assert retrieval.uniformity(x[:1].expand(5, -1)) == pytest.approx(0, abs=1e-5)


def answers(**vectors) -> Predictions:
    """Vectors by modality; None where a row lacks it."""
    columns = {f"has.{m}": [x is not None for x in rows] for m, rows in vectors.items()}
    columns |= {
        f"vector.{m}": pa.array([None if x is None else x.numpy() for x in rows], pa.list_(pa.float32()))
        for m, rows in vectors.items()
    }
    return Predictions(pa.table(columns), {}, {})


def test_several_captions_a_picture():
    """Five pictures, each beside its three captions: 15 rows, five different pictures, of which one has no caption."""
    pictures, captions = unit(5), unit(15, seed=1)
    items = np.repeat(np.arange(5), 3)
    texts = [None if item == 4 else captions[k] for k, item in enumerate(items)]
    told, cells = answers(text=texts, image=[pictures[i] for i in items]), {"text": np.arange(15), "image": items}
    found = retrieval.measure(told, ["text", "image"], items, cells, about=About(), resamples=50)
    by = {(row.task, row.metric): row for row in found}
    there, to = by["text→image", "map"], by["image→text", "map"]
    assert (there.n, to.n) == (12, 4)
    similar = (captions[:12] @ pictures.T).numpy()
    first = 1 + (similar > similar[np.arange(12), items[:12]][:, None]).sum(1)
    assert by["text→image", "recall@1"].value == pytest.approx(np.mean(first == 1))
    assert by["text→image", "recall@5"].value == by["text→image", "recall@5.chance"].value == 1
    assert by["text→image", "median_rank"].value == np.sort(first)[5]
    assert by["text→image", "recall@1.chance"].value == pytest.approx(1 / 5)
    assert by["image→text", "recall@1.chance"].value == pytest.approx(3 / 12)
    assert there.low < there.value < there.high
    assert by["space", "gap"].n == 12
    assert {row.modalities for row in found if row.metric == "uniformity"} == {"text", "image"}


def test_vectors_that_are_not_finite_are_refused():
    broken = unit(4).clone()
    broken[2, 1] = torch.nan
    own = {"a": np.arange(4), "b": np.arange(4)}
    with pytest.raises(ValueError, match="1 of 4 vectors of a are not finite"):
        retrieval.measure(answers(a=list(broken), b=list(unit(4))), ["a", "b"], np.arange(4), own, about=About())


def test_a_modality_that_nobody_has_is_left_out():
    own = {"a": np.arange(4), "b": np.arange(4)}
    found = retrieval.measure(answers(a=list(unit(4)), b=[None] * 4), ["a", "b"], np.arange(4), own, about=About(), resamples=0)
    assert {(row.task, row.metric) for row in found} == {("space", "uniformity")}


def test_aligned_training_is_retrieved(tiny_settings, capfd, tmp_path):
    """Every direction has figures, whatever the batch size, and vectors stay out of the predictions."""
    tiny_settings["model"]["heads"] = {}
    tiny_settings["objectives"] = {"near": "align"}
    tiny_settings["transfer"] = {"name": "full", "frozen": ["fusion", "space.missing"]}
    launch.train(experiment(tiny_settings, "train.steps=8", "train.lr=0.003", "train.select=loss"))
    best = f"{tiny_settings['run']}/best"
    status, out, err = call(capfd, "evaluate", best, "--out", tmp_path / "out", "evaluate.item=kind")
    assert status == 0, err
    for words in ("retrieval (n = ", "CSLS", "in a random order", "text→audio", "shared space", "uniformity"):
        assert words in out
    rows = report.read(tmp_path / "out/retrieval.jsonl")
    assert len({row.task for row in rows}) == 7
    assert not any(name.startswith("vector.") for name in pq.read_schema(tmp_path / "out/predictions.parquet").names)
    status, out, _ = call(capfd, "evaluate", best, "--out", tmp_path / "out", "--json", "data.batch_size=5", "evaluate.item=kind")
    again = {(row["task"], row["metric"]): row["value"] for row in json.loads(out)["retrieval"] if "space" not in row["task"]}
    assert again == pytest.approx({(row.task, row.metric): row.value for row in rows if row.task != "space"}, abs=1e-6)
    assert "evaluate.item: there is no column 'kinds'; did you mean 'kind'" in refused(
        capfd, "evaluate", best, "evaluate.item=kinds"
    )
    assert "is of retrieval, which is not evaluated" in refused(
        capfd, "evaluate", best, "evaluate.retrieval=false", "evaluate.item=kind"
    )
    call(capfd, "evaluate", best, "--out", tmp_path / "out", "evaluate.retrieval=false")
    assert not (tmp_path / "out/retrieval.jsonl").exists()
