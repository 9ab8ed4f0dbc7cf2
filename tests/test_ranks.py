"""Methods over data sets: SciPy, Demšar's tables and example, and chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mmkt.ranks import friedman, nemenyi, ranks, win_rates

# Table 6 of Demšar (2006): C4.5, with m, with cf, with both; its ranks over 14 data sets
DEMSAR = np.array([
    [4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1], [2.5, 2.5, 4, 1],
    [4, 3, 2, 1], [2.5, 2.5, 2.5, 2.5], [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3], [3, 1, 4, 2],
])  # fmt: skip


def test_the_example_of_demsar():
    found = friedman(DEMSAR, higher=False)
    assert found.ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    plain = found.chi2 * (1 - 78 / 840)  # the paper leaves ties in: Σ(t³ − t) = 3 · 6 + 60 of 14 · (4³ − 4)
    assert plain == pytest.approx(9.28, abs=5e-3)
    assert 13 * plain / (14 * 3 - plain) == pytest.approx(3.69, abs=5e-3)
    assert nemenyi(4, 14) == pytest.approx(1.25, abs=5e-3)
    assert win_rates(DEMSAR, higher=False)[1, 0] == (10 + 0.5 * 2) / 14  # two ties of C4.5 with C4.5+m


@pytest.mark.parametrize("higher", [True, False])
def test_friedman_against_scipy(higher):
    random = np.random.default_rng(0)
    for values in (random.normal(size=(9, 5)), random.integers(4, size=(12, 4)).astype(float)):
        found = friedman(values, higher)
        theirs = stats.friedmanchisquare(*values.T)
        assert (found.chi2, found.chi2_p) == pytest.approx((theirs.statistic, theirs.pvalue))
        placed = ranks(values, higher)
        n, k = placed.shape
        rest = ((placed - placed.mean(0)) ** 2).sum() / ((n - 1) * (k - 1))  # two-way; rows have one mean
        assert found.f == pytest.approx(n * placed.mean(0).var(ddof=1) / rest)
        assert found.p == pytest.approx(stats.f.sf(found.f, k - 1, (k - 1) * (n - 1)))
        assert ((found.ranks - (k + 1) / 2) * (1 if higher else -1)) @ values.mean(0) < 0  # the best has the lowest rank


def test_the_f_test_is_calibrated():
    random = np.random.default_rng(1)
    p = [friedman(random.normal(size=(10, 6))).p for _ in range(1000)]
    assert 0.026 < np.mean(np.array(p) < 0.05) < 0.074  # 3.5 standard errors of 1000
    shifted = [friedman(random.normal([2, 0, 0, 0, 0, 0], size=(10, 6))).p for _ in range(100)]
    assert np.mean(np.array(shifted) < 0.05) > 0.8


def test_data_sets_that_all_agree_claim_no_more_than_their_number_allows():
    two = friedman(np.array([[3.0, 2, 1], [9.0, 5, 4]]))
    assert two.f == np.inf
    assert two.p == pytest.approx(1 / 6)  # one of the six orders, by chance
    assert friedman(np.arange(40.0).reshape(8, 5)).p < 1e-10
    alike = friedman(np.ones((4, 3)))
    assert (alike.chi2, alike.p, list(alike.ranks)) == (0, 1, [2, 2, 2])


def test_critical_differences_are_those_of_the_published_table():
    for k, q in {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}.items():
        assert nemenyi(k, 7) == pytest.approx(q * (k * (k + 1) / 42) ** 0.5, rel=5e-4)
    for k, q in {2: 1.645, 5: 2.459, 10: 2.920}.items():
        assert nemenyi(k, 1, 0.1) == pytest.approx(q * (k * (k + 1) / 6) ** 0.5, rel=5e-4)


def test_win_rates_by_hand():
    values = np.array([[0.9, 0.8, 0.8], [0.5, 0.7, 0.6]])
    assert win_rates(values).tolist() == [[0.5, 0.5, 0.5], [0.5, 0.5, 0.75], [0.5, 0.25, 0.5]]
    assert (win_rates(values) == win_rates(-values, higher=False)).all()


@pytest.mark.parametrize(("values", "words"), [
    (np.ones((1, 3)), r"shape \(1, 3\).*two or more"),
    (np.ones((3, 1)), "two or more"),
    (np.ones(3), "two or more"),
    (np.array([[1, np.nan], [1, 2]]), "1 of 2 data sets lack"),
])  # fmt: skip
def test_what_has_no_ranks(values, words):
    for of in (friedman, win_rates):
        with pytest.raises(ValueError, match=words):
            of(values)


def test_nothing_to_compare_has_no_critical_difference():
    for k, n in ((1, 5), (3, 0)):
        with pytest.raises(ValueError, match="two methods or more"):
            nemenyi(k, n)
