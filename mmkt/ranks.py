"""Methods over several data sets: mean ranks, the test of Friedman, Nemenyi's critical difference, who beats whom how often.

Figures of different data sets are not of one scale, so their order alone is compared (Demšar, 2006).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Friedman(NamedTuple):
    """Whether methods differ over data sets."""

    ranks: np.ndarray  # (k,) the mean rank of each; 1 is best
    chi2: float  # k − 1 degrees of freedom
    chi2_p: float
    f: float  # of Iman and Davenport, k − 1 and (k − 1)(n − 1) degrees of freedom
    p: float  # of f, the one to use
    n: int  # data sets


def ranks(values: np.ndarray, higher: bool = True) -> np.ndarray:
    """Of each data set's methods, (n, k) → (n, k): 1 is best, equal values share the mean of their ranks.

    Args:
        values: a figure a data set and method.
        higher: whether more is better.

    Raises:
        ValueError: fewer than two data sets or methods, or a figure that is missing.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"figures of shape {values.shape}; ranks need (data sets, methods), two or more of each")
    if missing := int(np.isnan(values).any(1).sum()):
        raise ValueError(f"{missing} of {len(values)} data sets lack a method's figure; leave them, or the method, out")
    return stats.rankdata(-values if higher else values, axis=1)


def friedman(values: np.ndarray, higher: bool = True) -> Friedman:
    """The test of Friedman (1937) and its less conservative form (Iman and Davenport, 1980): are all methods alike?

    χ² is corrected for ties (Conover, 1999), as in SciPy; Demšar (2006) leaves that out, which is smaller where there are
    ties. F is then that of an analysis of variance of the ranks. Where all data sets agree F is infinite; p is no smaller
    than what one order in all data sets has by chance, (1 / k!)^(n − 1).

    Args:
        values: (n, k), a figure a data set and method, or their ranks with ``higher=False``.
        higher: whether more is better.

    Raises:
        ValueError: as ``ranks``.
    """
    placed = ranks(values, higher)
    n, k = placed.shape
    mean = placed.mean(0)
    between = n * ((mean - (k + 1) / 2) ** 2).sum()
    every = ((placed - (k + 1) / 2) ** 2).sum()
    if not every:  # all are equal everywhere
        return Friedman(mean, 0.0, 1.0, 0.0, 1.0, n)
    chi2 = float(n * (k - 1) * between / every)
    rest = n * (k - 1) - chi2
    f = (n - 1) * chi2 / rest if rest > 1e-9 * n * k else math.inf
    least = math.exp(-(n - 1) * math.lgamma(k + 1))
    p = max(float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))), least)
    return Friedman(mean, chi2, float(stats.chi2.sf(chi2, k - 1)), f, p, n)


def nemenyi(k: int, n: int, level: float = 0.05) -> float:
    """The critical difference of Nemenyi (1963): mean ranks that differ by less are not told apart, all pairs compared.

    Args:
        k: methods.
        n: data sets.
        level: how often any pair may be told apart by chance.

    Raises:
        ValueError: fewer than two methods or no data set.
    """
    if k < 2 or n < 1:
        raise ValueError(f"{k} methods over {n} data sets; Nemenyi's difference needs two methods or more and a data set")
    q = float(stats.studentized_range.ppf(1 - level, k, np.inf)) / 2**0.5
    return q * (k * (k + 1) / (6 * n)) ** 0.5


def win_rates(values: np.ndarray, higher: bool = True) -> np.ndarray:
    """(k, k): in which share of the data sets the row's method beats the column's; equal values count one half.

    Args:
        values: (n, k), a figure a data set and method.
        higher: whether more is better.

    Raises:
        ValueError: as ``ranks``.
    """
    placed = ranks(values, higher)
    ahead = placed[:, None, :] - placed[:, :, None]  # positive where the row's rank is the smaller
    return (np.sign(ahead).mean(0) + 1) / 2
