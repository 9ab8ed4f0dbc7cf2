"""Certified accuracy: how many rows are answered rightly whatever moves them, up to a radius."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmkt import report
from mmkt.report import Sheet
from mmkt.score import About, shares
from mmkt.types import Row

METRIC, PLAIN, ABSTAINED, MEDIAN = "certified accuracy", "accuracy without noise", "abstained", "median radius"
SIGMA, ALPHA, REACH = "sigma", "alpha", "largest radius"
NOISE, AT = "noise", "noise@"
ABSTAINS = -1


class Smoothing(NamedTuple):
    """A smoothed classifier (Cohen et al., 2019): g(x) = argmax_c P(f(x + σ ⊙ ε) = c), ε normal, one σ a modality.

    Noise is added to raw inputs, as a radius in the shared space would certify nothing that an attacker holds: how far a changed
    picture moves there is not known. Where g's class has a probability of p or more, it is the same for every x + δ with
    ‖(δ_m / σ_m)_m‖₂ < Φ⁻¹(p): dividing each modality by its σ gives the paper's theorem for σ = 1, so that radii are in units
    of σ and hold for all of the modalities (and a row's items) together. Padding gets no noise, and noise is not cut at the
    bounds. Of texts the numbers are token embeddings: no word is certified, and which tokens there are is fixed.
    """

    task: str
    rows: np.ndarray
    sigma: Mapping[str, float]
    selection: int  # draws that choose the class
    samples: int  # draws that certify it
    alpha: float
    radii: Sequence[float]
    seed: int

    @property
    def reach(self) -> float:
        """The largest radius that so many samples can show, in σ."""
        return float(radius(lower_bound(np.array([self.samples]), self.samples, self.alpha))[0])


class Certificates(NamedTuple):
    """Of n rows, in row order."""

    label: np.ndarray  # (n,) the class
    plain: np.ndarray  # (n,) what is said of the row as it came
    said: np.ndarray  # (n,) what is said under noise, ABSTAINS where no class has a half for certain
    radius: np.ndarray  # (n,) in σ, zero where it abstains


def measure(found: Certificates, how: Smoothing, about: About, resamples: int) -> list[Row]:
    """Rows whose condition is ``noise@RADIUS`` for certified accuracy, and ``noise`` for all else but what is said without.

    A row counts at a radius where its answer under noise is right and provably stays so that far; one that abstains never does.

    Args:
        found: of every row.
        how: they were made.
        about: what the rows have in common, beside the condition.
        resamples: of the bootstrap over rows, which all figures share.
    """
    n, task = len(found.label), how.task
    right = found.said == found.label
    told = {("clean", PLAIN): found.plain == found.label, (NOISE, ABSTAINED): found.said == ABSTAINS}
    told |= {(f"{AT}{r:g}", METRIC): right & (found.radius >= r) for r in sorted(set(how.radii))}
    every = np.ones(n, dtype=bool)
    rows = []
    for (condition, metric), (value, low, high) in zip(told, shares([(x, every) for x in told.values()], resamples), strict=True):
        rows.append(about._replace(condition=condition).row(task, metric, value, n, low, high))
    here = about._replace(condition=NOISE)
    if right.any():
        rows.append(here.row(task, MEDIAN, float(np.median(found.radius[right])), int(right.sum())))
    rows += [here.row(task, REACH, how.reach, n), here.row(task, ALPHA, how.alpha, n)]
    return rows + [here._replace(modalities=m).row(task, SIGMA, one, n) for m, one in how.sigma.items()]


def lower_bound(successes: np.ndarray, samples: int, alpha: float) -> np.ndarray:
    """What a probability is no less than, with a confidence of 1 − α (Clopper and Pearson, 1934, one-sided), (n,)."""
    from scipy import stats

    found = stats.beta.ppf(alpha, np.maximum(successes, 1), samples - successes + 1)
    return np.where(successes > 0, found, 0.0)


def radius(bound: np.ndarray) -> np.ndarray:
    """In σ, Φ⁻¹(p) of a lower bound p, (n,); zero where it is a half or less, and nothing is certain."""
    from scipy import stats

    return stats.norm.ppf(np.clip(bound, 0.5, None))


def radius_of(row: Row) -> float:
    """Of a row of certified accuracy."""
    return float(row.condition.removeprefix(AT))


def sheets(rows: Sequence[Row]) -> Iterator[Sheet]:
    """Certified accuracy by radius, and how far that is in a modality's own units where it moves alone."""
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        one = {row.metric: row for row in own}
        line = sorted((row for row in own if row.metric == METRIC), key=radius_of)
        sigma = {row.modalities: row.value for row in own if row.metric == SIGMA}
        words = {"radius in σ": [f"{radius_of(row):g}" for row in line]}
        words |= {f"{m} alone": [f"{radius_of(row) * value:.3g}" for row in line] for m, value in sigma.items()}
        notes = [
            f"σ: {', '.join(f'{m} {value:g}' for m, value in sigma.items())}. A radius r holds for all changes δ together whose "
            f"‖(δ_m / σ_m)_m‖₂ < r, with a confidence of {1 - one[ALPHA].value:g} a row.",
            f"abstained: {report.cell(one[ABSTAINED])}; no radius beyond {report.number(one[REACH].value)} can be shown with so "
            "few samples" + (f"; median where right: {report.number(one[MEDIAN].value)}" if MEDIAN in one else ""),
        ]
        title = f"{task}: {METRIC}, {report.cell(one[PLAIN])} without noise (n = {one[PLAIN].n})"
        yield report.sheet(title, words, {METRIC: [report.cell(row) for row in line]}, notes)
