"""A checkpoint evaluated: figures and predictions of a split, with all modalities and with every subset of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress

from mmkt import checkpoint, distributed, report, retrieval, subsets
from mmkt.config import check, override
from mmkt.data import splits
from mmkt.data.check import Unreadable
from mmkt.data.columns import codes
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.launcher import use_threads
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts, nearest
from mmkt.predictions import judges, predict, predict_subsets, save
from mmkt.preparation import open_manifest
from mmkt.score import About, score
from mmkt.types import Predictions, Row

NO_ROWS = np.empty(0, dtype=np.int64)


class Evaluation(NamedTuple):
    """Of a model on a split; what is across modalities on rank 0 alone, which writes it."""

    rows: list[Row]
    predictions: Predictions
    subsets: Sequence[Row] = ()  # with some of the modalities (``subsets.measure``)
    retrieval: Sequence[Row] = ()  # from one modality to another (``retrieval.measure``)


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
    return evaluate_model(model, config, folder, parts, accelerator, across=True), folder


def evaluate_model(
    model: Model, config: Experiment, folder: Path, parts: Parts, accelerator: Accelerator, *, across: bool = False
) -> Evaluation:
    """Figures and predictions of a revived model, written to a folder; ``across`` modalities too if wanted."""
    feed, bad = feed_of(model, config, config.evaluate.split, parts)
    found = figures(model, feed, parts, accelerator, across)
    if distributed.rank() == 0:
        write_figures(folder, found, bad)
    distributed.wait()
    return found


def feed_of(model: Model, config: Experiment, split: str, parts: Parts) -> tuple[Feed, list[Unreadable]]:
    """The rows of a split for a model, and those left out as they can't be decoded (``data.bad_rows: drop``)."""
    manifest = open_manifest(config.data, config.seed, parts)
    if config.data.bad_rows != "drop":
        return Feed(manifest, model, config.data, config.seed), []
    looking = Feed(manifest, model, config.data, config.seed, labelled=NO_ROWS)
    bad = looking.unreadable(looking.rows(split))  # those of other splits stay, unread
    manifest = splits.without(manifest, {cell.row for cell in bad})
    return Feed(manifest, model, config.data, config.seed, labelled=splits.rows_of(manifest, split)), bad


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


def figures(model: Model, feed: Feed, parts: Parts, accelerator: Accelerator, across: bool = False) -> Evaluation:
    """Predictions on ``evaluate.split`` and their figures; ``across``: of every subset of the modalities, and retrieval."""
    config = model.config
    assert config is not None
    settings, names = config.evaluate, model.modalities
    console, chosen = Console(stderr=True), feed.rows(settings.split)
    lattice, vectors = _across(config, names) if across else (False, False)
    some = subsets.power_set(names) if lattice else [names]
    about_items = (_items(feed, chosen, settings.item), _cells(feed, chosen)) if vectors else None
    quiet = distributed.rank() != 0 or not console.is_terminal
    with Progress(*Progress.get_default_columns(), console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task(f"evaluating {settings.split}", total=len(chosen) // distributed.world_size())
        how: Any = {"device": accelerator.device, "autocast": accelerator.autocast, "advance": partial(bar.advance, task)}
        how["vectors"] = vectors
        answers = predict_subsets(model, feed, chosen, some, **how) if lattice else [predict(model, feed, chosen, **how)]
    first, *others = distributed.everyone(feed.cuts)
    for line in first.lines(*others):
        distributed.say(line)
    about = About(Path(config.run).name, "", config.seed, settings.split, "+".join(sorted(names)), "clean")
    metrics, predictions, times = judges(model, settings.metrics, parts), answers[-1], settings.resamples  # of all modalities
    rows = score(predictions, metrics, about=about, resamples=times) if metrics else []
    if distributed.rank() != 0:
        lattice, about_items = False, None
    by_subset = subsets.measure(answers, names, metrics, about=about, resamples=times) if lattice else []
    found = retrieval.measure(predictions, names, *about_items, about=about, resamples=times) if about_items else []
    kept = [name for name in predictions.table.column_names if not name.startswith("vector.")]
    return Evaluation(rows, predictions._replace(table=predictions.table.select(kept)), by_subset, found)


def _across(config: Experiment, names: Sequence[str]) -> tuple[bool, bool]:
    """Whether every subset is evaluated, and retrieval.

    Raises:
        ConfigError: what is asked for cannot be.
    """
    settings, count = config.evaluate, len(names)
    aligned = any(spec["name"] == "align" for spec in config.objectives.values())
    for name in ("subsets", "retrieval"):
        if getattr(settings, name) and count < 2:
            words = f"takes two modalities or more, and the model has {names[0]} alone: leave it out"
            raise ConfigError([(f"evaluate.{name}", words)])
    lattice = 2 <= count <= subsets.USUAL if settings.subsets is None else settings.subsets
    vectors = count > 1 and (aligned if settings.retrieval is None else settings.retrieval)
    if settings.item is not None and not vectors:
        words = "is of retrieval, which is not evaluated: say evaluate.retrieval=true, or leave it out"
        raise ConfigError([("evaluate.item", words)])
    if count > subsets.USUAL and settings.subsets is None:
        distributed.say(f"{count} modalities have {2**count - 1} subsets, which are left out: evaluate.subsets=true brings them")
    return lattice, vectors


def _cells(feed: Feed, rows: np.ndarray) -> dict[str, np.ndarray]:
    """By modality, rows with equal cells have equal numbers; those of several columns are each their own."""
    found = {}
    for m, column in feed.columns.items():
        one = isinstance(column, str) and column in feed.manifest.table.column_names
        found[m] = codes(feed.manifest.table[column].take(np.sort(rows)))[1] if one else np.arange(len(rows))
    return found


def _items(feed: Feed, rows: np.ndarray, column: str | None) -> np.ndarray:
    """Which item each row is of, in row order; one without a value is of its own."""
    own = np.arange(len(rows))
    if column is None:
        return own
    table = feed.manifest.table
    if column not in table.column_names:
        words = f"there is no column {column!r}{nearest(column, table.column_names)}; allowed: {', '.join(table.column_names)}"
        raise ConfigError([("evaluate.item", words)])
    _, place = codes(table[column].take(np.sort(rows)))
    return np.where(place < 0, len(rows) + own, place)


def list_bad_rows(bad: Sequence[Unreadable], file: Path) -> None:
    """Why rows were left out, one JSON object a cell: id, column, message."""
    lines = [{"id": cell.row, "column": cell.column, "message": cell.message} for cell in bad]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_figures(folder: Path, found: Evaluation, bad: Sequence[Unreadable] = ()) -> None:
    """``metrics.jsonl``, ``predictions.parquet``; ``subsets``, ``retrieval``, ``bad_rows.jsonl`` where there are; old ones go."""
    with checkpoint.atomic(folder) as new:
        report.append(found.rows, new / "metrics.jsonl")
        save(found.predictions, new)
        for name in ("subsets", "retrieval"):
            if getattr(found, name):
                report.append(getattr(found, name), new / f"{name}.jsonl")
        if bad:
            list_bad_rows(bad, new / "bad_rows.jsonl")
