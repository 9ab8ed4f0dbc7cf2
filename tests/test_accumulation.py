"""Accumulated batches have the gradient of one big batch, in float64, whatever is missing from which of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import experiment, rows_of_three, settings, write

from mmkt import launch, train
from mmkt.run import Run

TASKS = {
    "kind": {"name": "classify", "task": "kind", "label_smoothing": 0.1},
    "tags": {"name": "tag", "task": "tags", "weight": 0.5},
    "size": {"name": "regress", "task": "size"},
    "l2_sp": {"weight": 0.01},
}


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """What is computed in full precision, in double: numbers that are made anew, and what is raised to float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_bert) -> dict:
    """Rows without labels and without modalities, unevenly: some batches of two have no label, some no sound."""
    folder = tmp_path_factory.mktemp("uneven")
    rows, random = rows_of_three(60, seed=2), np.random.default_rng(2)
    for k, row in enumerate(rows):
        for column, share in (("kind", 0.5), ("tags", 0.3), ("size", 0.4), ("text", 0.3), ("audio", 0.5)):
            if k > 8 and random.random() < share:
                row[column] = None
    found = settings(write(rows, folder / "rows.parquet"), tiny_bert, folder / "run")
    found["data"]["validation"] = None
    found["model"]["heads"] = {"kind": "classify", "tags": "tag", "size": "regress"}
    found["objectives"] = TASKS
    return found


def built(data: dict, monkeypatch, tmp_path, accumulate: int, fusion: str):
    """An experiment whose model is in double, with eight rows a step in so many batches."""
    more = [f"data.batch_size={8 // accumulate}", f"train.accumulate={accumulate}", "train.steps=1", "train.warmup=0.0"]
    config = experiment(data, f"model.fusion={fusion}", f"run={tmp_path / f'{fusion}-{accumulate}'}", *more)
    setup = launch.build(config)
    setup.learner.double()
    plain = setup.feed.training

    def raised(*arguments, **named):
        for batch in plain(*arguments, **named):
            inputs = {m: {k: x.double() if x.is_floating_point() else x for k, x in i.items()} for m, i in batch.inputs.items()}
            yield batch._replace(inputs=inputs)

    monkeypatch.setattr(setup.feed, "training", raised)
    return config, setup


def gradients(data: dict, monkeypatch, tmp_path, accumulate: int, fusion: str) -> tuple[dict[str, np.ndarray], list[int]]:
    """Of the loop's first step, after backward and before clipping; and the rows that it was made of."""
    config, setup = built(data, monkeypatch, tmp_path, accumulate, fusion)
    found, rows = {}, []
    add = train.Meter.add
    monkeypatch.setattr(
        train.Meter, "add", lambda self, at, batch, *x: (rows.extend(batch.row.tolist()), add(self, at, batch, *x))
    )
    first = next(iter(setup.learner.objectives.values()))
    monkeypatch.setattr(
        first, "graded", lambda learner: found.update({name: p.grad.clone().numpy() for name, p in learner.named().items()})
    )
    plan, run = launch.plan_of(setup, config), Run(config.run, config, "x")
    train.fit(setup.learner, setup.feed, plan, run, Accelerator(), config.train)
    monkeypatch.setattr(train.Meter, "add", add)
    return found, rows


def still(monkeypatch) -> None:
    """Fusions that draw give what they expect: draws differ between one batch of eight and two of four."""
    for fusion in ("poe", "moe", "mopoe"):
        monkeypatch.setattr(f"mmkt.fusion.{fusion}.draw", lambda mean, variance: mean)
    for fusion in ("moe", "mopoe"):
        monkeypatch.setattr(f"mmkt.fusion.{fusion}.pick", lambda which: which.long().argmax(1))
    monkeypatch.setattr("torch.nn.functional.gumbel_softmax", lambda scores, tau, hard: (scores / tau).softmax(1))


def furthest(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


@pytest.mark.parametrize("fusion", ["concat", "gated", "crossmodal", "poe", "moe", "mopoe", "dynamic_gate"])
def test_accumulated_batches_have_the_gradient_of_the_big_one(data, monkeypatch, tmp_path, fusion):
    still(monkeypatch)
    whole, rows = gradients(data, monkeypatch, tmp_path, 1, fusion)
    assert max(float(np.abs(x).max()) for x in whole.values()) > 1e-2
    for accumulate in (2, 4):
        found, same = gradients(data, monkeypatch, tmp_path, accumulate, fusion)
        assert same == rows
        assert furthest(found, whole) < 1e-12


def test_the_mean_of_batch_means_is_another_gradient(data, monkeypatch, tmp_path):
    """What accumulating usually is: each batch divided by its own labelled rows. It is far from the big batch's here."""
    whole, _ = gradients(data, monkeypatch, tmp_path, 1, "concat")
    _, setup = built(data, monkeypatch, tmp_path, 4, "concat")
    learner = setup.learner.train()
    for batch in setup.feed.training(0, 4):
        (learner(batch, learner.counts([batch]))[0] / 4).backward()
    assert furthest({name: p.grad.numpy() for name, p in learner.named().items()}, whole) > 1e-3


def test_a_term_that_compares_rows_is_of_each_batch(data, monkeypatch, tmp_path):
    """The balance of ``sparse_moe`` is no sum over rows: it is the mean over the batches, and only that part differs."""
    whole, _ = gradients(data | {"terms": {"balance": 0.0}}, monkeypatch, tmp_path, 1, "sparse_moe")
    found, _ = gradients(data | {"terms": {"balance": 0.0}}, monkeypatch, tmp_path / "two", 2, "sparse_moe")
    assert furthest(found, whole) < 1e-12
    with_term, _ = gradients(data, monkeypatch, tmp_path / "term", 1, "sparse_moe")
    apart, _ = gradients(data, monkeypatch, tmp_path / "apart", 2, "sparse_moe")
    assert furthest(apart, with_term) > 1e-6
