"""Shapley values and interactions: worked games, and the axioms that define them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from mmkt.games import interactions, shapley


def test_gloves():
    """One left glove, two right ones, a pair is worth 1: the textbook's (2/3, 1/6, 1/6)."""
    values = np.array([0, 0, 0, 1, 0, 1, 0, 1.0])  # player 0 has the left glove
    np.testing.assert_allclose(shapley(values), [2 / 3, 1 / 6, 1 / 6], atol=1e-12)


def test_by_orders_of_joining():
    """The definition, written out, for four players and several games at once."""
    values = np.random.default_rng(0).normal(size=(16, 3))
    marginal = np.zeros((4, 3))
    for order in permutations(range(4)):
        coalition = 0
        for i in order:
            marginal[i] += values[coalition | 1 << i] - values[coalition]
            coalition |= 1 << i
    np.testing.assert_allclose(shapley(values), marginal / 24, atol=1e-12)


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_axioms(players):
    random = np.random.default_rng(players)
    values, others = random.normal(size=(2, 2**players, 4))
    np.testing.assert_allclose(shapley(values).sum(0), values[-1] - values[0], atol=1e-9)  # efficiency
    np.testing.assert_allclose(shapley(2 * values - others), 2 * shapley(values) - shapley(others), atol=1e-9)  # linearity
    coalitions = np.arange(2**players)
    dummy = random.normal(size=2**players)[coalitions & ~1] + 0.7 * (coalitions & 1)  # 0 adds 0.7 to whatever is there
    np.testing.assert_allclose(shapley(dummy)[0], 0.7, atol=1e-9)
    if players > 1:
        swapped = (coalitions & ~3) | (coalitions & 1) << 1 | (coalitions & 2) >> 1
        symmetric = values + values[swapped]
        np.testing.assert_allclose(*shapley(symmetric)[:2], atol=1e-9)
        np.testing.assert_allclose(interactions(dummy)[0, 1], 0, atol=1e-9)


def test_interactions_of_two_worked_games():
    parity = np.array([0, 0, 0, 1, 0, 0, 0, 1.0])  # 0 and 1 are worth 1 together, 2 nothing
    found = interactions(parity)
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] == found[1, 2] == pytest.approx(0)
    redundant = np.array([0, 1, 1, 1.0])  # either is all there is to know
    assert interactions(redundant)[0, 1] == pytest.approx(-1)
    majority = np.array([0, 0, 0, 1, 0, 1, 1, 1.0])
    # with the third absent two make it (+1), with it present they are one too many (−1): (1 − 1) / 2
    assert interactions(majority)[0, 1] == pytest.approx(0)


def test_of_two_players_the_interaction_is_the_second_difference():
    v = np.random.default_rng(1).normal(size=4)
    assert interactions(v)[0, 1] == pytest.approx(v[3] - v[1] - v[2] + v[0])
