"""A transfer study for people: tables in the terminal and as Markdown, and one page with plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mmkt import page, report
from mmkt.checkpoint import settle, write_json
from mmkt.report import Sheet
from mmkt.statistics import LEVEL, Difference
from mmkt.studies.plots import transfer_plots
from mmkt.studies.transfer_results import Gain, Results


def write(results: Results) -> Path:
    """``report.md``, ``report.html``, ``results.json`` and ``metrics.jsonl`` in the study's folder; returns the page's path."""
    study = results.transfer.study
    folder = Path(study.run)
    title, words, pages = f"Transfer study: {folder.name}", summary(results), sheets(results)
    lines = [f"# {title}", "", *[f"{text}\n" for text in words]]
    body = [page.paragraph(text) for text in words]
    for sheet in pages:
        lines += [f"## {sheet.title}", "", *report.markdown(sheet), ""]
        body.append(page.table(sheet))
    body += [page.figure(caption, figure) for caption, figure in transfer_plots(results).items()]
    (folder / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page.whole(title, body), encoding="utf-8")
    write_json(folder / "results.json", as_json(results))
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    report.append(_rows(results), folder / "metrics.jsonl")
    return folder / "report.html"


def show(results: Results, console: Console) -> None:
    """Print what the report says."""
    report.show(sheets(results), console)
    for text in summary(results):
        console.print(Text(text))


def summary(results: Results) -> list[str]:
    """What was compared, and one sentence a verdict."""
    transfer, study = results.transfer, results.transfer.study
    train, data = transfer.config.train, transfer.config.data
    budget = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
    chosen = f"learning rate and best checkpoint chosen on {data.validation}, {data.test} read once"
    found = [
        f"{transfer.task}, {transfer.metric} on {data.test}. Every training: {budget} of {data.batch_size} rows; {chosen}. "
        f"Experiment: {study.experiment}."
    ]
    found += [_sentence(results, gain) for gain in results.gains]
    if results.unfinished:
        found.append("Not finished: " + "; ".join(str(cell) for cell in results.unfinished) + ".")
    return found


def _sentence(results: Results, gain: Gain) -> str:
    study, what = results.transfer.study, gain.swept
    pair = f"{gain}: {study.pretrained} against {study.baseline}, each with its own rate, {_difference(what)}"
    verdict = {
        "gain": "a gain",
        "loss": "a loss",
        "not distinguishable": f"no gain that can be told{_needed(gain)}",
        "sighting": f"a sighting ({what.seeds} seed{'s' * (what.seeds > 1)}), no verdict",
    }[gain.verdict]
    text = f"{pair}: {verdict}."
    if gain.fixed is not None and gain.change is not None:
        text += (
            f" With {study.lr:g} for both {_difference(gain.fixed)}; leaving the sweep out changes the gain by "
            f"{_difference(gain.change)}. That the gap is larger without a sweep: {gain.hypothesis}."
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
        [str(gain), _difference(gain.swept), "–" if math.isnan(gain.p) else f"{gain.p:.3g}", gain.verdict]
        for gain in results.gains
    ]
    notes = [
        "Paired by seed and row: hierarchical bootstrap over both; p: of a test over both, corrected over the methods. "
        "A gain needs both. One seed: rows alone, a sighting."
    ]
    return Sheet(f"Gain of {study.pretrained} over {study.baseline}", ["method", "own rates", "p (Holm)", "verdict"], rows, notes)


def _unswept(results: Results) -> Sheet:
    rows = [
        [str(gain), _difference(gain.fixed), _difference(gain.change), gain.hypothesis or "–"]
        for gain in results.gains
        if gain.fixed is not None and gain.change is not None
    ]
    headings = ["method", "gain", "more than with own rates", "hypothesis"]
    notes = ["Hypothesis: a gap is larger without a sweep (Rothermel et al., 2021)."]
    return Sheet(f"With {results.transfer.study.lr or 0:g} for both", headings, rows, notes)


def _difference(what: Difference) -> str:
    sign = f"{what.mean:+.3f}"
    return sign if math.isnan(what.low) else f"{sign} ({what.low:+.3f} to {what.high:+.3f})"


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

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if hasattr(value, "_asdict"):
            return clean(value._asdict())
        if isinstance(value, dict):
            return {str(key): clean(x) for key, x in value.items()}
        return [clean(x) for x in value] if isinstance(value, (list, tuple)) else value

    gains = [clean(gain) | {"verdict": gain.verdict, "hypothesis": gain.hypothesis} for gain in results.gains]
    return {"cells": [clean(line) for line in results.lines], "gains": gains, "unfinished": clean(list(results.unfinished))}


def _rows(results: Results) -> Iterator[Any]:
    """Every figure of every chosen run, as ``mmkt train`` writes them, with the study's name."""
    transfer = results.transfer
    for line in results.lines:
        for key in transfer.finals(line.cell):
            folder = settle(transfer.folder(key) / "best") / f"evaluation-{transfer.config.data.test}"
            for row in report.read(folder / "metrics.jsonl"):
                yield row._replace(run=transfer.folder(key).name, study=Path(transfer.study.run).name)
