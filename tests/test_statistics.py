"""Differences over seeds and rows: coverage, corrections, and what goes wrong with rows alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import integrate, optimize, stats

from mmkt.metrics.accuracy import Accuracy
from mmkt.score import interval, resampled
from mmkt.statistics import Difference, difference, holm, needed, two_sources
from mmkt.types import Predictions


def study(random, seeds=5, rows=200, gain=0.0, spread=0.06, resamples=300):
    """Values of a made-up study: right answers of two arms whose true accuracy differs by seed."""
    weights = np.concatenate([np.ones((1, rows)), random.multinomial(rows, np.full(rows, 1 / rows), resamples)])
    easy = random.uniform(-0.3, 0.3, rows)  # rows are equally hard to both arms
    found = []
    for _ in range(seeds):
        first, second = (random.random(rows) < 0.7 + easy + random.normal(g, spread) for g in (gain, 0.0))
        found.append(weights @ (first.astype(float) - second.astype(float)) / rows)
    return np.array(found)


def pairs(random, count, spread, own, rest, rows=500, seeds=5, resamples=200):
    """As ``difference`` takes them, of pairs of arms that are right in 70 % of all rows there are: (count, S, 1 + R).

    Whether an arm is right depends on how hard the row is to all, how hard it is to the arm in all its seeds (``own``, a share
    of the variance), and chance in each seed (``rest``). Its accuracy over all rows differs by seed, by ``spread``.
    """
    weights = np.concatenate([np.ones((1, rows)), random.multinomial(rows, np.full(rows, 1 / rows), resamples)])
    found = []
    for _ in range(count):
        hard = random.normal(0, (1 - own - rest) ** 0.5, rows) + random.normal(0, own**0.5, (2, 1, rows))
        latent = hard + random.normal(0, rest**0.5, (2, seeds, rows))
        right = latent < stats.norm.ppf(0.7 + random.normal(0, spread, (2, seeds, 1)))
        found.append((right[0].astype(float) - right[1]) @ weights.T / rows)
    return np.array(found)


CASES = {"rows": (0.002, 0.3, 0.02), "seeds": (0.03, 0.01, 0.1), "both": (0.01, 0.1, 0.1), "chance": (0.002, 0.0, 0.5)}


@pytest.mark.parametrize("case", CASES)
def test_p_is_calibrated_whatever_chance_comes_from(case):
    found = [difference(values) for values in pairs(np.random.default_rng(4), 400, *CASES[case])]
    assert np.mean([d.p < 0.05 for d in found]) < 0.075  # of 400: the standard error is 0.011
    assert np.mean([d.p < 0.3 for d in found]) > 0.15  # and it is not blind


def test_a_t_test_over_seeds_alone_takes_shared_rows_for_a_difference():
    values = pairs(np.random.default_rng(4), 400, *CASES["rows"])
    old = stats.ttest_1samp(values[:, :, 0], 0, axis=1).pvalue
    assert np.mean(old < 0.05) > 0.4
    assert np.mean([p < 0.05 / 19 for p in old]) > 0.1  # Holm's correction of 19 comparisons does not help


def critical(p_of, level):
    """By how far the mean must be from 0 for p to be the level."""
    return optimize.brentq(lambda x: p_of(x) - level, 1e-6, 80, xtol=1e-4)


def claims(test, share, level, nodes=150):
    """How often a test of 5 seeds claims a difference that isn't there, ``share`` of the variance being over seeds: exactly."""
    ratio = stats.chi2.ppf((np.arange(nodes) + 0.5) / nodes, 4) / 4
    return np.mean([2 * stats.norm.sf(critical(lambda x, v=v: test(x, share * v, 4, 1 - share), level)) for v in ratio])


def welch(mean, estimated, freedom, known):
    whole = estimated + known
    return 2 * stats.t.sf(mean / whole**0.5, freedom * (whole / estimated) ** 2)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_p_never_claims_too_often_and_welch_does_in_the_tail(share):
    level = 0.05 / 19
    assert claims(two_sources, share, 0.05) < 0.0505
    assert claims(two_sources, share, level) < 1.1 * level  # 1.00, and what the nodes miss
    if share == 0.9:
        assert claims(welch, share, level) > 2.5 * level


@pytest.mark.parametrize("freedom", [1, 2, 4, 30])
def test_two_sources_against_other_formulas(freedom):
    for x in (0.0, 0.3, 2.0, 9.0):
        assert two_sources(x, 1, freedom, 0) == pytest.approx(2 * stats.t.sf(x, freedom), abs=1e-10)
        assert two_sources(x, 0, freedom, 1) == pytest.approx(2 * stats.norm.sf(x), abs=1e-10)

        def beyond(z, x=x):
            return stats.norm.pdf(z) * (stats.t.sf((x - z) / 0.7, freedom) + stats.t.cdf((-x - z) / 0.7, freedom))

        # the sum of 0.7 · t and a normal: a convolution
        assert two_sources(x, 0.49, freedom, 1) == pytest.approx(integrate.quad(beyond, -9, 9)[0], abs=1e-7)
    assert two_sources(-2, 1, freedom, 1) == two_sources(2, 1, freedom, 1)
    assert (two_sources(0, 0, freedom, 0), two_sources(1, 0, freedom, 0)) == (1, 0)


def test_what_seeds_share_is_that_of_an_analysis_of_variance():
    random = np.random.default_rng(5)
    rows, s = 300, 5
    each = 0.02 + random.normal(0, 0.01, (s, 1)) + random.normal(0, 0.3, rows) + random.normal(0, 0.5, (s, rows))
    weights = np.concatenate([np.ones((1, rows)), random.multinomial(rows, np.full(rows, 1 / rows), 20_000)])
    centred = each - each.mean(1, keepdims=True)
    covariance = np.cov(centred) * (rows - 1) / rows  # of rows, as a bootstrap has it
    shared = (covariance.sum() - covariance.trace()) / (s * (s - 1)) / rows
    over_rows = s * centred.mean(0).var(ddof=1)  # mean squares of the two-way table
    rest = ((centred - centred.mean(0)) ** 2).sum() / ((s - 1) * (rows - 1))
    assert shared == pytest.approx((over_rows - rest) / (s * rows), rel=0.01)
    found = difference(each @ weights.T / rows)
    assert found.p == pytest.approx(two_sources(found.mean, each.mean(1).var(ddof=1) / s, s - 1, shared), rel=0.02)


def test_seeds_for_four_studies_in_five():
    assert [needed(d, 1, 0) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]  # Cohen's effects; as G*Power has it for pairs
    assert needed(-0.5, 1, 0) == 34
    assert needed(0.5, 1, 0.01) == 48  # λ = 0.5 / √(1/48 + 0.01) = 2.85 = t(103; .975) + 0.87
    assert needed(1, 1, 0.12) < np.inf == needed(1, 1, 0.128)  # (1.960 + 0.842)⁻² = 0.1274: rows alone hide it
    assert needed(0.01, 1, 0) == np.inf
    assert needed(5, 1e-12, 0) == needed(5, 0, 0) == 2
    assert np.isnan([needed(0, 1, 0), needed(np.nan, 1, 0), needed(1, 1, np.nan)]).all()


def test_needed_seeds_have_the_power_they_promise():
    random, n = np.random.default_rng(6), 12
    assert needed(0.03, 0.0009, 0.00002) == n
    means = 0.03 + random.normal(0, 0.00002**0.5, (2000, 1)) + random.normal(0, 0.03, (2000, n))
    told = [two_sources(x.mean(), x.var(ddof=1) / n, n - 1, 0.00002) < 0.05 for x in means]
    assert 0.75 < np.mean(told) < 0.86


def test_no_difference_is_rarely_claimed_and_rows_alone_claim_it_often():
    random = np.random.default_rng(0)
    studies = [study(random) for _ in range(250)]
    found = [difference(values) for values in studies]
    claimed = np.mean([d.verdict() in ("gain", "loss") for d in found])
    alone = np.mean([low > 0 or high < 0 for low, high in (interval(values[:, 1:].mean(0)) for values in studies)])
    covered = np.mean([d.low <= 0 <= d.high for d in found])
    assert claimed < 0.06
    assert covered > 0.90
    assert alone > 0.2


def test_a_difference_is_found():
    random = np.random.default_rng(1)
    verdicts = [difference(study(random, gain=0.2)).verdict() for _ in range(30)]
    assert verdicts.count("gain") > 25
    assert [difference(-study(random, gain=0.2)).verdict() for _ in range(30)].count("loss") > 25


def test_few_seeds_are_a_sighting():
    random = np.random.default_rng(2)
    assert difference(study(random, seeds=4, gain=0.3)).verdict() == "sighting"
    one = difference(study(random, seeds=1, gain=0.3))
    assert one.verdict() == "sighting"
    assert np.isnan(one.p)
    assert one.low < one.mean < one.high  # rows alone


def test_a_worked_example():
    values = np.array([0.02, 0.04, 0.03, 0.05, 0.01])[:, None].repeat(3, 1)  # rows do nothing
    found = difference(values)
    assert found.mean == pytest.approx(0.03)
    assert found.p == pytest.approx(0.01324, abs=1e-4)  # t = 0.03 / (0.0158 / √5) = 4.243 with 4 degrees of freedom
    assert found.effect == pytest.approx(0.03 / 0.0158114 * 0.797885)  # J(4) = Γ(2) / (√2 · Γ(1.5))
    assert found.needed == 5


def test_the_effect_has_no_bias_where_the_plain_one_has():
    values = np.random.default_rng(7).normal(0.8, 1, (1000, 5, 1))
    plain = values[..., 0].mean(1) / values[..., 0].std(1, ddof=1)
    corrected = [difference(one.repeat(3, 1)).effect for one in values]
    assert plain.mean() > 0.94
    assert np.mean(corrected) == pytest.approx(0.8, abs=0.06)
    assert np.isnan(difference(values[0, :2].repeat(3, 1)).effect)
    assert difference(np.full((5, 3), -0.1)).effect == -np.inf


def test_where_rows_cannot_be_resampled_nothing_is_claimed():
    found = difference(np.array([[0.02], [0.04], [0.03], [0.05], [0.01]]))
    assert np.isnan([found.low, found.p, found.needed]).all()
    assert found.verdict() == "not distinguishable"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([float("nan"), 0.02, 0.9])[1:] == pytest.approx([0.04, 0.9])


def test_equal_rows_are_resampled_alike():
    random = np.random.default_rng(3)
    labels = random.integers(3, size=60)
    right = random.random(60) < 0.8

    def of(answers):
        table = pa.table({"t.label": labels, "t.logits": list(np.eye(3, dtype=np.float32)[answers])})
        return Predictions(table, {"t": "classify"}, {"t": {"classes": [0, 1, 2]}})

    first = resampled(of(np.where(right, labels, (labels + 1) % 3)), "t", Accuracy(), 300)
    again = resampled(of(np.where(right, labels, (labels + 2) % 3)), "t", Accuracy(), 300)
    assert first[0] == pytest.approx(right.mean())
    assert np.array_equal(first, again)  # wrong in the same rows: no resample tells them apart
    assert first[1:].std() == pytest.approx((right.mean() * (1 - right.mean()) / 60) ** 0.5, rel=0.2)


def test_verdicts_take_the_corrected_p():
    clear = Difference(0.1, 0.02, 0.2, 0.03, 5, 4)
    assert clear.verdict() == "gain"
    assert clear.verdict(0.09) == "not distinguishable"
