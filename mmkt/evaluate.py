"""A checkpoint evaluated: figures and predictions of a split, and all else that it can do across modalities."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress

from mmkt import across, attacked, certified, checkpoint, distributed, report, smoothing
from mmkt.asked import Plan, column_at, plan
from mmkt.config import check, override
from mmkt.data import splits
from mmkt.data.check import Unreadable
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.launcher import use_threads
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import judges, predict, predict_changed, predict_subsets
from mmkt.preparation import open_manifest
from mmkt.robustness import Condition
from mmkt.score import About, score
from mmkt.siege import ways
from mmkt.stored import CORRUPTED, save, together
from mmkt.types import Predictions, Row

NO_ROWS = np.empty(0, dtype=np.int64)
PAGE = "report.html"


class Evaluation(NamedTuple):
    """Of a model on a split; what is beside its figures on rank 0 alone, which writes it."""

    rows: list[Row]
    predictions: Predictions
    across: Mapping[str, Sequence[Row]] = MappingProxyType({})  # by the name of its file (``across.SHEETS``)
    corrupted: Mapping[str, Predictions] = MappingProxyType({})  # the same rows, by condition
    page: str = ""  # the report, as HTML


def evaluate(
    path: str, overrides: Sequence[str] = (), *, plugins: Sequence[str] = (), out: str | None = None
) -> tuple[Evaluation, Path]:
    """Figures and predictions of a checkpoint, and the folder that they are written to.

    Args:
        path: a checkpoint's folder, or a Hub id.
        overrides: of ``data`` and ``evaluate`` (``data.manifest=other.csv``, ``evaluate.split=validation``).
        plugins: folders or packages that the checkpoint's parts may come from.
        out: where to write; by default ``evaluation-SPLIT`` in the checkpoint's folder.
    """
    accelerator, parts = Accelerator(), Parts(plugins)
    model, config = revived(path, overrides, parts, accelerator, ("data", "evaluate"))
    folder = Path(out) if out else Path(path) / f"evaluation-{config.evaluate.split}"
    return evaluate_model(model, config, folder, parts, accelerator, whole=True), folder


def evaluate_model(
    model: Model, config: Experiment, folder: Path, parts: Parts, accelerator: Accelerator, *, whole: bool = False
) -> Evaluation:
    """Figures and predictions of a revived model, written to a folder; ``whole``: all else that the settings ask for too."""
    data, names = config.data, [config.evaluate.split]
    if whole and config.evaluate.shots:
        names += [name for name in (data.train, data.validation) if name is not None]
    feed, bad = feed_of(model, config, names, parts)
    found = figures(model, feed, parts, accelerator, whole)
    if distributed.rank() == 0:
        write_figures(folder, found, bad)
    distributed.wait()
    return found


def feed_of(model: Model, config: Experiment, names: Sequence[str], parts: Parts) -> tuple[Feed, list[Unreadable]]:
    """The rows of some splits for a model, and those left out as they can't be decoded (``data.bad_rows: drop``)."""
    manifest = open_manifest(config.data, config.seed, parts)
    if config.data.bad_rows != "drop":
        return Feed(manifest, model, config.data, config.seed), []
    looking = Feed(manifest, model, config.data, config.seed, labelled=NO_ROWS)
    bad = looking.unreadable(np.unique(np.concatenate([looking.rows(name) for name in names])))  # others stay, unread
    manifest = splits.without(manifest, {cell.row for cell in bad})
    labelled = np.concatenate([splits.rows_of(manifest, name) for name in names])
    return Feed(manifest, model, config.data, config.seed, labelled=labelled), bad


def revived(
    path: str, overrides: Sequence[str], parts: Parts, accelerator: Accelerator, settable: Sequence[str]
) -> tuple[Model, Experiment]:
    """A checkpoint's model on its device, and its config with overrides of some sections."""
    model = Model.from_pretrained(path, parts.plugins).to(accelerator.device)
    assert model.config is not None
    use_threads(accelerator, model.config.threads)
    fixed = [text for text in overrides if text.split(".")[0] not in settable]
    if fixed:
        can = " and ".join(f"{name}.…" for name in settable)
        raise ConfigError([(fixed[0].partition("=")[0], f"is fixed in a checkpoint; {can} can be set")])
    model.config = check(Experiment, override(model.config.settings(), overrides), parts)
    return model, model.config


def figures(model: Model, feed: Feed, parts: Parts, accelerator: Accelerator, whole: bool = False) -> Evaluation:
    """Predictions on ``evaluate.split`` and their figures; ``whole``: all else that the settings ask for too."""
    config = model.config
    assert config is not None
    settings, rows = config.evaluate, feed.rows(config.evaluate.split)
    _refuse_unlabelled(feed, rows, settings.split)
    asked = plan(model, feed, rows, config, parts) if whole else Plan()
    answers = _answers(model, feed, rows, asked, accelerator, settings.split)
    about = About(Path(config.run).name, "", config.seed, settings.split, "+".join(sorted(model.modalities)), "clean")
    metrics, predictions = judges(model, settings.metrics, parts), answers.whole
    scored = score(predictions, metrics, about=about, resamples=settings.resamples) if metrics else []
    more = across.measure(asked, answers, model, feed, rows, metrics, about) if distributed.rank() == 0 else {}
    page = ""
    if whole and settings.page and distributed.rank() == 0:
        from mmkt import evaluation_page  # it draws: no training has to wait for matplotlib

        story = evaluation_page.Story(
            f"{about.run} on {about.split}", scored, more, predictions, asked, answers.attacked.examples
        )
        page = evaluation_page.render(story, feed, parts)
    kept = [name for name in predictions.table.column_names if not name.startswith("vector.")]
    return Evaluation(scored, predictions._replace(table=predictions.table.select(kept)), more, answers.corrupted, page)


def _refuse_unlabelled(feed: Feed, rows: np.ndarray, split: str) -> None:
    """Before the first pass: what no row has a label of can't be judged."""
    problems = []
    for task, (_, labelled) in feed.labels.items():
        column, where = feed.label_column(task), f"data.labels.{task}"
        if not labelled[rows].any():
            try:
                column_at(feed.manifest, column, where)
                found = f"the column {column!r} is empty in all {len(rows)} rows of {split}"
            except ConfigError as error:
                found = error.problems[0][1]
            problems.append((where, f"{found}. Without labels: mmkt predict, or mmkt embed"))
    if problems:
        raise ConfigError(problems)


def _answers(model: Model, feed: Feed, rows: np.ndarray, asked: Plan, accelerator: Accelerator, split: str) -> across.Answers:
    """Every pass over rows that was planned, with a progress bar."""
    console = Console(stderr=True)
    quiet = distributed.rank() != 0 or not console.is_terminal
    with Progress(*Progress.get_default_columns(), console=console, disable=quiet, transient=True) as bar:

        def run(what: str, some: np.ndarray, call: Callable[..., Any], *given: Any, **more: Any) -> Any:
            task = bar.add_task(what, total=len(some) // distributed.world_size())
            how: Any = {"device": accelerator.device, "autocast": accelerator.autocast, "advance": partial(bar.advance, task)}
            return call(model, feed, some, *given, **how, **more)

        vectors = {"vectors": asked.vectors}
        if asked.subsets:
            by_subset = run(f"evaluating {split}", rows, predict_subsets, asked.subsets, **vectors)
        else:
            by_subset = [run(f"evaluating {split}", rows, predict, **vectors)]
        first, *others = distributed.everyone(feed.cuts)  # of the plain pass: others read the same items again
        for line in first.lines(*others):
            distributed.say(line)
        corrupted: dict[str, Predictions] = {}
        for changes in asked.passes:
            corrupted |= run(f"corrupted: {Condition.of(next(iter(changes))).family}", rows, predict_changed, changes)
        besieged = _attacked(model, feed, asked, accelerator, bar)
        certificates = _certified(model, feed, asked, accelerator, bar)
        pool, validation = (
            None if some is None else run(f"few shots: {name}", some, predict, vectors=True)
            for name, some in (("pool", asked.pool), ("validation", asked.validation))
        )
    # rank 0 alone measures what takes them
    named = across.class_vectors(model, asked, accelerator.device, accelerator.autocast) if distributed.rank() == 0 else {}
    return across.Answers(by_subset, by_subset[-1], corrupted, pool, validation, named, besieged, certificates)


def _attacked(model: Model, feed: Feed, asked: Plan, accelerator: Accelerator, bar: Progress) -> attacked.Found:
    """Every attack that was planned; in full precision, as a gradient's sign is of its last digits."""
    if asked.siege is None:
        return attacked.Found()
    number, count = sum(1 for _ in ways(asked.siege, model)), len(asked.siege.rows)
    task = bar.add_task(f"{number} attacks", total=number * count // distributed.world_size())
    return attacked.lay(model, feed, asked.siege, accelerator.device, partial(bar.advance, task))


def _certified(model: Model, feed: Feed, asked: Plan, accelerator: Accelerator, bar: Progress) -> certified.Certificates | None:
    """What was planned to be certified; in full precision, as attacks are."""
    plan = asked.smoothing
    if plan is None:
        return None
    task = bar.add_task("smoothing", total=len(plan.rows) * (plan.selection + plan.samples) // distributed.world_size())
    return smoothing.certify(model, feed, plan, accelerator.device, partial(bar.advance, task))


def list_bad_rows(bad: Sequence[Unreadable], file: Path) -> None:
    """Why rows were left out, one JSON object a cell: id, column, message."""
    lines = [{"id": cell.row, "column": cell.column, "message": cell.message} for cell in bad]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_figures(folder: Path, found: Evaluation, bad: Sequence[Unreadable] = ()) -> None:
    """``metrics.jsonl``, ``predictions.parquet``, a ``.jsonl`` of all else that was measured, ``bad_rows.jsonl``; old ones go."""
    with checkpoint.atomic(folder) as new:
        report.append(found.rows, new / "metrics.jsonl")
        save(found.predictions, new)
        for name, rows in found.across.items():
            report.append(rows, new / f"{name}.jsonl")
        if found.corrupted:
            save(together(found.corrupted), new, CORRUPTED)
        if found.page:
            (new / PAGE).write_text(found.page, encoding="utf-8")
        if bad:
            list_bad_rows(bad, new / "bad_rows.jsonl")
