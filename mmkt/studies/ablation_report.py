"""An ablation for people: tables in the terminal, as Markdown, CSV and LaTeX, and one page with plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from mmkt.report import Sheet
from mmkt.studies import pages
from mmkt.studies.ablation_cells import Task
from mmkt.studies.ablation_forms import as_csv, as_json, tex
from mmkt.studies.ablation_plots import ablation_plots
from mmkt.studies.ablation_results import Line, Results, pareto

WORDS = {"gain": "better", "loss": "worse"}


def write(results: Results, *, latex: bool = False) -> Path:
    """``report.{md,html}``, ``results.{json,csv}``, ``metrics.jsonl``; with ``latex`` ``report.tex``. Returns the page's path."""
    study, folder = results.study, Path(results.study.study.run)
    tables = sheets(results)
    found = pages.write(folder, f"Ablation: {folder.name}", summary(results), tables, ablation_plots(results), as_json(results))
    (folder / "results.csv").write_text(as_csv(results), encoding="utf-8")
    ended = [cell for cell in study.cells if cell not in results.unfinished]
    pages.gather_rows((study.folder(key) for cell in ended for key in study.finals(cell)), study.test, folder)
    if latex:
        (folder / "report.tex").write_text("\n".join(tex(sheet) for sheet in tables), encoding="utf-8")
    return found


def show(results: Results, console: Console) -> None:
    """Print what the report says."""
    pages.show(summary(results), sheets(results), console)


def summary(results: Results) -> list[str]:
    """What was compared, and how it came out."""
    study, config = results.study, results.study.first
    train, data, file = config.train, config.data, study.study
    seeds = f"{len(file.seeds)} seed{'s' * (len(file.seeds) > 1)}"
    budget = f"Every training: {pages.budget(train, data)}"
    found = [
        f"{study.task}, {study.metric} on {study.test}. {budget}; {results.tried} trainings ({len(study.cells)} cells × their "
        f"rates × {seeds}) were compared on {study.validation}, where rate (by the mean over seeds) and best checkpoint were "
        f"chosen; {study.test} was read once, after it. Experiment: {file.experiment}."
    ]
    for name, words in results.origins.items():
        told = "; ".join(f"{m}: {text}" if m else text for m, text in words.items())
        if told:
            same = " The same for all seeds, which draw what comes after them." if study.study.encoders != "trained" else ""
            found.append(f"Encoders{f' of {name}' if name else ''}: {told}.{same}")
    if file.match:
        found.append(f"{file.match} is chosen so that every cell trains as many numbers as {study.baseline}, within 2 %.")
    found += [_verdicts(results, task, lines) for task, lines in results.lines.items() if file.intervals and len(lines) > 1]
    if results.failed:
        names = [f"({key.cell}) rate {key.lr:g}, seed {key.seed}" for key in results.failed]
        found.append(
            f"Ended in a loss that is not finite: {'; '.join(names[:6])}{' …' if len(names) > 6 else ''}; lower rates help."
        )
    if results.unfinished:
        found.append("Not finished: " + "; ".join(str(cell) for cell in results.unfinished) + ".")
    return found


def _verdicts(results: Results, task: Task, lines: Sequence[Line]) -> str:
    kinds: dict[str, list[str]] = {}
    for line in lines:
        if line.against is not None:
            kinds.setdefault(line.verdict, []).append(line.cell.label)
    order = {"gain": "better", "loss": "worse", "not distinguishable": "not distinguishable", "sighting": "sightings, no verdict"}
    said = [f"{words}: {', '.join(kinds[kind])}" for kind, words in order.items() if kind in kinds]
    where = f" on {task}" if str(task) else ""
    return f"Against {results.study.baseline}{where}: {'; '.join(said) or 'nothing to compare'}."


# ---------------------------------------------------------------- tables


def sheets(results: Results) -> list[Sheet]:
    """The tables."""
    found = []
    for task, lines in results.lines.items():
        where = f" ({task})" if str(task) else ""
        found += [
            _main(results, lines, where),
            _against(results, lines, where),
            _subsets(lines, where),
            _rates(results, lines, where),
            _costs(lines, where),
        ]
    return [sheet for sheet in [*found, *_ranks(results)] if sheet.rows]


def _main(results: Results, lines: Sequence[Line], where: str) -> Sheet:
    study = results.study
    headings = ["", "rate", "mean", "deviation", "95 % interval", "seeds"]
    rows = [
        [
            line.cell.label,
            f"{line.lr:g}{'*' * line.edge}" if line.validation else "–",
            f"{line.mean:.3f}",
            _number(line.deviation),
            _between(line.low, line.high),
            " ".join(f"{x:.3f}" for x in line.values),
        ]
        for line in lines
    ]
    notes = ["Intervals: Student's t over seeds."] if study.study.intervals else []
    if any(line.edge for line in lines):
        notes.append("* the lowest or highest rate of its grid: a better one may lie beyond.")
    return Sheet(f"{study.task}: {study.metric} on {study.test}{where}", headings, rows, notes)


def _against(results: Results, lines: Sequence[Line], where: str) -> Sheet:
    rows = [
        [
            line.cell.label,
            pages.difference(line.against),
            "–" if math.isnan(line.p) else f"{line.p:.2g}",
            _number(line.against.effect, 1),
            WORDS.get(line.verdict, line.verdict) + needed(line),
        ]
        for line in lines
        if line.against is not None
    ]
    notes = [
        "Paired by seed and row, by a hierarchical bootstrap over both; p of a test over both, corrected (Holm) over all lines. "
        "Effect: Hedges' g of paired differences. A verdict takes five seeds, p and interval; seeds needed: for a power of 80 %."
    ]
    if not results.study.higher:
        notes.append(f"Less {results.study.metric} is better: a difference above 0 says how much less it is.")
    return Sheet(f"Against {results.study.baseline}{where}", ["", "difference", "p (Holm)", "effect", "verdict"], rows, notes)


def needed(line: Line) -> str:
    """What it would take to tell a difference, where it was not told."""
    what = line.against
    if what is None or line.verdict != "not distinguishable" or math.isnan(what.needed):
        return ""
    if math.isinf(what.needed):
        return " (too few test rows for it)"
    return f" ({what.needed:.0f} seeds would be needed)" if what.needed > what.seeds else ""


def _subsets(lines: Sequence[Line], where: str) -> Sheet:
    names = sorted({name for line in lines for name in line.subsets}, key=lambda name: (name.count("+"), name == "none", name))
    rows = [[line.cell.label, *(_number(line.subsets.get(name, math.nan)) for name in names)] for line in lines if line.subsets]
    return Sheet(f"With some of the modalities, same weights{where}", ["", *names], rows, ["Mean over seeds, on test."])


def _rates(results: Results, lines: Sequence[Line], where: str) -> Sheet:
    rates = sorted({lr for line in lines for lr in line.validation})
    rows = []
    for line in lines:
        means = {lr: sum(values) / len(values) for lr, values in line.validation.items()}
        if means:
            known = [x for x in means.values() if not math.isnan(x)]
            rows.append([line.cell.label, *(_number(means.get(lr, math.nan)) for lr in rates), f"{max(known) - min(known):.3f}"])
    title = f"Learning rates: {results.study.metric} on {results.study.validation}{where}"
    return Sheet(
        title, ["", *(f"{lr:g}" for lr in rates), "range"], rows, ["Mean over seeds; – : not of its grid, or not finite."]
    )


def _costs(lines: Sequence[Line], where: str) -> Sheet:
    rows = [
        [
            line.cell.label,
            f"{line.mean:.3f}",
            f"{line.cost.trained:,}",
            f"{line.cost.numbers:,}",
            f"{line.cost.flops / 1e6:.2f}",
            f"{line.cost.step * 1000:.2f}",
            f"{line.cost.memory / 1e6:.1f}",
            "yes" if line in pareto(lines) else "",
        ]
        for line in lines
        if line.cost
    ]
    headings = ["", "mean", "trains", "of", "MFLOPs a row", "ms a step", "MB a step", "Pareto"]
    notes = [
        "FLOPs: forward, features of frozen encoders given. Memory: on a GPU the peak; on a CPU what trains, gradients, moments "
        "and kept activations. Pareto: no other line is as good with a shorter step."
    ]
    return Sheet(f"What it takes{where}", headings, rows, notes)


def _ranks(results: Results) -> Iterator[Sheet]:
    ranks = results.ranks
    if ranks is None:
        return
    order = ranks.friedman.ranks.argsort()
    headings = ["", "mean rank", *(str(task) for task in ranks.tasks), f"wins against {results.study.baseline}"]
    base = ranks.labels.index(results.study.baseline) if results.study.baseline in ranks.labels else None
    rows = [
        [
            ranks.labels[k],
            f"{ranks.friedman.ranks[k]:.2f}",
            *(f"{x:.3f}" for x in ranks.values[:, k]),
            "–" if base is None or k == base else f"{ranks.wins[k, base]:.0%}",
        ]
        for k in order
    ]
    test = (
        f"Friedman's test (Iman and Davenport) over {ranks.friedman.n} tasks: F {ranks.friedman.f:.3g}, p {ranks.friedman.p:.2g}."
    )
    notes = [
        test,
        f"Nemenyi's critical difference of mean ranks (0.05): {ranks.distance:.2f}; ranks closer than that are not apart.",
    ]
    if ranks.friedman.n < 5:
        notes.append("With so few tasks only very large differences of ranks could be told.")
    yield Sheet("Over all tasks", headings, rows, notes)


def _number(x: float, digits: int = 3) -> str:
    return "–" if math.isnan(x) else f"{x:.{digits}f}"


def _between(low: float, high: float) -> str:
    return "–" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
