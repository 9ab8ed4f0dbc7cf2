"""A model under attack, and what it answers then."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mmkt import distributed
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.modes import evaluating
from mmkt.parts import ConfigError
from mmkt.raw import rows_of
from mmkt.robust_accuracy import NOTHING, Outcome, Trial
from mmkt.siege import Siege, Way, ways
from mmkt.texts import texts_of
from mmkt.types import Batch
from mmkt.victim import Symbols, Victim


class Example(NamedTuple):
    """A row that an attack turned."""

    row: int
    trial: Trial
    before: Mapping[str, Tensor | str]  # its first item, by modality: raw numbers, or a text
    after: Mapping[str, Tensor | str]
    far: Mapping[str, float]
    said: tuple[int, int]  # class before and after


class Found(NamedTuple):
    """Of all attacks."""

    outcomes: Mapping[Trial, Outcome] = MappingProxyType({})
    examples: Sequence[Example] = ()


def lay(model: Model, feed: Feed, siege: Siege, device: torch.device, advance: Callable[[int], object] = id) -> Found:
    """Attack every row in every way.

    Args:
        model: on its device, not sharded; left as it was.
        feed: of the rows.
        siege: what is attacked, how.
        device: of the model.
        advance: is told how many rows of this process are done with one of the ways.

    Returns:
        On every process, the whole.
    """
    every = list(ways(siege, model))
    found: list[tuple[np.ndarray, dict[Trial, _Part]]] = []
    examples: list[Example] = []
    for batch, twin in _batches(feed, siege, device):
        with evaluating(model), torch.no_grad():
            logits = model(batch).logits[siege.task]
        _refuse_not_finite(logits, batch, siege.task)
        said = logits.argmax(1)
        right = said == batch.labels[siege.task]
        clean = _Part(right, said, {}, torch.ones_like(right))
        # an attacker leaves alone what is wrong already
        stage = _Stage.of(model, feed, siege, batch, twin, right.nonzero().flatten())
        own = {NOTHING: clean.cpu()}
        for way in every:
            part = stage.tried(way, clean, examples)
            own[way.trial] = part._replace(able=_able(batch, way)).cpu()
            advance(batch.size)
        found.append((batch.row.cpu().numpy(), own))
    gathered = [part for parts in distributed.everyone(found) for part in parts]
    return Found(_together(gathered), [x for some in distributed.everyone(examples) for x in some])


def _refuse_not_finite(logits: Tensor, batch: Batch, task: str) -> None:
    """What is not a number is never worse: such a model would seem to withstand everything."""
    bad = ~logits.isfinite().all(1)
    if bad.any():
        rows = f"{int(bad.sum())} of {batch.size} rows (the first is row {int(batch.row[bad][0])} of the manifest)"
        raise ConfigError([("evaluate.robustness", f"{task}'s logits are not finite for {rows}: mend the checkpoint first")])


def _batches(feed: Feed, siege: Siege, device: torch.device) -> Iterator[tuple[Batch, Batch | None]]:
    """This process's batches, as the model takes them and as the surrogate does."""
    batches = (batch.to(device) for batch in feed.evaluation(siege.rows))
    if siege.surrogate is None:
        return ((batch, None) for batch in batches)
    return zip(batches, siege.surrogate.batches(siege.rows, device), strict=True)


class _Stage(NamedTuple):
    """A batch's rows that are attacked."""

    model: Model
    siege: Siege
    batch: Batch
    rows: Tensor  # their places in the whole batch
    twin: Batch | None  # the same rows as the surrogate takes them
    texts: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, model: Model, feed: Feed, siege: Siege, batch: Batch, twin: Batch | None, rows: Tensor) -> _Stage:
        """Some of a batch's rows."""
        some = rows_of(batch, rows, list(batch.inputs))
        texts = texts_of(feed, some, [m for m in siege.texts if m in some.inputs]) if len(rows) else {}
        if siege.surrogate is not None and twin is not None:
            twin = siege.surrogate.rows_of(twin, rows, some)
        return cls(model, siege, some, rows, twin, texts)

    def tried(self, way: Way, clean: _Part, examples: list[Example]) -> _Part:
        """What is answered under an attack by all of the batch's rows; a row that it turned may become an example."""
        victim = self.victim(way)
        if victim is None:  # no row of this batch can be attacked so
            return clean._replace(source=None if way.surrogate is None else clean.right)
        finder = self.finder(way, victim)
        points = way.attack(finder)
        shown = {example.row for example in examples if example.trial.surface == way.trial.surface}
        part, example = _tried(victim, points, way.trial, way.attack.keeps, shown)
        if way.surrogate is not None:
            part = part._replace(source=~finder.goal.reached(finder.logits(points)))
        if example is not None and way.trial.factor == 1 and len(shown) < self.siege.examples:
            examples.append(example)
        return part.among(clean, self.rows)

    def victim(self, way: Way) -> Victim | None:
        """The model with what may be changed; None where none of it is there."""
        if not self.batch.size or not any(m in self.batch.inputs for m in way.surface.threats):
            return None
        more: Any = {"seed": self.siege.seed, "moves": way.attack.moves, "texts": self.texts}
        if self.siege.target is not None:
            more["targets"] = torch.full_like(self.batch.labels[self.siege.task], self.siege.target)
        return Victim(self.model, self.batch, self.siege.task, way.surface.threats, **more)

    def finder(self, way: Way, victim: Victim) -> Victim:
        """What the attack sees: the model itself, or the surrogate."""
        if way.surrogate is None:
            return victim
        assert self.twin is not None, "batches come with the surrogate's"
        return way.surrogate.victim(victim, self.twin, way.surface.threats, self.texts)


class _Part(NamedTuple):
    """Of a batch's rows under one attack."""

    right: Tensor  # (B,) bool
    said: Tensor  # (B,) long
    far: dict[str, Tensor]  # (B,) by modality
    able: Tensor  # (B,) bool
    source: Tensor | None = None  # (B,) bool

    def among(self, whole: _Part, rows: Tensor) -> _Part:
        """This of some rows, in the place of theirs."""

        def put(x: Tensor, into: Tensor) -> Tensor:
            return into.index_put((rows,), x)

        far = {m: put(x, x.new_zeros(len(whole.right))) for m, x in self.far.items()}
        source = None if self.source is None else put(self.source, torch.zeros_like(whole.right))
        return _Part(put(self.right, whole.right), put(self.said, whole.said), far, whole.able, source)

    def cpu(self) -> _Part:
        """Where other processes can have it."""
        return pytree.tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, self)


def _able(batch: Batch, way: Way) -> Tensor:
    """Rows that have what is attacked, (B,) bool; of modalities that may go missing two or more."""
    there = torch.stack([batch.present[m] for m in way.surface.threats]).sum(0)
    return there >= (2 if way.attack.moves == "presence" else 1)


def _tried(victim: Victim, points: Symbols, trial: Trial, keeps: bool, shown: Collection[int]) -> tuple[_Part, Example | None]:
    """What is said of points, and the first row that they turned and that was not shown yet."""
    logits = victim.logits(points)
    said, right, far = logits.argmax(1), ~victim.goal.reached(logits), {}
    for m, ball in victim.balls.items():
        own = ball if keeps else ball._replace(norm="l2")
        zero = torch.zeros(len(said), dtype=ball.centre.dtype, device=ball.centre.device)
        far[m] = zero.scatter_reduce(0, victim.rows[m], own.far(points[m]), "amax")  # type: ignore[arg-type]
    turned = [k for k in (~right).nonzero().flatten().tolist() if int(victim.batch.row[k]) not in shown]
    if not turned:
        return _Part(right, said, far, torch.ones_like(right)), None
    k = turned[0]
    before, after = ({m: _shown(victim, m, x[m], k) for m in victim.modalities} for x in (victim.clean, points))
    pair = int(victim.goal.labels[k]), int(said[k])
    example = Example(int(victim.batch.row[k]), trial, before, after, {m: float(x[k]) for m, x in far.items()}, pair)
    return _Part(right, said, far, torch.ones_like(right)), example


def _shown(victim: Victim, m: str, x: Tensor | list[str], k: int) -> Tensor | str:
    """A row's first item of a modality among some points: its numbers without padding, its text, or whether it is there."""
    if victim.moves == "presence":
        return f"{m} is there" if x[k] else f"no {m}"
    items = (victim.rows[m] == k).nonzero().flatten()
    if not len(items):
        return f"no {m}"
    place = int(items[0])
    if victim.moves == "tokens":
        return victim.model.encoders[m].tokenizer.decode(x[place], skip_special_tokens=True)
    if victim.moves == "texts":
        return str(x[place])
    assert isinstance(x, Tensor)
    return x[place][tuple(map(slice, victim.balls[m].extents()[place]))].float().cpu()


def _together(parts: Sequence[tuple[np.ndarray, dict[Trial, Any]]]) -> dict[Trial, Outcome]:
    order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
    found = {}
    for trial in parts[0][1]:
        some = [own[trial] for _, own in parts]
        names = list(dict.fromkeys(m for part in some for m in part.far))
        moved = {m: [part.far[m] if m in part.far else np.zeros(len(part.right)) for part in some] for m in names}
        far = {m: np.concatenate(each)[order] for m, each in moved.items()}
        right, said, able = (torch.cat([getattr(x, key) for x in some]).numpy()[order] for key in ("right", "said", "able"))
        sources = [x.source for x in some if x.source is not None]
        found[trial] = Outcome(right, said, far, able, torch.cat(sources).numpy()[order] if sources else None)
    return found
