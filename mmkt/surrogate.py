"""Another checkpoint, on which attacks are found for a model that shows no gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmkt import distributed
from mmkt.data.columns import is_absent, some
from mmkt.data.manifest import column_of
from mmkt.data.rows import items_of, load
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.raw import RAW, rows_of
from mmkt.threat import Threat
from mmkt.types import Attack, Batch, Encoder, Moves, Processor
from mmkt.victim import Victim

WHERE = "evaluate.robustness.source"


class Surrogate(NamedTuple):
    """What is wrong for one model is often wrong for another (Szegedy et al., 2014; Papernot et al., 2016).

    It reads the same rows through its own processors. Attacks see it alone.
    """

    name: str
    model: Model
    feed: Feed
    shared: Mapping[Moves, Collection[str]]  # by what moves, the modalities of which it means the same to both models
    task: str
    order: Tensor  # (C,) long: its number of each class

    def takes(self, attack: Attack, modalities: Collection[str]) -> bool:
        """Whether what an attack finds here is something there: numbers that gradients found within ε, or symbols."""
        found = attack.moves != "numbers" or (attack.gradients and attack.keeps)
        return found and all(m in self.shared.get(attack.moves, ()) for m in modalities)

    def batches(self, rows: np.ndarray, device: torch.device) -> Iterator[Batch]:
        """Of the same rows as the other feed's, in the same order."""
        return (batch.to(device) for batch in self.feed.evaluation(rows))

    def rows_of(self, batch: Batch, rows: Tensor, theirs: Batch) -> Batch:
        """Some rows of a batch, with the labels that the other model's batch has of them."""
        own = rows_of(batch, rows, list(batch.inputs))
        assert torch.equal(own.row, theirs.row), "both feeds have the same rows"
        labels = own.labels | {self.task: self.order.to(own.row.device)[theirs.labels[self.task]]}
        return own._replace(labels=labels, labelled=own.labelled | {self.task: theirs.labelled[self.task]})

    def victim(
        self, theirs: Victim, batch: Batch, threats: Mapping[str, Threat | None], texts: Mapping[str, Sequence[str]]
    ) -> Victim:
        """What is attacked here so that the other model is wrong.

        Args:
            theirs: the other model, with the same rows.
            batch: of ``rows_of``.
            threats: that it is under.
            texts: where texts are changed.

        Raises:
            ConfigError: a row's raw inputs are not the same.
        """
        more: Any = {"seed": theirs.seed, "moves": theirs.moves, "texts": texts}
        if theirs.goal.targets is not None:
            more["targets"] = self.order.to(batch.row.device)[theirs.goal.targets]
        own = Victim(self.model, batch, self.task, threats, **more)
        for m, ours in own.came.items():
            other = theirs.came[m]
            if isinstance(ours, Tensor) and isinstance(other, Tensor) and not _equal(ours, other):
                at = f"rows {some([str(row) for row in batch.row.tolist()])} of the manifest"
                raise ConfigError([(WHERE, f"{_differ(self.name, m, ours, other)}, in {at}; {ADVICE}")])
        return own


ADVICE = "points go over where both read the same: give a checkpoint that does, or leave the modality out of threats"


def surrogate(path: str, model: Model, feed: Feed, rows: np.ndarray, task: str, threats: Mapping[str, Threat]) -> Surrogate:
    """A checkpoint that attacks can be found on, with everything refused that cannot be.

    Args:
        path: a folder, or a Hub id.
        model: that is attacked.
        feed: of it; what is attacked is read from the same columns.
        rows: attacked.
        task: attacked.
        threats: what numbers are moved, by modality.

    Raises:
        ConfigError: it cannot be loaded, lacks a modality, the task or its classes, or reads raw inputs otherwise.
    """
    try:
        other = Model.from_pretrained(path, model.plugins)
    except ValueError as error:
        raise ConfigError([(WHERE, str(error))]) from error
    assert other.config is not None
    # @ stands before a factor in the names of conditions
    name = Path(other.config.run).name.replace("@", "-")
    order = _order(name, other, model, task)
    for m in threats:
        _refuse_encoder(name, m, other, model.encoders[m])
    own, other = _feed(name, other, feed, threats), other.to(next(model.parameters()).device)
    shared: dict[Moves, list[str]] = {"numbers": [], "tokens": [], "texts": []}
    for m in (m for m in threats if m in other.encoders):
        if model.encoders[m].kind != "text":
            _refuse_inputs(name, m, own, feed, rows)
            shared["numbers"].append(m)
            continue
        shared["texts"].append(m)
        tokens, numbers = _same_words(m, (other, own), (model, feed), rows)
        shared["tokens"] += [m] * tokens
        shared["numbers"] += [m] * numbers
    for what, same in (("token embeddings", shared["numbers"]), ("tokens", shared["tokens"])):
        apart = [m for m in threats if model.encoders[m].kind == "text" and m not in same]
        if apart:
            distributed.say(f"{name} has other {what} of {', '.join(apart)}, or none, so that what is found in them is left out")
    return Surrogate(name, other, own, shared, task, order)


def _order(name: str, other: Model, model: Model, task: str) -> Tensor:
    """The surrogate's number of each class of the task, (C,)."""
    classes = {t: head.vocabulary["classes"] for t, head in other.heads.items() if "classes" in head.vocabulary}
    if task not in classes:
        found = ", ".join(classes) or "none"
        words = f"{name} has no classifier of {task!r}, which is attacked; those that it has: {found}. Give one of the same task"
        raise ConfigError([(WHERE, words)])
    ours, theirs = model.heads[task].vocabulary["classes"], classes[task]
    if set(ours) != set(theirs):
        here, there = ([str(x) for x in a if x not in b] for a, b in ((ours, theirs), (theirs, ours)))
        words = (
            f"{name} tells other classes of {task} apart: {some(there) or 'none'} are there alone, {some(here) or 'none'} here"
        )
        raise ConfigError([(WHERE, f"{words}. Give a checkpoint that was trained on the same classes")])
    return torch.tensor([theirs.index(x) for x in ours])


def _refuse_encoder(name: str, m: str, other: Model, ours: Encoder) -> None:
    """Refuse a surrogate without the modality (of text its own embeddings go nowhere anyway), or with one of another kind."""
    if m not in other.encoders:
        if ours.kind != "text":
            words = f"{name} has no {m}, which is attacked; it has {', '.join(other.encoders)}: give a checkpoint that has it, "
            raise ConfigError([(WHERE, f"{words}or say what of these is attacked: evaluate.robustness.threats")])
        return
    theirs = other.encoders[m]
    for what, there, here in (("kind", theirs.kind, ours.kind), ("bounds", theirs.bounds, ours.bounds)):
        if there != here:
            raise ConfigError([(WHERE, f"{name} reads {m} by an encoder of the {what} {there}, needed is {here}: {ADVICE}")])


def _feed(name: str, other: Model, feed: Feed, shared: Collection[str]) -> Feed:
    """The same manifest's rows for the surrogate; labels are the other feed's."""
    data, known = feed.data, set(other.modalities)
    assert other.config is not None
    theirs = other.config.data
    columns = {m: feed.columns[m] if m in shared else theirs.columns.get(m, m) for m in other.modalities}
    for m, column in columns.items():
        named = [column] if isinstance(column, str) else column
        if not set(named) & set(feed.manifest.table.column_names):
            words = f"{name} reads {m} from {', '.join(named)}, which the manifest does not have: add a column, or give another"
            raise ConfigError([(WHERE, words)])
    update = {
        "columns": columns,
        "dropout": {},
        "one_of": [m for m in data.one_of if m in known],
        "pad_to": {m: size for m, size in data.pad_to.items() if m in known},
    }
    return Feed(feed.manifest, other, data.model_copy(update=update), feed.seed, labelled=np.empty(0, dtype=np.int64))


def _items(feed: Feed, m: str, rows: np.ndarray) -> Iterator[Tensor]:
    """Raw numbers, or ids, of each item that rows have of a modality."""
    processor, column = feed.processors[m], column_of(feed.manifest, feed.columns[m])
    for row in rows.tolist():
        cell = column[row].as_py()
        if not is_absent(cell):
            loaded = (load(item, processor, feed.manifest.root, feed.limits) for item in items_of(cell, processor))
            yield from (processor.pad([processor(item)])[RAW[processor.kind]] for item in loaded)


def _refuse_inputs(name: str, m: str, own: Feed, feed: Feed, rows: np.ndarray) -> None:
    """Refuse a surrogate that reads the first row's item otherwise; all others are looked at when they are attacked."""
    there, here = (next(_items(one, m, rows), torch.zeros(0)) for one in (own, feed))
    if not _equal(there, here):
        rates = _rates(own.processors[m], feed.processors[m])
        raise ConfigError([(WHERE, f"{_differ(name, m, there, here)}{rates}; {ADVICE}")])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _differ(name: str, m: str, there: Tensor, here: Tensor) -> str:
    """How the raw inputs of an item differ."""
    if there.shape != here.shape:
        sizes = [" × ".join(map(str, x.shape[1:])) for x in (there, here)]
        return f"{name} reads {m} as {sizes[0]} numbers, needed are {sizes[1]}"
    return f"{name} reads {m} as other numbers of the same size (as cropping or interpolation makes them)"


def _rates(own: Processor, other: Processor) -> str:
    apart = own.kind == "audio" and own.rate != other.rate
    return f" ({own.rate} Hz there, {other.rate} Hz here)" if apart else ""


def _same_words(m: str, theirs: tuple[Model, Feed], ours: tuple[Model, Feed], rows: np.ndarray) -> tuple[bool, bool]:
    """Whether the token ids of the rows' texts, and those that may replace them, are the same; whether their embeddings are."""
    device, encoders = next(ours[0].parameters()).device, list[Any]()
    encoders += [model.encoders[m] for model, _ in (theirs, ours)]
    vocabularies = [encoder.tokenizer.get_vocab() if hasattr(encoder, "tokenizer") else None for encoder in encoders]
    tokens = vocabularies[0] is not None and vocabularies[0] == vocabularies[1]
    numbers = all(hasattr(encoder, "embed") for encoder in encoders)
    for pair in zip(*(_items(feed, m, rows) for _, feed in (theirs, ours)), strict=True):
        if not _equal(*pair):
            return False, False
        with torch.no_grad():
            numbers = numbers and _equal(*(encoder.embed(x.to(device)) for encoder, x in zip(encoders, pair)))
    return tokens, numbers
