"""Plots of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mmkt import certified
from mmkt.few_shot import parsed
from mmkt.metrics._columns import labels, log_softmax
from mmkt.plots import COLOURS, STYLE, panels
from mmkt.robust_accuracy import CLEAN, METRIC, Trial
from mmkt.robustness import JOINT, Condition
from mmkt.score import labelled
from mmkt.subsets import NONE
from mmkt.types import Predictions, Row

BINS = 15  # of confidence, as Ece has
LATTICE = 5  # modalities whose subsets can be drawn


def lattices(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """Of every task the lattice of subsets, a line wherever one modality is added, and what each modality brings."""
    for task, metric in dict.fromkeys((row.task, row.metric) for row in rows if "." not in row.metric):
        own = {row.modalities: row for row in rows if (row.task, row.metric, row.group) == (task, metric, "all")}
        shapley = [row for row in rows if (row.task, row.metric) == (task, f"{metric}.shapley")]
        if len(shapley) <= LATTICE:
            yield f"{task}: {metric} with every subset of the modalities", _lattice(own)
        yield f"{task}: what each modality brings to {metric} (Shapley values)", _bars(shapley)


def _parts(name: str) -> frozenset[str]:
    return frozenset() if name == NONE else frozenset(name.split("+"))


def _lattice(own: dict[str, Row]) -> Figure:
    levels = [list(some) for _, some in groupby(sorted(own, key=lambda x: (len(_parts(x)), x)), key=lambda x: len(_parts(x)))]
    widest = max(map(len, levels))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(4.0, 1.55 * widest), 1.0 * len(levels)))
        axes = figure.subplots()
        place = {name: (k - (len(level) - 1) / 2, y) for y, level in enumerate(levels) for k, name in enumerate(level)}
        for name in own:
            for other in own:
                if _parts(name) < _parts(other) and len(_parts(other)) == len(_parts(name)) + 1:
                    axes.plot(*zip(place[name], place[other]), color="#bbbbbb", linewidth=1, zorder=1)
        values = [row.value for row in own.values()]
        low, high = min(values), max(values)
        shades = mpl.colormaps["viridis"]
        for name, row in own.items():
            share = (row.value - low) / (high - low) if high > low else 1.0
            box = {"boxstyle": "round,pad=0.35", "facecolor": shades(share), "edgecolor": "none"}
            ink = "white" if share < 0.6 else "black"
            words = "\n".join([name.replace("+", " + "), f"{row.value:.3f}"])
            axes.text(*place[name], words, ha="center", va="center", fontsize=7.5, color=ink, bbox=box, zorder=2)
        axes.set_xlim(-widest / 2 - 0.1, widest / 2 + 0.1)
        axes.set_ylim(-0.5, len(levels) - 0.5)
        axes.set_axis_off()
    return figure


def _bars(shapley: Sequence[Row]) -> Figure:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 0.5 + 0.35 * len(shapley)))
        axes = figure.subplots()
        for k, row in enumerate(shapley):
            axes.barh(k, row.value, color=COLOURS[0], height=0.6)
            if not math.isnan(row.low):
                axes.plot([row.low, row.high], [k, k], color="black", linewidth=1)
        axes.axvline(0, color="#999999", linewidth=1)
        axes.set_yticks(range(len(shapley)), [row.modalities for row in shapley])
        axes.invert_yaxis()
    return figure


def missing(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """Of every task the figure by the rate at which modalities are missing."""
    for task, metric in dict.fromkeys((row.task, row.metric) for row in rows):
        own = [row for row in rows if row.task == task]
        rates = [float(row.condition.partition("@")[2]) for row in own]
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(5, 3))
            axes = figure.subplots()
            axes.plot(rates, [row.value for row in own], "o-", color=COLOURS[0])
            axes.fill_between(rates, [row.low for row in own], [row.high for row in own], color=COLOURS[0], alpha=0.15)
            axes.set_xlabel("each modality is missing with this probability")
            axes.set_ylabel(metric)
            axes.grid(alpha=0.3)
        yield f"{task}: {metric} where modalities go missing", figure


def corruptions(
    rows: Sequence[Row], clean: dict[str, float], without: dict[tuple[str, str], float]
) -> Iterator[tuple[str, Figure]]:
    """Of every task the figure by severity, a panel a modality; dotted: what it is without that modality.

    Args:
        rows: of ``robustness.measure``.
        clean: by task, the figure of clean rows.
        without: by task and modality, the figure without it, where that is known.
    """
    for task, metric in dict.fromkeys((row.task, row.metric) for row in rows if not row.metric.endswith(".relative")):
        own = [(Condition.of(row.condition), row) for row in rows if (row.task, row.metric) == (task, metric)]
        names = list(dict.fromkeys(c.modality for c, _ in own))
        with mpl.rc_context(STYLE):
            figure, grid = panels(names, 2, 3.6, 2.7)
            for m, axes in grid.items():
                for k, name in enumerate(dict.fromkeys(c.corruption for c, _ in own if c.modality == m)):
                    line = sorted((c.severity, row.value) for c, row in own if (c.modality, c.corruption) == (m, name))
                    x, y = zip((0, clean[task]), *line)
                    axes.plot(x, y, "o-", markersize=3, color=COLOURS[k % len(COLOURS)], label=name or "one of each modality's")
                if (task, m) in without:
                    axes.axhline(without[task, m], color="#666666", linestyle=":", linewidth=1, label=f"without {m}")
                axes.set_title("all at once" if m == JOINT else m)
                axes.set_xlabel("severity")
                axes.grid(alpha=0.3)
                axes.legend(frameon=False, fontsize=6.5)
            grid[names[0]].set_ylabel(metric)
        yield f"{task}: {metric} under corruption", figure


def attacks(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """Of every task accuracy along ε, a line a surface; nearly everything is allowed at the end."""
    for task in dict.fromkeys(row.task for row in rows):
        own = [(Trial.of(row.condition), row) for row in rows if (row.task, row.metric) == (task, METRIC)]
        clean = next(row for _, row in own if row.condition == CLEAN)
        lines = dict.fromkeys(t[:2] for t, _ in own if t.factor != 1)
        if not lines:
            continue
        factors = sorted({t.factor for t, _ in own})
        places = {0.0: 0, **{factor: k for k, factor in enumerate(factors, 1)}}
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(5.5, 3.2))
            axes = figure.subplots()
            for k, line in enumerate(lines):
                points = sorted([(0.0, clean), *((t.factor, row) for t, row in own if t[:2] == line)], key=lambda point: point[0])
                x, colour = [places[factor] for factor, _ in points], COLOURS[k % len(COLOURS)]
                axes.plot(x, [row.value for _, row in points], "o-", markersize=3, color=colour, label=line[0])
                axes.fill_between(x, [row.low for _, row in points], [row.high for _, row in points], color=colour, alpha=0.15)
            words = {0.0: "none", math.inf: "all"}
            axes.set_xticks(list(places.values()), [words.get(factor, f"{factor:g} ε") for factor in places])
            axes.set_ylim(0, 1)
            axes.set_xlabel("what the attacker may do")
            axes.set_ylabel(METRIC)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=7)
        yield f"{task}: {METRIC} along ε ({next(iter(lines))[1]})", figure


def certificates(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """Of every task certified accuracy by radius; dotted: accuracy without noise."""
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        line = sorted((certified.radius_of(row), row) for row in own if row.metric == certified.METRIC)
        plain = next(row for row in own if row.metric == certified.PLAIN)
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(5, 3))
            axes = figure.subplots()
            x, points = zip(*line, strict=True)
            axes.plot(x, [row.value for row in points], "o-", markersize=3, color=COLOURS[0], label="under noise")
            axes.fill_between(x, [row.low for row in points], [row.high for row in points], color=COLOURS[0], alpha=0.15)
            axes.axhline(plain.value, color="#666666", linestyle=":", linewidth=1, label="without noise, nothing certified")
            axes.set_ylim(0, 1)
            axes.set_xlabel("radius in σ, over all modalities together")
            axes.set_ylabel(certified.METRIC)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=7)
        yield f"{task}: {certified.METRIC} by radius", figure


def confidence(predictions: Predictions) -> Iterator[tuple[str, Figure]]:
    """Of every classifier its reliability diagram (15 bins of equal width) and its risk–coverage curve."""
    for task in (task for task, head in predictions.tasks.items() if head == "classify"):
        known = labelled(predictions, task)
        scores = log_softmax(known, task)
        sure, right = np.exp(scores.max(1)), scores.argmax(1) == labels(known, task)
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(7, 3), layout="constrained")
            left, beside = figure.subplots(1, 2)
            place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], sure)
            counts = np.bincount(place, minlength=BINS)
            held = np.flatnonzero(counts)
            means = [(sure[place == b].mean(), right[place == b].mean()) for b in held]
            left.plot([0, 1], [0, 1], ":", color="#666666", linewidth=1)
            left.bar(
                (np.arange(BINS) + 0.5) / BINS, counts / counts.sum(), 0.9 / BINS, color="#cccccc", label="share of the rows"
            )
            left.plot(*zip(*means), "o-", color=COLOURS[0], markersize=3, label="accuracy")
            left.set_xlabel("confidence")
            left.set_title("reliability")
            left.legend(frameon=False, fontsize=7)
            order = np.argsort(-sure, kind="stable")
            given = np.arange(1, len(order) + 1)
            beside.plot(given / len(order), np.cumsum(~right[order]) / given, color=COLOURS[1])
            beside.set_xlabel("coverage: share answered, most confident first")
            beside.set_ylabel("risk: share of wrong answers")
            beside.set_ylim(bottom=0)
            beside.set_title("risk and coverage")
            for axes in (left, beside):
                axes.grid(alpha=0.3)
        yield f"{task}: is its confidence to be believed?", figure


def few_shots(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """Accuracy by shots, a panel a modality."""
    for task in dict.fromkeys(row.task for row in rows):
        own = [(row.modalities, *parsed(row.condition), row) for row in rows if row.task == task and row.metric == "accuracy"]
        chance = next(row.value for row in rows if row.task == task and row.metric == "chance")
        names = list(dict.fromkeys(m for m, _, _, _ in own))
        with mpl.rc_context(STYLE):
            figure, grid = panels(names, 2, 3.6, 2.7)
            for m, axes in grid.items():
                for k, name in enumerate(dict.fromkeys(way for other, _, way, _ in own if other == m)):
                    line = [(int(shots), row) for other, shots, way, row in own if (other, way) == (m, name)]
                    x, colour = [shots for shots, _ in line], COLOURS[k % len(COLOURS)]
                    axes.plot(x, [row.value for _, row in line], "o-", markersize=3, color=colour, label=name)
                    axes.fill_between(x, [row.low for _, row in line], [row.high for _, row in line], color=colour, alpha=0.15)
                axes.axhline(chance, color="#666666", linestyle=":", linewidth=1, label="chance")
                axes.set_xscale("log", base=2)
                axes.set_title(m)
                axes.set_xlabel("labelled rows a class")
                axes.grid(alpha=0.3)
                axes.legend(frameon=False, fontsize=6.5)
            grid[names[0]].set_ylabel("accuracy")
        yield f"{task} from few labels", figure
