"""The cells of an ablation: their names, the settings they stand for, and what is refused before anything is built."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmkt.config import written
from mmkt.experiment import Experiment
from mmkt.parts import ConfigError, nearest
from mmkt.study import Ablation as File

BUDGET = ("data.batch_size", "data.tokens", "train.epochs", "train.steps", "train.accumulate", "train.patience")
OWN = {  # settings that the study gives itself, and by what
    **dict.fromkeys(("train.lr",), "lr"),
    **dict.fromkeys(("seed",), "seeds"),
    **dict.fromkeys(("train.select",), "metric"),
    **dict.fromkeys(("data.features", "model.start", "train.save_every"), "encoders and features"),
    **dict.fromkeys(("run", "trackers", "evaluate.resamples", "evaluate.page"), "itself"),
}


class Task(NamedTuple):
    """What cells are compared on: a data set and the modalities of it that are used."""

    data: str
    modalities: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(word for word in (self.data, "+".join(self.modalities)) if word)


class Cell(NamedTuple):
    """One line of the table."""

    task: Task
    label: str  # of the factors' values

    def __str__(self) -> str:
        where = str(self.task)
        return f"{self.label} ({where})" if where else self.label


class Key(NamedTuple):
    """One training."""

    cell: Cell
    lr: float
    seed: int


def _unknown(label: str, known: Sequence[str]) -> str:
    return f"there is no {label!r} in the study{nearest(label, known)}; allowed: {', '.join(known)}"


def labels_of(study: File) -> dict[str, list[str]]:
    """Every combination of the factors' values, by its label: ``key=value`` of each."""
    found: dict[str, list[str]] = {}
    for combination in itertools.product(*(list(_values(name, factor)) for name, factor in study.factors.items())):
        label = ", ".join(word for word, _ in combination)
        if label in found:
            raise ConfigError(
                [("factors", f"{label!r} stands for two combinations: give labels (fusion: {{name: [key=value]}})")]
            )
        found[label] = [text for _, settings in combination for text in settings]
    return found


def _values(name: str, factor: list[Any] | dict[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    if not factor:
        raise ConfigError([(f"factors.{name}", "is empty: give one value or more")])
    if isinstance(factor, dict):
        yield from factor.items()
        return
    for value in factor:
        plain = isinstance(value, str) and "." in name and name != "model.start"
        words = (
            value if plain else _named(value) if isinstance(value, dict) and "name" in value else f"{name.split('.')[-1]} {value}"
        )
        yield words, [f"{name}={written(value)}"]


def _named(value: Mapping[str, Any]) -> str:
    """A part with settings as a label: ``tensor dim=8``."""
    return " ".join([str(value["name"]), *(f"{key}={x}" for key, x in value.items() if key != "name")])


def refuse_names(study: File, labels: Mapping[str, list[str]], baseline: str) -> None:
    """Refuse names that the study does not have, and settings that it gives itself."""
    named = [*labels, *study.ensembles]
    if baseline not in labels:
        raise ConfigError([("baseline", _unknown(baseline, list(labels)))])
    problems = [(f"rates.{label}", _unknown(label, list(labels))) for label in study.rates if label not in labels]
    for name, members in study.ensembles.items():
        problems += [(f"ensembles.{name}", _unknown(x, list(labels))) for x in members if x not in labels]
    if len(set(named)) < len(named):
        problems.append(("ensembles", "an ensemble has a label of its own, which no cell has"))
    owned = OWN | ({study.match: "match"} if study.match else {})  # beside the baseline's value of it, in settings
    places = [("settings", study.settings), *((f"factors ({label})", texts) for label, texts in labels.items())]
    for where, texts in places:
        known = OWN if where == "settings" else owned
        mine = [text.partition("=")[0] for text in texts if text.partition("=")[0] in known]
        problems += [(where, f"{name} is set by the study ({owned[name]}), not here") for name in mine]
    if len(set(study.seeds)) < len(study.seeds):
        problems.append(("seeds", f"{study.seeds} has a seed twice"))
    if study.intervals and len(study.seeds) < 2:
        words = f"{len(study.seeds)} leaves no interval: give two or more (five for a verdict), or intervals=false"
        problems.append(("seeds", words))
    for where, rates in (("lr", study.lr), *((f"rates.{label}", some) for label, some in study.rates.items())):
        if len(set(rates)) < len(rates):
            problems.append((where, f"{rates} has a rate twice"))
    if problems:
        raise ConfigError(problems)


def refuse_budget(cell: Cell, config: Experiment, baseline: str, base: Experiment) -> None:
    """Refuse a cell that trains longer or shorter than the baseline."""
    for name in BUDGET:
        section, _, field = name.partition(".")
        here, there = (getattr(getattr(x, section), field) for x in (config, base))
        if here != there:
            words = f"({cell}) has {here!r}, {baseline} has {there!r}: cells are compared at an equal budget"
            raise ConfigError([(name, words)])
