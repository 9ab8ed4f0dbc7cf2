"""Plots of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmkt.plots import COLOURS, STYLE, panels
from mmkt.search_file import Choices, Range
from mmkt.studies.search_trial import Ended

LOOKS: dict[str, dict[str, Any]] = {
    "complete": {"color": COLOURS[0], "marker": "o"},
    "pruned": {"edgecolor": "#888888", "facecolor": "none", "marker": "o"},
}
LONGEST = 22  # characters of a choice below an axis


def search_plots(
    space: Mapping[str, Choices | Range],
    trials: Sequence[Ended],
    importance: Mapping[str, float] | str,
    words: str,
    higher: bool,
) -> dict[str, Figure]:
    """By title; only those for which there is something to show.

    Args:
        space: what was searched.
        trials: that have ended.
        importance: by setting.
        words: what the values are.
        higher: whether higher is better.
    """
    known = [one for one in trials if one.twin is None and math.isfinite(one.outcome.value)]
    found: dict[str, Figure] = {}
    with mpl.rc_context(STYLE):
        if not isinstance(importance, str):
            found["Share of the differences that each setting accounts for"] = _importance(importance)
        if known:
            found["Value by trial; hollow: pruned, with its last value"] = _history(known, words, higher)
            found["Value by setting; hollow: pruned"] = _settings(space, known, words)
    return found


def _importance(importance: Mapping[str, float]) -> Figure:
    figure = Figure(figsize=(6, 0.7 + 0.3 * len(importance)))
    axes = figure.subplots()
    axes.barh(list(importance), list(importance.values()), color=COLOURS[0], height=0.6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the differences between the trials that were trained to the end")
    return figure


def _history(trials: Sequence[Ended], words: str, higher: bool) -> Figure:
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    _points(axes, [(one.number, one) for one in trials])
    best: list[tuple[int, float]] = []
    for one in trials:
        value = one.outcome.value
        if one.outcome.state == "complete" and (not best or (value > best[-1][1] if higher else value < best[-1][1])):
            best.append((one.number, value))
    if best:
        last = (trials[-1].number, best[-1][1])
        axes.step(*zip(*best, last), where="post", color=COLOURS[1], label="best so far")
        axes.legend(frameon=False, fontsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(words)
    axes.grid(alpha=0.3)
    return figure


def _settings(space: Mapping[str, Choices | Range], trials: Sequence[Ended], words: str) -> Figure:
    figure, grid = panels(list(space), height=2.6)
    for name, one in space.items():
        axes = grid[name]
        if isinstance(one, Range):
            _points(axes, [(trial.settings[name], trial) for trial in trials])
            axes.set_xscale("log" if one.log else "linear")
        else:
            place = {label: k for k, label in enumerate(one.labels)}
            _points(axes, [(place[trial.settings[name]], trial) for trial in trials])
            texts = [label if len(label) <= LONGEST else label[: LONGEST - 1] + "…" for label in one.labels]
            steep = max(map(len, texts)) * len(texts) > LONGEST
            axes.set_xticks(range(len(texts)), texts, rotation=30 if steep else 0, ha="right" if steep else "center", fontsize=7)
            axes.set_xlim(-0.5, len(texts) - 0.5)
        axes.set_title(name)
        axes.grid(alpha=0.3)
    figure.supylabel(words, fontsize=9)
    return figure


def _points(axes: Axes, points: Sequence[tuple[float, Ended]]) -> None:
    for state, look in LOOKS.items():
        some = [(x, one.outcome.value) for x, one in points if one.outcome.state == state]
        if some:
            places, values = zip(*some)
            axes.scatter(places, values, s=16, zorder=3, **look)
