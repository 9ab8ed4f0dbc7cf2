"""Plots of studies, as SVG that stands inside a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from mmkt.studies.transfer_results import Gain, Line, Results

# Okabe and Ito (2008): told apart by colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "mmkt",
    "svg.fonttype": "none",
}


def svg(figure: Figure) -> str:
    """A figure as text, the same for the same figures."""
    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


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


def _panels(names: Sequence[str], width: float = 2.9) -> tuple[Figure, dict[str, Any]]:
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(width * columns, 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for unused in grid.flat[len(names) :]:
        unused.set_axis_off()
    return figure, dict(zip(names, grid.flat))


def _curves(results: Results, lines: Sequence[Line]) -> Figure:
    methods = list(dict.fromkeys(line.cell.method for line in lines))
    figure, panels = _panels(methods)
    known = colours(results)
    for line in lines:
        axes = panels[line.cell.method]
        axes.plot(list(line.curve), list(line.curve.values()), color=known[line.cell.source], label=line.cell.source)
        axes.set_title(line.cell.method)
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
    for threshold in results.transfer.study.thresholds:
        for axes in panels.values():
            axes.axhline(threshold, color="#999999", linewidth=0.8, linestyle=":")
    for axes in panels.values():
        axes.legend(frameon=False, fontsize=7)
    panels[methods[0]].set_ylabel(f"{results.transfer.metric} (validation)")
    return figure


def _labels(results: Results) -> Figure:
    methods = list(dict.fromkeys(line.cell.method for line in results.lines))
    figure, panels = _panels(methods)
    known = colours(results)
    for method, axes in panels.items():
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
    panels[methods[0]].set_ylabel(_name(results))
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
