"""Plots of studies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from mmkt.plots import COLOURS, STYLE, panels
from mmkt.studies.transfer_results import Gain, Line, Results


def colours(results: Results) -> dict[str, str]:
    """By source."""
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(results.transfer.study.sources)}


def transfer_plots(results: Results) -> dict[str, Figure]:
    """By title; only those for which there is something to show."""
    found: dict[str, Figure] = {}
    whole = [line for line in results.lines if line.cell.fraction == max(other.cell.fraction for other in results.lines)]
    with mpl.rc_context(STYLE):
        if whole:
            found["Every seed, and the mean with its 95 % interval"] = _cells(results, whole)
        if results.gains:
            found[f"Gain of {results.transfer.study.pretrained} over {results.transfer.study.baseline}"] = _gains(results.gains)
        if any(len(line.curve) > 1 for line in whole):
            found["Validation while training (mean over seeds)"] = _curves(results, whole)
        if len({line.cell.fraction for line in results.lines}) > 1:
            found["How many labels it takes"] = _labels(results)
        if len({line.trained for line in whole}) > 1:
            found["What trains, and what it reaches"] = _cost(results, whole)
    return found


def _name(results: Results) -> str:
    return f"{results.transfer.task}, {results.transfer.metric} (test)"


def _cells(results: Results, lines: Sequence[Line]) -> Figure:
    figure = Figure(figsize=(7, 0.6 + 0.28 * len(lines)))
    axes, known = figure.subplots(), colours(results)
    for k, line in enumerate(lines):
        colour = known[line.cell.source]
        axes.plot(line.values, [k] * len(line.values), "|", color=colour, alpha=0.6, markersize=9)
        if not math.isnan(line.low):
            axes.plot([line.low, line.high], [k, k], "-", color=colour, linewidth=2)
        axes.plot(line.mean, k, "o", color=colour, fillstyle="none" if len(line.values) < 5 else "full")
    axes.set_yticks(range(len(lines)), [f"{line.cell.method} · {line.cell.source}" for line in lines])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"{_name(results)}; hollow: fewer than five seeds, a sighting")
    return figure


def _gains(gains: Sequence[Gain]) -> Figure:
    figure = Figure(figsize=(7, 0.9 + 0.5 * len(gains)))
    axes = figure.subplots()
    axes.axvline(0, color="#999999", linewidth=1)
    for k, gain in enumerate(gains):
        for what, y, colour, words in (
            (gain.swept, k - 0.12, COLOURS[0], "own rates"),
            (gain.fixed, k + 0.12, COLOURS[1], "one rate"),
        ):
            if what is None:
                continue
            if not math.isnan(what.low):
                axes.plot([what.low, what.high], [y, y], "-", color=colour, linewidth=2)
            full = "full" if what.seeds >= 5 else "none"
            axes.plot(what.mean, y, "o", color=colour, fillstyle=full, label=words if k == 0 or gain is gains[0] else None)
    axes.set_yticks(range(len(gains)), [str(gain) for gain in gains])
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    axes.legend(unique.values(), unique.keys(), frameon=False, loc="best")
    axes.set_xlabel("gain, paired by seed and row, with 95 % intervals; hollow: a sighting")
    return figure


def _curves(results: Results, lines: Sequence[Line]) -> Figure:
    methods = list(dict.fromkeys(line.cell.method for line in lines))
    figure, grid = panels(methods)
    known = colours(results)
    for line in lines:
        axes = grid[line.cell.method]
        axes.plot(list(line.curve), list(line.curve.values()), color=known[line.cell.source], label=line.cell.source)
        axes.set_title(line.cell.method)
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
    for threshold in results.transfer.study.thresholds:
        for axes in grid.values():
            axes.axhline(threshold, color="#999999", linewidth=0.8, linestyle=":")
    for axes in grid.values():
        axes.legend(frameon=False, fontsize=7)
    grid[methods[0]].set_ylabel(f"{results.transfer.metric} (validation)")
    return figure


def _labels(results: Results) -> Figure:
    methods = list(dict.fromkeys(line.cell.method for line in results.lines))
    figure, grid = panels(methods)
    known = colours(results)
    for method, axes in grid.items():
        for source in dict.fromkeys(line.cell.source for line in results.lines):
            own = sorted(
                (x for x in results.lines if (x.cell.method, x.cell.source) == (method, source)), key=lambda x: x.cell.fraction
            )
            if own:
                shares = [line.cell.fraction for line in own]
                axes.plot(shares, [line.mean for line in own], "o-", color=known[source], label=source, markersize=3)
                if not any(math.isnan(line.low) for line in own):
                    axes.fill_between(shares, [x.low for x in own], [x.high for x in own], color=known[source], alpha=0.15)
        axes.set_xscale("log")
        axes.set_title(method)
        axes.set_xlabel("share of the labels")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=7)
    grid[methods[0]].set_ylabel(_name(results))
    return figure


def _cost(results: Results, lines: Sequence[Line]) -> Figure:
    figure = Figure(figsize=(6, 3.2))
    axes, known = figure.subplots(), colours(results)
    marks = dict(zip(dict.fromkeys(line.cell.method for line in lines), "os^Dvp*X"))
    for line in lines:
        axes.plot(line.trained, line.mean, marks.get(line.cell.method, "o"), color=known[line.cell.source])
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    for source, colour in known.items():
        if any(line.cell.source == source for line in lines):
            axes.plot([], [], "s", color=colour, label=source)
    for method, mark in marks.items():
        axes.plot([], [], mark, color="#666666", fillstyle="none", label=method)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("numbers that train")
    axes.set_ylabel(_name(results))
    return figure
