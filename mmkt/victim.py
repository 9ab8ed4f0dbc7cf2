"""A task's answers as a function of some modalities' raw inputs, all else of a batch fixed: what an attack attacks."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mmkt.ball import Ball
from mmkt.goal import Goal, Loss
from mmkt.modes import evaluating
from mmkt.parts import ConfigError
from mmkt.raw import RAW, free, owners, places, refuse, replaced, rows_of, without
from mmkt.threat import Threat
from mmkt.types import Batch, Encoded, Moves

if TYPE_CHECKING:
    from mmkt.model import Model

Points = dict[str, Tensor]  # by modality, raw numbers of its N items
Symbols = Mapping[str, Tensor | list[str]]  # or whatever else an attack moves: see ``types.Attack``


def precise(logits: Tensor) -> Tensor:
    """In float32, or as they are where that is more."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Slope(NamedTuple):
    """Of a loss at some points."""

    losses: Tensor  # (B,)
    logits: Tensor  # (B, C)
    gradients: Points


class Victim:
    """A model, a batch and what may be changed about it. The model is used in ``eval()`` and left as it was.

    Encoders of modalities that stay as they are run once. Neither parameters' gradients nor random generators are touched.

    Args:
        model: on the batch's device.
        batch: its rows; those without a label, or without any of the modalities, cannot be attacked and stay as they are.
        task: of a head ``classify``.
        threats: by modality, what may be done to it; all of them at once. None where an attack's own settings say it.
        targets: (B,) classes that the attacker wants to be said; None: any but the label.
        seed: of random starts, which are drawn by (seed, place in the manifest, modality, item).
        moves: what the attack changes, its ``moves``.
        texts: where texts are changed, by modality, those of its N items (``texts.texts_of`` reads them).

    Raises:
        ConfigError: a modality that the model has not, or that has nothing of what moves; a task without classes.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        task: str,
        threats: Mapping[str, Threat | None],
        *,
        targets: Tensor | None = None,
        seed: int = 0,
        moves: Moves = "numbers",
        texts: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ):
        refuse(model, task, threats, moves)
        self.model, self.batch, self.task, self.seed, self.moves = model, batch, task, seed, moves
        self.modalities = tuple(m for m in model.modalities if m in threats and m in batch.inputs)
        self.goal = Goal(batch.labels[task], batch.labelled[task], targets)
        self.rows: dict[str, Tensor] = {}  # by modality, the row that each item is of, (N,)
        self.keys: dict[str, tuple[tuple[int, ...], ...]] = {}  # of each item: what its random numbers are drawn by
        self.balls: dict[str, Ball] = {}  # of numbers
        self.came: dict[str, Tensor | list[str]] = {}  # the points as they came
        self.passes: Counter[str] = Counter()  # "forward" and "backward", made so far
        with evaluating(model), torch.no_grad():
            for m in self.modalities:
                if moves == "presence":
                    self.came[m] = batch.present[m]
                else:
                    self._look_at(m, threats[m], texts)

    @cached_property
    def rest(self) -> dict[str, Encoded]:
        """The modalities that stay as they are, encoded when they are first asked for."""
        with evaluating(self.model), torch.no_grad():
            return self.model.encode(self.batch, [m for m in self.model.modalities if m not in self.modalities])

    def _look_at(self, m: str, threat: Threat | None, texts: Mapping[str, Sequence[str]]) -> None:
        inputs, encoder = self.batch.inputs[m], self.model.encoders[m]
        if isinstance(inputs, Encoded):
            words = f"{m} comes as cached features, so that nothing reaches its raw {self.moves}: leave out data.features"
            raise ConfigError([("data.features", words)])
        raw = inputs[RAW[encoder.kind]]
        self.rows[m], order = owners(inputs["items"], len(raw))
        numbers, name = self.batch.row[self.rows[m]].tolist(), self.model.modalities.index(m)
        self.keys[m] = tuple((number, name, k) for number, k in zip(numbers, order.tolist(), strict=True))
        if self.moves == "tokens":
            self.came[m] = raw
        elif self.moves == "texts":
            self.came[m] = self._strings(m, texts.get(m), len(raw))
        else:
            assert threat is not None, "refused"
            centre = encoder.embed(raw) if encoder.kind == "text" else raw
            self.balls[m] = Ball.of(centre.detach(), threat, encoder.bounds, free(encoder.kind, inputs), self.keys[m])
            self.came[m] = self.balls[m].centre

    def _strings(self, m: str, texts: Sequence[str] | None, count: int) -> list[str]:
        """The texts of a modality, checked against the batch."""
        if texts is None or len(texts) != count or not all(isinstance(text, str) for text in texts):
            found = "none" if texts is None else f"{len(texts)}, or others than single strings"
            words = f"an attack of texts needs the strings of the batch's {count} items, found {found}"
            raise ConfigError([(f"texts.{m}", f"{words}: texts_of(feed, batch, modalities) reads them")])
        return list(texts)

    @property
    def attackable(self) -> Tensor:
        """Rows with a label and one of the modalities, (B,) bool."""
        found = torch.zeros(self.batch.size, dtype=torch.bool, device=self.batch.row.device)
        for m in self.modalities:
            found |= self.batch.present[m]
        return found & self.goal.known

    @property
    def clean(self) -> dict[str, Any]:
        """As they came."""
        return dict(self.came)

    def anywhere(self, draw: int) -> Points:
        """Random places within the threats."""
        return {m: ball.anywhere(self.seed, draw) for m, ball in self.balls.items()}

    def uniform(self, draw: int) -> Points:
        """Random places of the threats' balls, which may lie beyond the bounds."""
        return {m: ball.uniform(self.seed, draw) for m, ball in self.balls.items()}

    def put(self, points: Symbols) -> Batch:
        """The batch with other raw numbers, ids or texts, or with modalities that rows no longer have."""
        inputs, present = dict(self.batch.inputs), dict(self.batch.present)
        for m, x in points.items():
            own = inputs[m]
            if isinstance(x, Tensor) and x.dtype == torch.bool:
                inputs[m], present[m] = without(own, x), present[m] & x
            elif len(x):  # no row that is asked about has any
                assert not isinstance(own, Encoded), "refused"
                inputs[m] = replaced(self.model.encoders[m], own, x)
            else:
                del inputs[m]
        return self.batch._replace(inputs=inputs, present=present)

    def encoded(self, points: Symbols) -> dict[str, Encoded]:
        """Every modality, in its encoder's width."""
        with evaluating(self.model):
            return self.rest | self.model.encode(self.put(points), self.modalities)

    def fused(self, encoded: Mapping[str, Encoded]) -> Tensor:
        """The task's logits, (B, C)."""
        self.passes["forward"] += 1
        with evaluating(self.model):
            return precise(self.model.fuse(encoded).logits[self.task])

    def answers(self, points: Symbols) -> Tensor:
        """The task's logits, (B, C), with a graph where one is asked for."""
        return self.fused(self.encoded(points))

    def logits(self, points: Symbols) -> Tensor:
        """(B, C), without a gradient."""
        with torch.no_grad():
            return self.answers(points)

    def slope(self, points: Mapping[str, Tensor], loss: Loss | Callable[[Tensor], Tensor]) -> Slope:
        """A loss (a larger one is a worse answer), and its gradient by the raw numbers of each row's items alone.

        Args:
            points: where.
            loss: one of the goal's, or any of logits (B, C), by row (B,).
        """
        leaves = {m: x.detach().requires_grad_() for m, x in points.items()}
        with torch.enable_grad():
            logits = self.answers(leaves)
            losses = loss(logits) if callable(loss) else self.goal.loss(loss, logits)
            found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        self.passes["backward"] += 1
        gradients = {m: torch.zeros_like(x) if g is None else g for (m, x), g in zip(leaves.items(), found, strict=True)}
        return Slope(losses.detach(), logits.detach(), gradients)

    def moved(self, points: Mapping[str, Tensor], gradients: Mapping[str, Tensor], share: Tensor | float) -> Points:
        """A step uphill of a share of ε in every modality, and back into the threats.

        Args:
            points: from there.
            gradients: of a loss.
            share: one for all, or (B,) by row.
        """
        found = {}
        for m, ball in self.balls.items():
            size = share if isinstance(share, float) else self.by_item(m, share)
            found[m] = ball.project(points[m] + size * ball.eps * ball.steepest(gradients[m]))
        return found

    def within(self, balls: Mapping[str, Ball]) -> Victim:
        """The same, with other limits around the same items."""
        other = copy.copy(self)
        other.balls, other.came = dict(balls), {m: ball.centre for m, ball in balls.items()}
        return other

    def aimed(self, targets: Tensor) -> Victim:
        """The same, for an attacker who wants these classes (B,) to be said."""
        other = copy.copy(self)
        other.goal = self.goal._replace(targets=targets)
        return other

    def along(self, m: str) -> tuple[int, ...]:
        """The dimensions of an item in which it has a place: height and width, time, tokens."""
        return {"image": (-2, -1), "audio": (-1,)}.get(self.model.encoders[m].kind, (-2,))

    def by_item(self, m: str, x: Tensor) -> Tensor:
        """What is said of rows, (B,), of their items, (N, 1, …)."""
        return x[self.rows[m]].view(-1, *[1] * (self.balls[m].centre.ndim - 1))

    def choose(self, rows: Tensor, ours: Symbols, others: Symbols) -> dict[str, Any]:
        """Points of some rows (B,) bool, and others' for all else."""
        return {m: self._choose(m, rows, ours[m], others[m]) for m in others}

    def _choose(self, m: str, rows: Tensor, ours: Tensor | list[str], others: Tensor | list[str]) -> Tensor | list[str]:
        if self.moves == "presence":
            return torch.where(rows, ours, others)  # type: ignore[arg-type]
        mine = rows[self.rows[m]]
        if isinstance(ours, Tensor):
            return torch.where(mine.view(-1, *[1] * (ours.ndim - 1)), ours, others)  # type: ignore[arg-type]
        return [a if own else b for own, a, b in zip(mine.tolist(), ours, others, strict=True)]

    def again(self, rows: Tensor, points: Symbols) -> tuple[Victim, dict[str, Any]]:
        """The same for some of its rows, any row as often as wanted, and their points: to ask about many changes at once.

        Args:
            rows: (Q,) places in the batch.
            points: ids or texts of the whole batch; a row's items come one after the other, as ``raw.places`` says.
        """
        other, found = copy.copy(self), dict[str, Any]()
        other.batch = rows_of(self.batch, rows, self.modalities)
        other.goal = Goal(*(None if x is None else x[rows] for x in self.goal))  # type: ignore[arg-type]
        other.rest = {m: Encoded(*(x[rows] for x in encoded)) for m, encoded in self.rest.items()}
        other.rows, other.keys, other.came = {}, {}, found
        for m, x in points.items():
            own = places(self.batch.inputs[m]["items"], rows)  # type: ignore[call-overload]
            found[m] = x[own] if isinstance(x, Tensor) else [x[k] for k in own.tolist()]
            other.rows[m], _ = owners(other.batch.inputs[m]["items"], len(own))  # type: ignore[call-overload]
            other.keys[m] = tuple(self.keys[m][k] for k in own.tolist())
        return other, found
