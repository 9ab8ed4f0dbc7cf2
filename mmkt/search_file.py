"""What a search's file may say, and the space that it spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from mmkt.config import FORMAT, Section, check, merge, written
from mmkt.experiment import Count
from mmkt.parts import ConfigError, Parts

Number = int | Annotated[float, Field(allow_inf_nan=False)]
OTHER_ROWS = "trials would be judged on other rows, and their values could not be compared"
NO_PART = "is not what a trial is trained by"
FIXED = {  # settings that no search may vary, or have within what it varies, and why
    "run": "every trial has a folder of its own",
    "seed": "it would choose luck: search the settings, then train the best ones with several seeds",
    "train.select": "is the search's metric",
    **dict.fromkeys(("format", "plugins", "evaluate", "card", "trackers"), NO_PART),
    **{f"data.{name}": OTHER_ROWS for name in ("source", "origin", "manifest", "labels", "validation", "test", "fold")},
    **{f"data.{name}": OTHER_ROWS for name in ("fractions", "bad_rows")},
}


class Search(Section):
    """A search for the settings with which an experiment does best on validation."""

    format: int = FORMAT
    experiment: str
    """The experiment file that every trial starts from."""
    settings: list[str] = []
    """``key=value``, of every trial."""
    run: str = "checkpoints/search"
    """The search's folder; each trial has one in it."""
    space: dict[str, Any]
    """Dotted setting → a list of choices (any values, parts with settings too), or ``{low, high, log, step}``."""
    trials: Count = 30
    """How many in all, those that were pruned or failed included; more may be asked for later."""
    metric: str | None = None
    """``task/metric`` on validation; by default the first head's first metric."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the sampler."""
    startup: Count = 10
    """Trials drawn at random before the sampler learns from what they gave."""
    pruning: bool = True
    """Stop trials that do badly early (Hyperband)."""
    min_evaluations: Count = 1
    """Evaluations on validation that pruning leaves to every trial."""
    storage: Literal["journal", "sqlite"] = "journal"
    """What remembers the trials, in the search's folder."""


class RangeOf(Section):
    """Numbers from low to high; whole ones where both ends (and the step) are."""

    low: Number
    high: Number
    log: bool = False
    """Equally many from each order of magnitude."""
    step: Number | None = None


class Choices(NamedTuple):
    """One of several values, by how they are typed."""

    labels: tuple[str, ...]

    def ends(self) -> tuple[str, ...]:
        """What a check of the experiment tries."""
        return self.labels


class Range(NamedTuple):
    """A number between two."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    def ends(self) -> tuple[str, ...]:
        """What a check of the experiment tries."""
        return written(self.low), written(self.high)


def space_of(search: Search) -> dict[str, Choices | Range]:
    """The space, by dotted setting.

    Raises:
        ConfigError: all that is wrong with it by itself; what the experiment allows is not looked at.
    """
    found: dict[str, Choices | Range] = {}
    problems: list[tuple[str, str]] = []
    for name, value in _flat(search.space).items():
        try:
            _refuse_fixed(name)
            found[name] = _choices(value) if isinstance(value, list) else _range(value)
        except ConfigError as error:
            problems += [(".".join(x for x in ("space", name, path) if x), text) for path, text in error.problems]
    problems += [(f"space.{name}", text) for name, text in _nested(list(found))]
    if not problems and not found:
        problems = [("space", "is empty: name settings to search, such as train.lr: {low: 1.0e-4, high: 1.0e-2, log: true}")]
    if problems:
        raise ConfigError(problems)
    return found


def _flat(space: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted settings: what a command line says (``space.train.lr.high=0.1``) is laid over the file's, null takes one out."""
    found: dict[str, Any] = {}
    for key, value in space.items():
        name = f"{path}.{key}" if path else str(key)
        inner = _flat(value, name) if isinstance(value, Mapping) and value and not {"low", "high"} & set(value) else {name: value}
        for place, one in inner.items():
            found[place] = merge(found[place], one) if place in found else one
    return {name: value for name, value in found.items() if path or value is not None}


def _choices(values: list[Any]) -> Choices:
    labels = [written(value) for value in values]
    if not labels:
        raise ConfigError("has no choices: give one or more, such as [concat, gated]")
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(f"has a choice twice: {', '.join(sorted(twice))}")
    return Choices(tuple(labels))


def _range(value: Any) -> Range:
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"should be a list of choices, or {{low, high, log, step}}, found {value!r}")
    given = check(RangeOf, value, Parts())
    low, high, step = given.low, given.high, given.step
    if low >= high:
        raise ConfigError(f"low should be below high, found {low:g} and {high:g}; for one value give a list: [{low:g}]")
    if given.log and low <= 0:
        raise ConfigError(f"with log, low should be above 0, found {low:g}")
    if step is not None:
        if given.log:
            raise ConfigError("log and step don't go together: leave one out")
        if step <= 0 or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
            raise ConfigError(f"high should be some steps above low, found {low:g} to {high:g} in steps of {step:g}")
    whole = all(isinstance(x, int) for x in (low, high, *(() if step is None else (step,))))
    return Range(low, high, given.log, step, whole)


def _refuse_fixed(name: str) -> None:
    for fixed, why in FIXED.items():
        if f"{name}.".startswith(f"{fixed}.") or f"{fixed}.".startswith(f"{name}."):
            raise ConfigError(f"{fixed} cannot be searched: {why}")


def _nested(names: list[str]) -> Iterator[tuple[str, str]]:
    """Settings of which one lies in another: what the second may be would depend on what the first is."""
    for name in names:
        outer = name.removesuffix(".name")
        for other in names:
            if other != name and f"{other}.".startswith(f"{outer}."):
                yield (
                    name,
                    f"{other} lies in it: give {outer} whole choices, such as {{name: tensor, width: 8}}, and leave that out",
                )
