from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mmkt.data.sampling import Draw, Stream, TrainSampler, balanced, evaluation
from mmkt.generators import seed_of

RNG = np.random.default_rng(0)


def streams(weights=None):
    return [
        Stream("source", np.arange(23), 5),
        Stream("target", np.arange(100, 107), 2),
        Stream("replay", np.arange(200, 211), 1, np.ones(11) if weights is None else weights),
    ]


LENGTHS = RNG.integers(1, 1000, 300)


def test_seed_is_stable_and_unambiguous():
    assert seed_of(1, "a") == seed_of(np.int64(1), "a") == 5719610163118220720  # printf '[1, "a"]' | b2sum -l 64, halved
    assert len({seed_of(1, 23), seed_of(12, 3), seed_of("1", 23), seed_of("1,23"), seed_of(1, "23"), seed_of(1, 2, 3)}) == 6
    assert all(0 <= seed_of(i) < 2**63 for i in range(100))


@pytest.mark.parametrize("quota", [1, 4, 7, 23, 50])
def test_every_row_once_an_epoch_and_none_lost(quota):
    rows = np.arange(10, 33)
    sampler = TrainSampler([Stream("all", rows, quota)], seed=3)
    draws = [draw for step in range(23 * 3) for draw in sampler.batch(step)]  # quota * 3 whole epochs
    assert [draw.draw for draw in draws] == [i // 23 for i in range(len(draws))]
    epochs = [tuple(draw.row for draw in draws[i : i + 23]) for i in range(0, len(draws), 23)]
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs)
    assert len(set(epochs)) == len(epochs)  # each in another order
    assert all(len(sampler.batch(step)) == quota for step in range(9))


def test_quotas_and_stream_order():
    for step in (0, 17):
        assert [draw.stream for draw in TrainSampler(streams(), seed=0).batch(step)] == [0] * 5 + [1] * 2 + [2]


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_pure_function_of_the_step(lengths):
    whole = list(TrainSampler(streams(), seed=1, lengths=lengths, window=6, stop=40))
    assert len(whole) == 40
    resumed = TrainSampler(streams(), seed=1, lengths=lengths, window=6, start=17, stop=40)
    assert len(resumed) == 23
    assert list(resumed) == whole[17:]
    assert list(resumed) == whole[17:]  # and again
    jumping = TrainSampler(streams(), seed=1, lengths=lengths, window=6)
    for step in RNG.permutation(40):
        assert jumping.batch(int(step)) == whole[step]
    assert list(islice(jumping, 40)) == whole
    with pytest.raises(TypeError):
        len(jumping)
    assert list(TrainSampler(streams(), seed=2, lengths=lengths, window=6, stop=40)) != whole


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_partition_the_batch(world, lengths):
    shares = [
        list(TrainSampler(streams(), seed=1, rank=r, world=world, lengths=lengths, window=7, stop=20)) for r in range(world)
    ]
    alone = TrainSampler(streams(), seed=1, lengths=lengths, window=7)
    for step in range(20):
        assert {len(share[step]) for share in shares} == {8 // world}
        assert Counter(draw for share in shares for draw in share[step]) == Counter(alone.batch(step))


@pytest.mark.parametrize(("world", "message"), [(3, "8 rows does not divide over 3 processes: use 6 or 9"), (16, "use 16")])
def test_batch_must_divide(world, message):
    with pytest.raises(ValueError, match=message):
        TrainSampler(streams(), seed=0, world=world)


def test_windows_group_by_length_and_lose_nothing():
    rows = RNG.permutation(300)[:257]
    plain = TrainSampler([Stream("s", rows, 8)], seed=5)
    grouped = TrainSampler([Stream("s", rows, 8)], seed=5, lengths=LENGTHS, window=10)

    def spread(sampler, steps):
        return np.mean([np.ptp(LENGTHS[[draw.row for draw in sampler.batch(step)]]) for step in steps])

    for window in range(4):
        steps = range(window * 10, window * 10 + 10)
        assert Counter(d for s in steps for d in plain.batch(s)) == Counter(d for s in steps for d in grouped.batch(s))
        assert spread(grouped, steps) < spread(plain, steps) / 4
        means = [LENGTHS[[draw.row for draw in grouped.batch(step)]].mean() for step in steps]
        assert means != sorted(means)  # the batches' order is shuffled
    # the long rows of two streams meet
    two = TrainSampler([Stream("a", rows[:128], 4), Stream("b", rows[128:], 4)], seed=5, lengths=LENGTHS, window=20)
    means = [[LENGTHS[[d.row for d in two.batch(s) if d.stream == k]].mean() for k in (0, 1)] for s in range(20)]
    assert np.corrcoef(np.array(means).T)[0, 1] > 0.9


def test_weights_draw_in_proportion():
    weights = np.array([0.0, 1, 2, 5])
    sampler = TrainSampler([Stream("w", np.arange(4), 10, weights)], seed=0)
    draws = [draw for step in range(2000) for draw in sampler.batch(step)]
    share = np.bincount([draw.row for draw in draws], minlength=4) / len(draws)
    assert share[0] == 0
    assert np.allclose(share, weights / 8, atol=0.01)
    assert [draw.draw for draw in draws] == list(range(20000))  # so that each is augmented in its own way


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Stream("s", np.arange(0), 2), "'s' has 0 rows for a quota of 2"),
        (Stream("s", np.arange(3), 2, np.ones(2)), "3 rows take 3 finite weights"),
        (Stream("s", np.arange(3), 2, np.zeros(3)), "not all 0"),
        (Stream("s", np.arange(3), 2, np.array([1, np.nan, 1])), "finite"),
    ],
)
def test_unusable_streams(stream, message):
    with pytest.raises(ValueError, match=message):
        TrainSampler([stream], seed=0)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 3, 8, 41])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_evaluation_has_every_row_once(n, size, world):
    rows = RNG.permutation(100)[:n]
    parts = [evaluation(rows, size, rank, world) for rank in range(world)]
    flat = [draw for part in parts for batch in part for draw in batch]
    assert sorted(draw.row for draw in flat) == sorted(rows.tolist())
    assert all(draw == Draw(draw.row, 0, 0) for draw in flat)
    assert all(1 <= len(batch) <= size for part in parts for batch in part)
    if size > 1 and n >= world:
        assert len({len(part) for part in parts}) == 1


def test_balanced_by_hand():
    assert balanced(["a", "b", "b", None, float("nan")]).tolist() == pytest.approx([1, 0.5, 0.5, 2 / 3, 2 / 3])
    assert balanced([["x"], ["x", "y"], []]).tolist() == pytest.approx([0.5, 0.75, 0.625])
    assert balanced([None, None]).tolist() == [1, 1]
    classes = RNG.integers(0, 3, 500)
    assert np.bincount(classes, balanced(classes)).tolist() == pytest.approx([1, 1, 1])
