"""Cooperative games: what each player brings, from what every coalition reaches. Functions of arrays."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np


def shapley(values: np.ndarray) -> np.ndarray:
    """Exact Shapley values (Shapley, 1953): a player's marginal contribution, averaged over all orders of joining.

    φ_i = Σ_{S ⊆ N∖i} |S|! (M − |S| − 1)! / M! · (v(S ∪ i) − v(S)). They sum to v(N) − v(∅).

    Args:
        values: (2^M, …), v(S) at the place Σ_{i ∈ S} 2^i.

    Returns:
        (M, …).
    """
    players = _players(values)
    coalitions = np.arange(len(values))
    sizes = _sizes(coalitions)
    found = []
    for i in range(players):
        without = coalitions[coalitions >> i & 1 == 0]
        weights = np.array([factorial(s) * factorial(players - s - 1) / factorial(players) for s in sizes[without]])
        found.append(np.tensordot(weights, values[without | 1 << i] - values[without], 1))
    return np.stack(found)


def interactions(values: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Shapley interaction indices of pairs (Grabisch and Roubens, 1999).

    I_ij = Σ_{S ⊆ N∖ij} |S|! (M − |S| − 2)! / (M − 1)! · (v(S ∪ ij) − v(S ∪ i) − v(S ∪ j) + v(S)): positive where two bring
    more together than apart (synergy), negative where they bring the same (redundancy).

    Args:
        values: as in ``shapley``.

    Returns:
        By pair, (…).
    """
    players = _players(values)
    coalitions = np.arange(len(values))
    sizes = _sizes(coalitions)
    found = {}
    for i, j in combinations(range(players), 2):
        one, two = 1 << i, 1 << j
        without = coalitions[coalitions & (one | two) == 0]
        weights = np.array([factorial(s) * factorial(players - s - 2) / factorial(players - 1) for s in sizes[without]])
        both = values[without | one | two] - values[without | one] - values[without | two] + values[without]
        found[i, j] = np.tensordot(weights, both, 1)
    return found


def _players(values: np.ndarray) -> int:
    players = len(values).bit_length() - 1
    assert players > 0, "a game has players"
    assert len(values) == 1 << players, "one value a coalition"
    return players


def _sizes(coalitions: np.ndarray) -> np.ndarray:
    return np.array([int(c).bit_count() for c in coalitions])
