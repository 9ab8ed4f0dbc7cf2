"""Plots of an ablation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mmkt.plots import COLOURS, STYLE
from mmkt.studies.ablation_results import Line, Ranks, Results, pareto

GREY, BASE, BETTER, WORSE = "#999999", COLOURS[6], COLOURS[2], COLOURS[1]


def ablation_plots(results: Results) -> dict[str, Figure]:
    """By title; only those for which there is something to show."""
    found: dict[str, Figure] = {}
    with mpl.rc_context(STYLE):
        for task, lines in results.lines.items():
            where = f" ({task})" if str(task) else ""
            found[f"Every seed, and the mean with its 95 % interval{where}"] = _intervals(results, lines)
            if any(line.against for line in lines):
                found[f"Difference from {results.study.baseline}{where}"] = _differences(results, lines)
            if any(line.cost for line in lines):
                found[f"Quality and the time of a step{where}"] = _pareto(results, lines)
            if any(len(line.curve) > 1 for line in lines):
                found[f"Validation while training, the chosen rate{where}"] = _curves(results, lines)
            if any(len(line.validation) > 1 for line in lines):
                found[f"Sensitivity to the learning rate{where}"] = _sensitivity(results, lines)
        if results.ranks is not None:
            found["Critical-difference diagram: mean ranks, 1 is best"] = critical_difference(results.ranks)
    return found


def _colour(results: Results, line: Line) -> str:
    if line.cell.label == results.study.baseline:
        return BASE
    return {"gain": BETTER, "loss": WORSE}.get(line.verdict, COLOURS[0])


def _rows(lines: Sequence[Line]) -> tuple[Figure, mpl.axes.Axes]:
    figure = Figure(figsize=(7, 0.7 + 0.22 * len(lines)))
    axes = figure.subplots()
    axes.set_yticks(range(len(lines)), [line.cell.label for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    return figure, axes


def _intervals(results: Results, lines: Sequence[Line]) -> Figure:
    figure, axes = _rows(lines)
    for k, line in enumerate(lines):
        colour = _colour(results, line)
        axes.plot(line.values, [k] * len(line.values), "|", color=colour, alpha=0.6, markersize=7)
        if not math.isnan(line.low):
            axes.plot([line.low, line.high], [k, k], "-", color=colour, linewidth=2)
        axes.plot(line.mean, k, "o", color=colour, markersize=4, fillstyle="none" if len(line.values) < 5 else "full")
    study = results.study
    base = f"black: {study.baseline}; green: better; orange: worse; blue: not distinguishable"
    axes.set_xlabel(f"{study.task}, {study.metric} ({study.test}). {base}")
    return figure


def _differences(results: Results, lines: Sequence[Line]) -> Figure:
    some = [line for line in lines if line.against]
    figure, axes = _rows(some)
    axes.axvline(0, color=GREY, linewidth=1)
    for k, line in enumerate(some):
        colour, what = _colour(results, line), line.against
        assert what is not None
        axes.plot([what.low, what.high], [k, k], "-", color=colour, linewidth=2)
        axes.plot(what.mean, k, "o", color=colour, markersize=4, fillstyle="none" if what.seeds < 5 else "full")
    axes.set_xlabel("difference, paired by seed and row, 95 % interval (positive: better); hollow: a sighting")
    return figure


def _pareto(results: Results, lines: Sequence[Line]) -> Figure:
    some = [line for line in lines if line.cost]
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    front = pareto(lines)
    for line in some:
        assert line.cost is not None
        axes.plot(line.cost.step * 1000, line.mean, "o", color=_colour(results, line), markersize=4)
    path = sorted(front, key=lambda line: line.cost.step)  # type: ignore[union-attr]
    axes.plot([x.cost.step * 1000 for x in path], [x.mean for x in path], "-", color=GREY, linewidth=1, drawstyle="steps-post")  # type: ignore[union-attr]
    axes.set_xscale("log")
    ends = [x.cost.step * 1000 for x in some]  # type: ignore[union-attr]
    axes.set_xlim(min(ends) * 0.85, max(ends) * 1.5)
    _label(axes, some, front)
    axes.set_xlabel("ms a step (one thread, or one GPU)")
    axes.set_ylabel(f"{results.study.metric} ({results.study.test})")
    axes.grid(alpha=0.3)
    return figure


def _label(axes: mpl.axes.Axes, lines: Sequence[Line], front: Sequence[Line]) -> None:
    """Names beside points, those of the front first, left out where one would lie on another."""
    low, high = axes.get_ylim()
    left, right = np.log(axes.get_xlim())
    taken: list[tuple[float, float, float]] = []
    for line in [*front, *(line for line in lines if line not in front)]:
        assert line.cost is not None
        x, y = (math.log(line.cost.step * 1000) - left) / (right - left), (line.mean - low) / (high - low)
        wide = 0.013 * len(line.cell.label)
        if any(abs(y - b) < 0.045 and x < a + w and a < x + wide for a, b, w in taken):
            continue
        taken.append((x, y, wide))
        weight = "bold" if line in front else "normal"
        axes.annotate(
            line.cell.label, (line.cost.step * 1000, line.mean), (4, 3), textcoords="offset points", fontsize=7, weight=weight
        )


def _curves(results: Results, lines: Sequence[Line]) -> Figure:
    some = [line for line in lines if len(line.curve) > 1]
    shown = {line.cell.label for line in [some[0], some[-1]]} | {results.study.baseline}
    return _lines(results, some, shown, lambda line: line.curve, "steps", "linear")


def _sensitivity(results: Results, lines: Sequence[Line]) -> Figure:
    some = [line for line in lines if len(line.validation) > 1]
    shown = {line.cell.label for line in [some[0], some[-1]]} | {results.study.baseline}

    def means(line: Line) -> dict[float, float]:
        return {lr: sum(values) / len(values) for lr, values in line.validation.items()}

    return _lines(results, some, shown, means, "learning rate", "log")


def _lines(
    results: Results, lines: Sequence[Line], shown: set[str], values: Callable[[Line], dict], words: str, scale: str
) -> Figure:
    """All lines in grey, some of them in colour with a name."""
    figure = Figure(figsize=(7, 3.4))
    axes, colours = figure.subplots(), iter(COLOURS)
    for line in sorted(lines, key=lambda line: line.cell.label in shown):
        named = line.cell.label in shown
        colour = next(colours) if named else "#cccccc"
        found = values(line)
        label = line.cell.label if named else None
        axes.plot(
            list(found), list(found.values()), "o-", color=colour, label=label, markersize=3, linewidth=1.6 if named else 0.8
        )
    axes.set_xscale(scale)
    axes.set_xlabel(
        f"{words}; named: the best and the worst on {results.study.test}, and {results.study.baseline}; grey: the others"
    )
    axes.set_ylabel(f"{results.study.metric} ({results.study.validation})")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    return figure


def critical_difference(ranks: Ranks) -> Figure:
    """Mean ranks on a line; a bar joins those that Nemenyi's test does not tell apart (Demšar, 2006, figure 1)."""
    mean = ranks.friedman.ranks
    order = mean.argsort()
    k = len(order)
    half = math.ceil(k / 2)
    groups: list[tuple[int, int]] = []
    for i in range(k):
        j = max(j for j in range(i, k) if mean[order[j]] - mean[order[i]] <= ranks.distance)
        if j > i and not any(a <= i and j <= b for a, b in groups):
            groups.append((i, j))
    top = 1.0 + 0.35 * len(groups)
    figure = Figure(figsize=(8, 1.2 + 0.16 * half + 0.12 * len(groups)))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(1 - 0.35 * k, k + 0.35 * k)
    axes.set_ylim(top + 0.5 * half + 0.5, -1.8)
    axes.plot([1, k], [0, 0], color="black", linewidth=1)
    for x in range(1, k + 1, max(1, k // 12)):
        axes.plot([x, x], [0, -0.2], color="black", linewidth=1)
        axes.text(x, -0.3, str(x), ha="center", va="bottom", fontsize=7)
    wide = min(ranks.distance, k - 1)
    axes.plot([1, 1 + wide], [-1.3, -1.3], color="black", linewidth=2)
    axes.text(1 + wide / 2, -1.4, f"critical difference {ranks.distance:.2f}", ha="center", va="bottom", fontsize=7)
    for place, i in enumerate(order):
        left = place < half
        y = top + 0.5 * (place if left else k - 1 - place)
        end = 1 - 0.05 * k if left else k + 0.05 * k
        axes.plot([mean[i], mean[i], end], [0, y, y], color=GREY, linewidth=0.7)
        words = f"{ranks.labels[i]}  {mean[i]:.2f}"
        axes.text(end + (-0.02 if left else 0.02) * k, y, words, ha="right" if left else "left", va="center", fontsize=7)
    for number, (i, j) in enumerate(groups):
        y = 0.35 * (number + 1)
        axes.plot([mean[order[i]], mean[order[j]]], [y, y], color=BASE, linewidth=2.5, solid_capstyle="butt")
    return figure
