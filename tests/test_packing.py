"""Batches of so many padded units: every row once an epoch, never too large, the same whoever asks."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import worker
from conftest import experiment, refused, rows_of_three, settings, write
from forked import together

from mmkt import launch, planning
from mmkt.checkpoint import read_tensors
from mmkt.data.lengths import tokens as tokens_of
from mmkt.data.packing import PackedSampler, Packing
from mmkt.data.sampling import Stream
from mmkt.encoders.features import Features
from mmkt.encoders.hf_text import HfText
from mmkt.learner import Learner
from mmkt.parts import ConfigError
from mmkt.stop import Stopped

RNG = np.random.default_rng(0)
SHAPES = {
    "alike": lambda n: RNG.integers(10, 14, n),
    "spread": lambda n: RNG.integers(1, 500, n),
    "tailed": lambda n: np.exp(RNG.normal(4, 1.5, n)).astype(np.int64),
    "absent": lambda n: RNG.integers(0, 3, n) * RNG.integers(1, 90, n),
}


def drawn(shape: str, n: int) -> tuple[Stream, np.ndarray]:
    """Some rows of a manifest, and lengths of all of its rows."""
    rows = RNG.permutation(2 * n)[:n]
    return Stream("train", rows, int(RNG.integers(8, 64))), SHAPES[shape](2 * n)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 8])
def test_every_row_once_an_epoch_within_the_budget(shape, world):
    for n in (8, 9, 12, 67, 400, 403):
        stream, lengths = drawn(shape, n)
        for budget in (1, 300, 4000):
            packing = Packing(stream, lengths, tokens=budget, world=world)
            sampler = PackedSampler(packing, seed=n)
            orders = set()
            for epoch in range(3):
                batches = [sampler.batch(epoch * len(packing) + k) for k in range(len(packing))]
                assert Counter(d.row for b in batches for d in b) == Counter(stream.rows.tolist())
                assert {(d.draw, d.stream) for b in batches for d in b} == {(epoch, 0)}
                sizes = [len(b) for b in batches]
                orders.add(tuple(d.row for b in batches for d in b))
                assert min(sizes) >= world
                assert min(sizes) == packing.least
                assert sum(size % world > 0 for size in sizes) == (n % world > 0)  # the last of the packing has what is left
                for batch in batches:
                    padded = len(batch) * lengths[[d.row for d in batch]].max()
                    # one row a process that is longer than its share; where what is left is added to such, less than two
                    assert padded <= budget or len(batch) <= world + n % world
                    assert len(batch) <= max(stream.quota, world + n % world)
            assert n < 60 or len(orders) == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_budget_forbids_is_not_forbidden_without(shape):
    """The assertion above can fail: batches of as many rows as fit on average are too large."""
    stream, lengths = drawn(shape, 400)
    size = max(1, 4000 // max(1, int(lengths[stream.rows].mean())))
    parts = [stream.rows[k : k + size] for k in range(0, 400, size)]
    assert any(len(part) * lengths[part].max() > 4000 for part in parts)


@pytest.mark.parametrize(("world", "sizes"), [(1, [1, 4, 12, 7]), (2, [2, 4, 12, 6]), (4, [4, 16, 4]), (8, [8, 16])])
def test_by_hand(world, sizes):
    """100 by itself, or one a process; 4 · 16 = 64; 3 · 21 = 63, of which 16 are allowed, a multiple of 8.

    Three are then left to one process, two to two: fewer than half of 8, so the batch before gives four. Eight take 8 or 16.
    """
    lengths = np.array([3] * 20 + [16] * 3 + [100])
    packing = Packing(Stream("s", np.arange(24), 16), lengths, tokens=64, world=world)
    assert np.diff(packing.edges).tolist() == sizes


def test_padding_is_small_and_batches_are_full():
    lengths = np.exp(RNG.normal(4, 0.8, 20_000)).astype(np.int64) + 1
    packing = Packing(Stream("s", np.arange(20_000), 10_000), lengths, tokens=8192)
    batches = packing.epoch(0, 0)
    padded = np.array([len(rows) * lengths[rows].max() for rows in batches])
    assert lengths.sum() / padded.sum() > 0.96
    assert padded.mean() > 0.9 * 8192
    # what is alike is dealt anew: pairs of one batch are seldom together again
    where = [np.empty(20_000, dtype=int) for _ in range(2)]
    for k, epoch in enumerate(where):
        for place, rows in enumerate(packing.epoch(0, k)):
            epoch[rows] = place
    one, two = RNG.integers(0, 20_000, (2, 200_000))
    together = where[0][one] == where[0][two]
    assert (where[1][one] == where[1][two])[together & (one != two)].mean() < 0.6
    means = [lengths[rows].mean() for rows in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3  # long and short ones come mixed


def test_a_pure_function_of_the_step():
    stream, lengths = drawn("spread", 130)

    def sampler(seed=1, **span):
        return PackedSampler(Packing(stream, lengths, tokens=2000), seed=seed, **span)

    whole = list(sampler(stop=40))
    assert list(sampler(start=17, stop=40)) == whole[17:]
    jumping = sampler()
    for step in RNG.permutation(40):
        assert jumping.batch(int(step)) == whole[step]
    assert list(sampler(seed=2, stop=40)) != whole


def test_processes_share_the_batches_of_one():
    stream, lengths = drawn("spread", 131)
    stream = stream._replace(quota=50)
    alone = PackedSampler(Packing(stream, lengths, tokens=8 * 500), seed=3)
    for world in (2, 4):
        packing = Packing(stream, lengths, tokens=8 * 500, world=world)
        shares = [list(PackedSampler(packing, seed=3, rank=rank, stop=20)) for rank in range(world)]
        for step in range(20):
            parts = [share[step] for share in shares]
            assert all(parts)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            assert Counter(draw for part in parts for draw in part) == Counter(alone.batch(step))


@pytest.mark.parametrize("most", [3, 40])
def test_fewer_rows_than_processes_are_refused(most):
    with pytest.raises(ValueError, match=r"3 rows .* do not go round 4 processes"):
        Packing(Stream("s", np.arange(3 if most == 40 else 40), most), np.ones(40), tokens=5, world=4)


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("more", [{}, {"max_tokens": 5}, {"max_tokens": 5, "windows": 3}, {"pairs": True, "max_tokens": 7}])
def test_tokens_are_what_is_padded(tiny_bert, more, multiple):
    """Of any rows, their number times the longest is the size of the padded batch."""
    processor = HfText({}, None, model=str(tiny_bert), weights="random", **more).processor()
    processor.multiple = multiple
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(["red", "what", "unheard"], k)) for k in [*range(25), *random.integers(0, 25, 30)]]
    items = [[text, texts[-k]] for k, text in enumerate(texts, 1)] if more.get("pairs") else texts
    for _ in range(40):
        some = [items[k] for k in random.integers(0, len(items), 4)]
        ids = processor.pad([processor(item) for item in some])["input_ids"]
        assert ids.numel() == len(some) * max(processor.length(item) for item in some)


@pytest.mark.parametrize("multiple", [1, 4])
def test_vectors_are_what_is_padded(multiple):
    column = pa.chunked_array([[[[1.0, 2.0]] * k for k in RNG.integers(1, 9, 30)]])
    processor = Features({}, None, {"width": 2, "count": 30}, standardize=False).processor()
    processor.multiple = multiple
    own = tokens_of(column, processor, np.arange(30))
    for _ in range(20):
        some = RNG.integers(0, 30, 4)
        items = [{"vectors": torch.tensor(column[int(k)].as_py())} for k in some]
        assert processor.pad(items)["mask"].numel() == 4 * own[some].max()
    flat = pa.chunked_array([[[1.0, 2.0], None]])
    assert tokens_of(flat, processor, np.arange(2)).tolist() == [multiple, 0]


def test_a_cells_items_count_together_and_alternatives_apart(tiny_bert):
    processor = HfText({}, None, model=str(tiny_bert), weights="random").processor()
    column = pa.chunked_array([[["red", "the red it"], None, ["small"], []]])
    rows = np.array([0, 1, 3])
    assert tokens_of(column, processor, rows).tolist() == [4, 0, 0, 0]
    assert tokens_of(column, processor, rows, alternatives=True).tolist() == [3, 0, 0, 0]


PACKED = ("data.batch_size=16", "data.group_by_length=audio")


def packed(data: dict, *more: str):
    return experiment(data, *PACKED, "data.tokens=24000", "train.steps=null", "train.epochs=2", *more)


def test_epochs_are_counted_in_batches(tiny_settings):
    config = packed(tiny_settings)
    setup = launch.build(config)
    steps = sum(phase.steps for phase in launch.plan_of(setup, config))
    assert steps == 2 * len(setup.feed.packing)
    assert len({batch.size for batch in setup.feed.training(0, steps)}) > 1
    rows = Counter(int(row) for batch in setup.feed.training(0, steps) for row in batch.row)
    assert set(rows.values()) == {2}
    assert set(rows) == set(setup.feed.rows("train").tolist())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.tokens=100"], "data.group_by_length=text"),
        (["data.tokens=100", "data.group_by_length=text", "data.balance=kind"], "data.tokens: does not go with data.balance"),
        (
            ["data.tokens=100", "data.group_by_length=text", "data.streams={a: {quota: 2}}"],
            "data.tokens: does not go with data.streams",
        ),
    ],
)
def test_what_does_not_go_together(tiny_settings, words, expected):
    with pytest.raises(ConfigError, match=expected):
        launch.build(experiment(tiny_settings, *words))


def test_a_batch_norm_needs_two_rows(tiny_settings, config_file, capfd):
    tiny_settings["model"]["encoders"]["image"]["model"] = "test_efficientnet"
    words = [*PACKED, "data.tokens=1"]
    assert "data.tokens: the smallest batch has 1 row(s)" in refused(capfd, "train", config_file(tiny_settings), *words)


def test_rows_are_compared_where_processes_have_equally_many(tiny_settings, monkeypatch):
    tiny_settings["objectives"]["align"] = {}
    config = packed(tiny_settings)
    monkeypatch.setattr("mmkt.distributed.world_size", lambda: 5)
    setup = launch.build(config)
    assert len(setup.feed.packing.stream.rows) == 72
    with pytest.raises(ConfigError, match="72 training rows do not divide over 5 processes, and align"):
        planning.refuse_uneven(setup.learner, setup.feed)
    monkeypatch.setattr("mmkt.distributed.world_size", lambda: 4)
    setup = launch.build(config)
    planning.refuse_uneven(setup.learner, setup.feed)
    assert not (np.diff(setup.feed.packing.edges) % 4).any()


def test_resumed_in_the_middle_to_the_bit(tiny_settings, tmp_path):
    def run(name, **how):
        return launch.train(packed(tiny_settings, f"run={tmp_path / name}", "train.save_every=2"), **how)

    run("whole")
    with pytest.raises(Stopped):
        run("cut", listener=lambda step, _, values: "loss" in values and step == 5)
    run("cut", resume=True)
    one, two = (read_tensors(tmp_path / name / "last/learner.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_give_the_curve_of_one(tmp_path, tiny_bert):
    """Batches of unequal sizes: of which one an epoch does not divide, by themselves and accumulated; and rows compared."""
    data = settings(tmp_path / "odd.parquet", tiny_bert, tmp_path / "unused")
    data["model"]["encoders"]["image"]["size"] = 16
    data["data"] |= {"batch_size": 16, "group_by_length": "audio", "tokens": 32000}
    data["train"] |= {"steps": 12, "lr": 1e-4, "evaluate_every": 12, "save_every": 12}
    found = {name: copy.deepcopy(data) for name in ("plain", "accumulated", "compared")}
    found["accumulated"]["train"]["accumulate"] = 2
    found["compared"]["data"]["manifest"] = str(tmp_path / "even.parquet")
    found["compared"]["objectives"]["align"] = {}
    for name, rows in (("odd", 65), ("even", 66)):
        write(rows_of_three(rows, seed=2), tmp_path / f"{name}.parquet")
    for name, own in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
        sizes = np.diff(launch.build(experiment(own)).feed.packing.edges)
        assert sizes.sum() % 2 == (name != "compared")
        assert len(set(sizes)) > 1
    for world in (1, 2):
        together(world, worker.curves, tmp_path, world, list(found), said=tmp_path)
    for name in found:
        one, two = losses(tmp_path / f"{name}-1"), losses(tmp_path / f"{name}-2")
        assert len(one) == len(two) == 12
        np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)
    assert losses(tmp_path / "plain-1")[:5] != losses(tmp_path / "accumulated-1")[:5]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mean_over_rows_counts_by_rows(tiny_settings, monkeypatch, ranks):
    """A term over unequal batches, accumulated or on two processes, is that of their rows together; their mean is another."""
    tiny_settings["model"]["fusion"] = {"name": "poe"}
    setup = launch.build(packed(tiny_settings))
    learner: Learner = setup.learner.eval()
    learner.weights = dict.fromkeys(learner.weights, 0.0)
    rows = setup.feed.rows("train")
    parts = [setup.feed.batch_of(rows[:3]), setup.feed.batch_of(rows[3:16])]
    whole = setup.feed.batch_of(rows[:16])
    with torch.no_grad():
        expected, means = learner(whole, learner.counts([whole]))
        counts = learner.counts(parts)
        monkeypatch.setattr("mmkt.learner.world_size", lambda: ranks)
        found = [learner(part, counts) for part in parts]
    torch.testing.assert_close(sum(loss for loss, _ in found) / ranks, expected)  # the wrapper takes the mean over ranks
    torch.testing.assert_close(sum(own for _, own in found)[1:], means[1:])
    apart = [own[1] * counts[-1] / part.size for part, (_, own) in zip(parts, found)]
    assert abs(sum(apart) / 2 - means[1]) > 1e-3 * abs(means[1])
