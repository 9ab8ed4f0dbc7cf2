"""A search for people: tables in the terminal and as Markdown, and one page with plots."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from mmkt import report
from mmkt.checkpoint import settle
from mmkt.config import written
from mmkt.report import Sheet
from mmkt.search_file import Range
from mmkt.studies import pages
from mmkt.studies.search import HyperSearch
from mmkt.studies.search_plots import search_plots
from mmkt.studies.search_trial import Ended, ranked

SHOWN = 10  # of the best trials
ROUGH = 50  # trials below which importances are a rough guide
EDGE = 0.05  # of a range


class Results(NamedTuple):
    """What a search found."""

    study: HyperSearch
    trials: list[Ended]
    best: list[Ended]  # trained to the end, best first
    importance: Mapping[str, float] | str  # by setting, or why it cannot be said
    evaluations: int | None  # that a trial has which is not pruned


def gather(study: HyperSearch) -> Results:
    """Read the search's folder.

    Raises:
        ConfigError: there is no search in it, or another one.
    """
    trials = study.open(reading=True)
    ended = trials.ended()
    return Results(study, ended, ranked(ended, study.higher), trials.importance(), trials.evaluations)


def write(results: Results) -> Path:
    """``report.md``, ``report.html`` and ``results.json`` in the search's folder; returns the page's path."""
    study = results.study
    figures = search_plots(study.space, results.trials, results.importance, value_of(study), study.higher)
    title = f"Search: {study.folder.name}"
    return pages.write(study.folder, title, summary(results), sheets(results), figures, as_json(results))


def show(results: Results, console: Console) -> None:
    """Print what the report says."""
    pages.show(summary(results), sheets(results), console)


def value_of(study: HyperSearch) -> str:
    """What the values are."""
    return f"{study.task}, {study.metric} on {study.split}"


# ---------------------------------------------------------------- in words


def summary(results: Results) -> list[str]:
    """What was searched, what was found, and how far to believe it."""
    study, search = results.study, results.study.search
    ended = counts(results)
    done = f"{ended['complete']} complete, {ended['pruned']} pruned, {ended['failed']} failed"
    left = search.trials - len(results.trials)
    more = f" {left} of {search.trials} are left: type the same command without --report." if left > 0 else ""
    found = [f"{value_of(study)}. Experiment: {search.experiment}. {len(results.trials)} trials: {done}.{more}"]
    if search.pruning and results.evaluations is not None and results.evaluations <= search.min_evaluations:
        found.append(
            f"Nothing could be pruned: a trial has {results.evaluations} evaluation(s), and min_evaluations leaves it "
            f"{search.min_evaluations}. Set train.evaluate_every lower."
        )
    if not results.best:
        return [*found, "No trial was trained to the end: there is no best one."]
    best = results.best[0]
    found.append(f"Best: trial {best.number}, {best.outcome.value:.4f}, with {_typed(study, best)}.")
    edges = [name for name, one in study.space.items() if isinstance(one, Range) and _at_edge(one, best.settings[name])]
    if edges:
        found.append(f"{', '.join(edges)}: the best trial's value lies near an end of its range; a better one may lie beyond.")
    test = study.config.data.test
    found += [
        f"Nothing was trained or judged on the split {test}. The best value is that of {study.split} and optimistic: it is the "
        f"best of {len(results.trials)} trials on the rows that chose it, so on new rows expect less. For a figure that nothing "
        f"was chosen by, evaluate the best trial's checkpoint once: {evaluation(results)}",
        f"To train with its settings: {training(results)}",
    ]
    return found


def counts(results: Results) -> Counter[str]:
    """How many trials ended how."""
    return Counter(one.outcome.state for one in results.trials)


def evaluation(results: Results) -> str:
    """The command that evaluates the best trial on the test split."""
    study = results.study
    checkpoint = study.folder_of(results.best[0].number) / "best"
    return shlex.join(["mmkt", "evaluate", str(checkpoint), f"evaluate.split={study.config.data.test}"])


def training(results: Results) -> str:
    """The command that trains with the best trial's settings."""
    study = results.study
    own = [f"{name}={_text(study, results.best[0], name)}" for name in study.space]
    own += [f"train.select={study.task}/{study.metric}", "run=OTHER"]
    return shlex.join(["mmkt", "train", study.search.experiment, *study.search.settings, *own])


def _text(study: HyperSearch, trial: Ended, name: str) -> str:
    value = trial.settings[name]
    return written(value) if isinstance(study.space[name], Range) else value


def _typed(study: HyperSearch, trial: Ended) -> str:
    return ", ".join(f"{name}={_short(trial.settings[name])}" for name in study.space)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _at_edge(one: Range, value: float) -> bool:
    low, high, x = (math.log(y) if one.log else y for y in (one.low, one.high, value))
    return min(x - low, high - x) <= EDGE * (high - low)


# ---------------------------------------------------------------- tables


def sheets(results: Results) -> list[Sheet]:
    """The tables."""
    return [sheet for sheet in (_best(results), _importance(results), _others(results)) if sheet.rows or sheet.notes]


def _best(results: Results) -> Sheet:
    study, rows = results.study, []
    for one in results.best[:SHOWN]:
        settings = [_short(one.settings[name]) for name in study.space]
        rows.append([str(one.number), *settings, f"{one.outcome.value:.4f}", _interval(study, one)])
    notes = ["Intervals: 95 %, over the rows of the split, of this one trial: they know nothing of its having been chosen."]
    more = len(results.best) - SHOWN
    if more > 0:
        notes.append(f"{more} more are in results.json.")
    title = f"Best trials: {value_of(study)}"
    return Sheet(title, ["trial", *study.space, study.metric, "interval"], rows, notes if rows else (), 1 + len(study.space))


def _interval(study: HyperSearch, trial: Ended) -> str:
    folder = settle(study.folder_of(trial.number) / "best") / f"evaluation-{study.split}"
    for row in report.read(folder / "metrics.jsonl"):
        if (row.task, row.metric, row.group) == (study.task, study.metric, "all") and not math.isnan(row.low):
            return f"{row.low:.3f} to {row.high:.3f}"
    return "–"


def _importance(results: Results) -> Sheet:
    title, headings = "What matters", ["setting", "share"]
    if isinstance(results.importance, str):
        return Sheet(title, headings, [], [f"No importances: {results.importance}."])
    complete = counts(results)["complete"]
    notes = [
        "How much of the differences between the trials that were trained to the end each setting accounts for by itself "
        "(fANOVA: Hutter, Hoos and Leyton-Brown, 2014), within the ranges that were searched."
    ]
    if complete < ROUGH:
        notes.append(f"From {complete} trials: a rough guide.")
    alone = [name for name in results.study.space if name not in results.importance]
    if alone:
        notes.append(f"Of {', '.join(alone)} one value alone was trained to the end.")
    return Sheet(title, headings, [[name, f"{share:.1%}"] for name, share in results.importance.items()], notes)


def _others(results: Results) -> Sheet:
    """Trials that failed, and those that were not trained."""
    rows = [
        [str(one.number), _typed(results.study, one), one.outcome.why or "the same settings: not trained again"]
        for one in results.trials
        if one.twin is None and one.outcome.state == "failed"
    ]
    twins = [f"{one.number} (as {one.twin})" for one in results.trials if one.twin is not None]
    notes = [f"Not trained again, having the settings of an earlier trial: {', '.join(twins)}."] if twins else []
    return Sheet("Failed trials" if rows else "Repeated trials", ["trial", "settings", "why"], rows, notes, 3)


def as_json(results: Results) -> dict[str, Any]:
    """Plain data; what is not a finite number is null."""
    study = results.study
    trials = [
        {
            "number": one.number,
            "state": one.outcome.state,
            "value": one.outcome.value if math.isfinite(one.outcome.value) else None,
            "settings": {name: _text(study, one, name) for name in study.space},
            "evaluations": one.evaluations,
            "same as": one.twin,
            "why": one.outcome.why or None,
            "run": None if one.twin is not None else str(study.folder_of(one.number)),
        }
        for one in results.trials
    ]
    shares = results.importance
    return {
        "task": study.task,
        "metric": study.metric,
        "split": study.split,
        "asked": study.search.trials,
        "counts": {state: counts(results)[state] for state in ("complete", "pruned", "failed")},
        "best": results.best[0].number if results.best else None,
        "evaluate": evaluation(results) if results.best else None,
        "train": training(results) if results.best else None,
        "importance": None if isinstance(shares, str) else dict(shares),
        "no importance": shares if isinstance(shares, str) else None,
        "trials": trials,
    }
