"""What an evaluation is asked for beside its figures, and what of it cannot be: all of it known before the first pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmkt import distributed, prompts, robustness, siege, smoothing, subsets
from mmkt.data.columns import codes, some, strings
from mmkt.data.manifest import Manifest
from mmkt.data.rows import Change
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts, nearest


class Plan(NamedTuple):
    """What is asked for; by default nothing."""

    subsets: Sequence[Sequence[str]] = ()
    passes: Sequence[dict[str, dict[str, Change]]] = ()  # a pass over the rows each
    items: np.ndarray | None = None  # of retrieval: which item a row is of
    prompts: Mapping[str, prompts.Prompts] = MappingProxyType({})
    column: str = ""  # of the classes that zero- and few-shot tell apart
    pool: np.ndarray | None = None  # rows that few-shot draws from
    validation: np.ndarray | None = None  # and chooses settings on
    siege: siege.Siege | None = None
    smoothing: smoothing.Smoothing | None = None

    @property
    def vectors(self) -> bool:
        """Whether the rows' vectors are needed."""
        return self.items is not None or bool(self.prompts) or self.pool is not None


def plan(model: Model, feed: Feed, rows: np.ndarray, config: Experiment, parts: Parts) -> Plan:
    """What the settings ask for, with everything refused that cannot be.

    Raises:
        ConfigError: it cannot.
    """
    settings, names = config.evaluate, model.modalities
    _refuse_few(config, names)
    lattice = 2 <= len(names) <= subsets.USUAL if settings.subsets is None else settings.subsets
    if len(names) > subsets.USUAL and settings.subsets is None:
        distributed.say(
            f"{len(names)} modalities have {2 ** len(names) - 1} subsets, which are left out, and evaluate.missing with them: "
            "evaluate.subsets=true brings both"
        )
    aligned = any(spec["name"] == "align" for spec in config.objectives.values())
    near = len(names) > 1 and (aligned if settings.retrieval is None else settings.retrieval)
    if settings.item is not None and not near:
        words = "is of retrieval, which is not evaluated: say evaluate.retrieval=true, or leave it out"
        raise ConfigError([("evaluate.item", words)])
    if settings.label is not None and not (settings.prompts or settings.shots):
        words = "is of zero- and few-shot, which are not evaluated: say evaluate.prompts or evaluate.shots, or leave it out"
        raise ConfigError([("evaluate.label", words)])
    if settings.corruptions and not model.heads:
        words = "are judged by a task's answers, and the model has no head: leave them out"
        raise ConfigError([("evaluate.corruptions", words)])
    kinds = {m: processor.kind for m, processor in feed.processors.items()}
    found = Plan(
        subsets=subsets.power_set(names) if lattice else (),
        passes=robustness.plan(kinds, settings.corruptions, settings.severities, parts) if settings.corruptions else (),
        items=_items(feed, rows, settings.item) if near else None,
        siege=siege.plan(model, feed, rows, settings.robustness, config.seed, parts) if settings.robustness else None,
        smoothing=smoothing.plan(model, feed, rows, settings.smoothing, config.seed) if settings.smoothing else None,
    )
    return _with_classes(found, model, feed, rows, config) if settings.prompts or settings.shots else found


def _refuse_few(config: Experiment, names: Sequence[str]) -> None:
    for name in ("subsets", "retrieval"):
        if getattr(config.evaluate, name) and len(names) < 2:
            words = f"takes two modalities or more, and the model has {names[0]} alone: leave it out"
            raise ConfigError([(f"evaluate.{name}", words)])


def _with_classes(found: Plan, model: Model, feed: Feed, rows: np.ndarray, config: Experiment) -> Plan:
    """With what zero- and few-shot take."""
    settings = config.evaluate
    own = (feed.label_column(task) for task, spec in config.model.heads.items() if spec["name"] == "classify")
    column = settings.label or next(own, None)
    if column is None:
        words = "is required where the model has no head classify: name the column of the classes"
        raise ConfigError([("evaluate.label", words)])
    known = set(label_cells(feed.manifest, column, rows)) - {None}
    if len(known) < 2:
        words = f"{column!r} has {len(known)} class in the {len(rows)} rows of {settings.split}: two or more are told apart"
        raise ConfigError([("evaluate.label", words)])
    found = found._replace(column=column)
    if settings.shots:
        found = _with_shots(found, feed, known, config)
        known |= set(label_cells(feed.manifest, column, feed.rows(config.data.train))) - {None}
    if settings.prompts:
        by_language = prompts.read(settings.prompts)
        prompts.text_modality(model)
        prompts.refuse_missing(by_language, known, settings.prompts, column)
        found = found._replace(prompts=by_language)
    return found


def _with_shots(found: Plan, feed: Feed, known: Collection[Any], config: Experiment) -> Plan:
    """With the rows that few shots are drawn from, and those that settings are chosen on."""
    settings, data = config.evaluate, config.data
    if settings.split in (data.train, data.validation):
        use = "shots are drawn from" if settings.split == data.train else "settings are chosen on"
        words = f"judges other rows than {use}: name another evaluate.split than {settings.split}"
        raise ConfigError([("evaluate.shots", words)])
    pool = feed.rows(data.train)
    counts = Counter(x for x in label_cells(feed.manifest, found.column, pool) if x is not None)
    strange = sorted(set(known) - set(counts))
    if strange:
        words = f"{len(strange)} classes of {settings.split} have no row in {data.train}, which shots are drawn from"
        words += f": {some(strange)}. Zero-shot takes none: evaluate.prompts"
        raise ConfigError([("evaluate.shots", words)])
    name, most = max(counts.items(), key=lambda item: item[1])
    if max(settings.shots) > most:
        words = f"{max(settings.shots)} are more than {data.train} has of any class, {most} of {name!r}: ask for up to {most}"
        raise ConfigError([("evaluate.shots", words)])
    few = sorted(name for name, count in counts.items() if count < max(settings.shots))
    if few:
        distributed.say(f"few shots: {len(few)} classes have fewer than {max(settings.shots)} rows and give all: {some(few)}")
    if data.validation is None:
        distributed.say("few shots: data.validation is null, so that what has a setting (all but ncm) is left out")
    return found._replace(pool=pool, validation=feed.rows(data.validation) if data.validation is not None else None)


def label_cells(manifest: Manifest, column: str, rows: np.ndarray) -> list[Any]:
    """A column's classes of some rows as text, in row order; None where there is no label.

    Raises:
        ConfigError: there is no such column.
        ManifestError: it holds lists.
    """
    cells = column_at(manifest, column, "evaluate.label").take(np.sort(rows))
    return strings(cells, column, "evaluate.label").to_pylist()


def column_at(manifest: Manifest, column: str, where: str) -> pa.ChunkedArray:
    """A column that a setting names.

    Raises:
        ConfigError: there is none.
    """
    table = manifest.table
    if column not in table.column_names:
        words = f"there is no column {column!r}{nearest(column, table.column_names)}; allowed: {', '.join(table.column_names)}"
        raise ConfigError([(where, words)])
    return table[column]


def _items(feed: Feed, rows: np.ndarray, column: str | None) -> np.ndarray:
    """Which item each row is of, in row order; one without a value is of its own."""
    own = np.arange(len(rows))
    if column is None:
        return own
    _, place = codes(column_at(feed.manifest, column, "evaluate.item").take(np.sort(rows)))
    return np.where(place < 0, len(rows) + own, place)


def same_cells(feed: Feed, rows: np.ndarray) -> dict[str, np.ndarray]:
    """By modality, rows with equal cells have equal numbers; those of several columns are each their own."""
    found = {}
    for m, column in feed.columns.items():
        one = isinstance(column, str) and column in feed.manifest.table.column_names
        found[m] = codes(feed.manifest.table[column].take(np.sort(rows)))[1] if one else np.arange(len(rows))
    return found
