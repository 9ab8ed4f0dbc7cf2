"""Accuracy under attack: of each attack, of the worst by row, along ε; and signs that a figure is not to be believed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mmkt import report
from mmkt.report import Sheet
from mmkt.score import About, shares
from mmkt.types import Row

JOINT, WORST, CLEAN = "joint", "worst", "none"
METRIC, FAR, BROKEN, TARGET = "robust accuracy", "median distance", "warning", "target"
ITSELF = " on itself"  # of what a source answers to what was found on it
FROM = " from "  # between an attack and the model that it was found on, where that is another


def found_on(attack: str, source: str) -> str:
    """The name of an attack that was found on another model."""
    return f"{attack}{FROM}{source}"


class Trial(NamedTuple):
    """An attack on a surface: a modality, or all at once."""

    surface: str
    attack: str
    factor: float = 1.0  # on the threats' ε; infinite: nearly everything is allowed

    def __str__(self) -> str:
        return f"{self.surface}.{self.attack}" + ("" if self.factor == 1 else f"@{self.factor:g}")

    @classmethod
    def of(cls, words: str) -> Trial:
        """From its name."""
        name, _, factor = words.partition("@")
        surface, _, attack = name.partition(".")
        return cls(surface, attack, float(factor or 1))


NOTHING = Trial("", "")


class Outcome(NamedTuple):
    """Of n rows under one attack, in row order."""

    right: np.ndarray  # (n,) bool: right without the attack and with it
    said: np.ndarray  # (n,) the class
    far: Mapping[str, np.ndarray]  # (n,) how far each modality was moved, in its threat's norm; in L2 by what keeps to none
    able: np.ndarray  # (n,) bool: has what is attacked; the others say nothing of an attack
    source: np.ndarray | None = None  # (n,) bool: right with it on the model that it was found on, where that is another

    @property
    def rate(self) -> float:
        """The share that stays right of the rows that can be attacked."""
        return float(self.right[self.able].mean()) if self.able.any() else math.nan


class Kind(NamedTuple):
    """What is known of an attack."""

    gradients: bool  # of the model that answers
    keeps: bool
    own: bool = True  # found on the model that answers; False: on another


def measure(outcomes: Mapping[Trial, Outcome], kinds: Mapping[str, Kind], task: str, about: About, resamples: int) -> list[Row]:
    """Rows whose condition is ``none``, ``image.pgd``, ``image.pgd@0.5`` or, over attacks that keep to ε, ``image.worst``.

    The worst is of attacks on the model itself, as AutoAttack's is: what was found on another has rows of its own,
    ``image.pgd from NAME``, and counts for the warnings alone.

    Args:
        outcomes: of every trial, and of none at all.
        kinds: of the attacks.
        task: attacked.
        about: what the rows have in common, beside the condition.
        resamples: of the bootstrap over rows, which all figures share.
    """
    plain, names = outcomes[NOTHING], list(dict.fromkeys(t.surface for t in outcomes if t != NOTHING))
    told = {CLEAN: (plain.right, plain.able)} | {str(t): (x.right, x.able) for t, x in outcomes.items() if t != NOTHING}
    for name in names:
        kept = [x for t, x in outcomes.items() if _within(t, name, kinds) and kinds[t.attack].own]
        if kept:
            told[f"{name}.{WORST}"] = np.logical_and.reduce([x.right for x in kept]), kept[0].able
    told |= {f"{t}{ITSELF}": (x.source, x.able) for t, x in outcomes.items() if x.source is not None}
    found = []
    for (condition, (_, able)), (value, low, high) in zip(told.items(), shares([*told.values()], resamples), strict=True):
        found.append(about._replace(condition=condition).row(task, METRIC, value, int(able.sum()), low, high))
    for trial, outcome in outcomes.items():
        turned = outcomes[NOTHING].right & ~outcome.right
        if trial == NOTHING or kinds[trial.attack].keeps or not turned.any():
            continue
        for m, far in outcome.far.items():
            here = about._replace(condition=str(trial), modalities=m)
            found.append(here.row(task, FAR, float(np.median(far[turned])), int(turned.sum())))
    for words, value in warnings(outcomes, kinds):
        found.append(about._replace(condition=words).row(task, BROKEN, value, len(plain.right)))
    return found


def aimed(about: About, task: str, name: object, number: int) -> Row:
    """Says which class the attacker wanted: a row then counts as right unless that is said."""
    return about._replace(condition=str(name)).row(task, TARGET, number, 0)


def _within(trial: Trial, surface: str, kinds: Mapping[str, Kind]) -> bool:
    return trial.surface == surface and trial.factor == 1 and trial.attack in kinds and kinds[trial.attack].keeps


def warnings(outcomes: Mapping[Trial, Outcome], kinds: Mapping[str, Kind]) -> Iterator[tuple[str, float]]:
    """Signs of masked gradients (Athalye et al., 2018; Carlini et al., 2019): what was found, and by how much.

    A difference of a hundredth of the rows, or of two, is no sign.
    """
    rates = {t: x.rate for t, x in outcomes.items() if t != NOTHING and x.able.any()}
    slack = max(0.01, 2.5 / len(outcomes[NOTHING].right))
    for surface in dict.fromkeys(t.surface for t in rates):
        own = {t: x for t, x in rates.items() if _within(t, surface, kinds)}
        white = [x for t, x in own.items() if kinds[t.attack].gradients]
        black = [(x, t.attack) for t, x in own.items() if not kinds[t.attack].gradients]
        if white and black and min(black)[0] < min(white) - slack:
            sees = "sees answers alone" if kinds[min(black)[1]].own else "sees another model alone"
            yield f"{surface}: {min(black)[1]} {sees} and beats all gradients", min(white) - min(black)[0]
        one = own.get(Trial(surface, "fgsm"))
        many = [x for t, x in own.items() if kinds[t.attack].gradients and t.attack != "fgsm"]
        if one is not None and many and one < min(many) - slack:
            yield f"{surface}: one step hurts more than many", min(many) - one
        curve = sorted((t.factor, x) for t, x in rates.items() if t.surface == surface and _along(t, rates))
        rises = [(b - a, f) for (_, a), (f, b) in pairwise(curve) if b > a + slack and f < math.inf]
        if rises:
            yield f"{surface}: accuracy rises again at {max(rises)[1]:g} times ε", max(rises)[0]
        alone = surface == JOINT or len({t.surface for t in rates if t.factor == math.inf}) == 1
        if alone and curve and curve[-1][0] == math.inf and curve[-1][1] > slack:
            yield f"{surface}: with nearly everything allowed some rows stay right", curve[-1][1]


def _along(trial: Trial, rates: Mapping[Trial, float]) -> bool:
    """Whether a trial is a point of its surface's curve."""
    return any(t.factor != 1 and t[:2] == trial[:2] for t in rates)


def sheets(rows: Sequence[Row]) -> Iterator[Sheet]:
    """Surfaces by attacks; what moves how far; the curve along ε; warnings."""
    for task in dict.fromkeys(row.task for row in rows):
        own = {row.condition: row for row in rows if (row.task, row.metric) == (task, METRIC)}
        known = [Trial.of(name) for name in own if name != CLEAN and not name.endswith(ITSELF)]
        plain = [t for t in known if t.factor == 1]
        names = list(dict.fromkeys(t.surface for t in plain))
        attacks = [a for a in dict.fromkeys(t.attack for t in plain) if a != WORST and FROM not in a]
        clean = own[CLEAN]
        numbers = {a: [_figure(own, f"{name}.{a}") for name in names] for a in attacks}
        if any(f"{name}.{WORST}" in own for name in names):
            numbers[WORST] = [report.cell(own[f"{name}.{WORST}"]) if f"{name}.{WORST}" in own else "" for name in names]
        warned = [f"warning: {row.condition} ({row.value:.3f})" for row in rows if (row.task, row.metric) == (task, BROKEN)]
        title = f"{task}: {METRIC}, {report.cell(clean)} without an attack (n = {clean.n})"
        counts = {name: next(own[str(t)].n for t in plain if t.surface == name) for name in names}
        some = [f"{name}: of the {count} rows that have it" for name, count in counts.items() if count < clean.n]
        wanted = [row.condition for row in rows if (row.task, row.metric) == (task, TARGET)]
        aim = [f"the attacker wants {name!r} to be said, of rows of other classes; all else counts as right" for name in wanted]
        yield report.sheet(title, {"attacked": names}, numbers, [*aim, *some, *warned])
        yield from _transferred(task, own, plain)
        factors = sorted({t.factor for t in known if t.factor != 1} | {1.0} if len(known) > len(plain) else set())
        drawn = list(dict.fromkeys(t for t in known if t.factor != 1 and t.surface in names))
        lines = list(dict.fromkeys((t.surface, t.attack) for t in drawn))
        if lines:
            columns = {f"{f:g} ε": [_figure(own, str(Trial(*line, f))) for line in lines] for f in factors}
            yield report.sheet(f"{task}: {METRIC} along ε, by {lines[0][1]}", {"attacked": [s for s, _ in lines]}, columns)
        far = [row for row in rows if (row.task, row.metric) == (task, FAR)]
        if far:
            words = {"attack": [row.condition for row in far], "modality": [row.modalities for row in far]}
            values = {"median L2": [report.number(row.value) for row in far], "rows turned": [str(row.n) for row in far]}
            yield report.sheet(f"{task}: how far the nearest wrong answer is", words, values)


def _transferred(task: str, own: Mapping[str, Row], plain: Sequence[Trial]) -> Iterator[Sheet]:
    """What was found on another model."""
    over = [t for t in plain if FROM in t.attack]
    for source in dict.fromkeys(t.attack.partition(FROM)[2] for t in over):
        some = [t for t in over if t.attack.partition(FROM)[2] == source]
        names, attacks = (list(dict.fromkeys(x)) for x in zip(*(t[:2] for t in some), strict=True))
        numbers = {}
        for a in attacks:
            word = a.partition(FROM)[0]
            numbers[word] = [_figure(own, f"{name}.{a}") for name in names]
            there = [_figure(own, f"{name}.{a}{ITSELF}") for name in names]
            numbers |= {f"{word} (on {source} itself)": there} if any(there) else {}
        notes = [f"found by looking at {source} alone; {WORST} above leaves them out"]
        yield report.sheet(f"{task}: {METRIC}, attacks found on {source}", {"attacked": names}, numbers, notes)


def _figure(own: Mapping[str, Row], condition: str) -> str:
    return report.number(own[condition].value) if condition in own else ""
