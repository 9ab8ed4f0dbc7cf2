"""A transfer study for people: tables in the terminal and as Markdown, and one page with plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mmkt.report import Sheet
from mmkt.statistics import LEVEL
from mmkt.studies import pages
from mmkt.studies.plots import transfer_plots
from mmkt.studies.transfer_results import Gain, Results


def write(results: Results) -> Path:
    """``report.md``, ``report.html``, ``results.json`` and ``metrics.jsonl`` in the study's folder; returns the page's path."""
    transfer, folder = results.transfer, Path(results.transfer.study.run)
    title, figures = f"Transfer study: {folder.name}", transfer_plots(results)
    found = pages.write(folder, title, summary(results), sheets(results), figures, as_json(results))
    runs = (transfer.folder(key) for line in results.lines for key in transfer.finals(line.cell))
    pages.gather_rows(runs, transfer.config.data.test, folder)
    return found


def show(results: Results, console: Console) -> None:
    """Print what the report says."""
    pages.show(summary(results), sheets(results), console)


def summary(results: Results) -> list[str]:
    """What was compared, and one sentence a verdict."""
    transfer, study = results.transfer, results.transfer.study
    train, data = transfer.config.train, transfer.config.data
    chosen = f"learning rate and best checkpoint chosen on {data.validation}, {data.test} read once"
    budget = f"Every training: {pages.budget(train, data)}"
    found = [f"{transfer.task}, {transfer.metric} on {data.test}. {budget}; {chosen}. Experiment: {study.experiment}."]
    found += [_sentence(results, gain) for gain in results.gains]
    if results.unfinished:
        found.append("Not finished: " + "; ".join(str(cell) for cell in results.unfinished) + ".")
    return found


def _sentence(results: Results, gain: Gain) -> str:
    study, what = results.transfer.study, gain.swept
    pair = f"{gain}: {study.pretrained} against {study.baseline}, each with its own rate, {pages.difference(what)}"
    verdict = {
        "gain": "a gain",
        "loss": "a loss",
        "not distinguishable": f"no gain that can be told{_needed(gain)}",
        "sighting": f"a sighting ({what.seeds} seed{'s' * (what.seeds > 1)}), no verdict",
    }[gain.verdict]
    text = f"{pair}: {verdict}."
    if gain.fixed is not None and gain.change is not None:
        text += (
            f" With {study.lr:g} for both {pages.difference(gain.fixed)}; leaving the sweep out changes the gain by "
            f"{pages.difference(gain.change)}. That the gap is larger without a sweep: {gain.hypothesis}."
        )
    return text


def _needed(gain: Gain) -> str:
    what = gain.swept
    if what.p < 1 - LEVEL:
        by_itself = f" (p {what.p:.2g} by itself, "
        if gain.p < 1 - LEVEL:
            return by_itself + "but its interval holds 0)"
        return by_itself + f"which the correction over the methods takes to {gain.p:.2g})"
    if math.isnan(what.needed):
        return ""
    if math.isinf(what.needed):
        return " (with these test rows a thousand seeds would not tell a difference this small at 80 % power)"
    return f" (it would take {what.needed:.0f} seeds at 80 % power)"


def sheets(results: Results) -> list[Sheet]:
    """The tables."""
    return [sheet for sheet in (_cells(results), _gains(results), _unswept(results), _costs(results)) if sheet.rows]


def _cells(results: Results) -> Sheet:
    transfer = results.transfer
    few = any(len(line.values) < 5 for line in results.lines)
    thresholds = transfer.study.thresholds
    rows = [
        [
            str(line.cell),
            f"{line.lr:g}{'*' if line.edge else ''}",
            f"{line.mean:.3f}",
            "–" if math.isnan(line.low) else f"{line.low:.3f} to {line.high:.3f}",
            " ".join(f"{x:.3f}" for x in line.values),
            *(_steps(line.reached[t]) for t in thresholds),
        ]
        for line in results.lines
    ]
    headings = ["cell", "rate", "mean", "95 % interval", "seeds", *(f"steps to {t:g}" for t in thresholds)]
    notes = ["Intervals: Student's t over seeds."]
    if few:
        notes.append("Cells with fewer than five seeds are sightings, not results.")
    if any(line.edge for line in results.lines):
        notes.append("* the lowest or highest rate of its grid: a better one may lie beyond.")
    if thresholds:
        notes.append("Steps: up to the first evaluation on validation that reached it, the median over seeds.")
    return Sheet(f"{transfer.task}: {transfer.metric} on {transfer.config.data.test}", headings, rows, notes)


def _steps(reached: Sequence[int | None]) -> str:
    """The median over seeds, where most seeds got there; how many did, where not all."""
    there = sorted(step for step in reached if step is not None)
    if not there:
        return "never"
    ordered = [*there, *[math.inf] * (len(reached) - len(there))]
    middle = ordered[(len(ordered) - 1) // 2]
    words = f"{middle:g}" if math.isfinite(middle) else "never"
    return words if len(there) == len(reached) else f"{words} ({len(there)} of {len(reached)})"


def _gains(results: Results) -> Sheet:
    study = results.transfer.study
    rows = [
        [str(gain), pages.difference(gain.swept), "–" if math.isnan(gain.p) else f"{gain.p:.3g}", gain.verdict]
        for gain in results.gains
    ]
    notes = [
        "Paired by seed and row: hierarchical bootstrap over both; p: of a test over both, corrected over the methods. "
        "A gain needs both. One seed: rows alone, a sighting."
    ]
    return Sheet(f"Gain of {study.pretrained} over {study.baseline}", ["method", "own rates", "p (Holm)", "verdict"], rows, notes)


def _unswept(results: Results) -> Sheet:
    rows = [
        [str(gain), pages.difference(gain.fixed), pages.difference(gain.change), gain.hypothesis or "–"]
        for gain in results.gains
        if gain.fixed is not None and gain.change is not None
    ]
    headings = ["method", "gain", "more than with own rates", "hypothesis"]
    notes = ["Hypothesis: a gap is larger without a sweep (Rothermel et al., 2021)."]
    return Sheet(f"With {results.transfer.study.lr or 0:g} for both", headings, rows, notes)


def _costs(results: Results) -> Sheet:
    headings = ["cell", "trains", "share", "ms a step", "peak memory", "delta"]
    rows = [
        [
            str(line.cell),
            f"{line.trained:,}",
            f"{line.trained / line.numbers:.2%}",
            f"{line.step * 1000:.0f}",
            f"{line.memory / 1e6:,.0f} MB",
            "–" if line.delta is None else f"{line.delta / 1e6:.2f} MB",
        ]
        for line in results.lines
    ]
    notes = [
        "Peak memory: of the GPU, or of the process with its libraries. Delta: what a save takes beside the original weights."
    ]
    return Sheet("What it takes", headings, rows, notes)


def as_json(results: Results) -> dict[str, Any]:
    """Plain data; what is not a finite number is null."""
    gains = [pages.plain(gain) | {"verdict": gain.verdict, "hypothesis": gain.hypothesis} for gain in results.gains]
    return {"cells": pages.plain(results.lines), "gains": gains, "unfinished": pages.plain(results.unfinished)}
