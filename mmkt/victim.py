"""A task's answers as a function of some modalities' raw numbers, all else of a batch fixed: what an attack attacks."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmkt.ball import Ball
from mmkt.goal import Goal, Loss
from mmkt.model import Model
from mmkt.modes import evaluating
from mmkt.parts import ConfigError, nearest
from mmkt.threat import Threat
from mmkt.types import Batch, Encoded

RAW = {"image": "pixels", "audio": "waveform", "text": "input_ids", "features": "vectors"}  # an encoder's kind → its raw numbers
Points = dict[str, Tensor]  # by modality, raw numbers of its N items


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
        threats: by modality, what may be done to it; all of them at once.
        targets: (B,) classes that the attacker wants to be said; None: any but the label.
        seed: of random starts, which are drawn by (seed, place in the manifest, modality, item).

    Raises:
        ConfigError: a modality that the model has not, or that has no raw numbers here; a task without classes.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        task: str,
        threats: Mapping[str, Threat],
        *,
        targets: Tensor | None = None,
        seed: int = 0,
    ):
        refuse(model, task, threats)
        self.model, self.batch, self.task, self.seed = model, batch, task, seed
        self.modalities = tuple(m for m in model.modalities if m in threats and m in batch.inputs)
        self.goal = Goal(batch.labels[task], batch.labelled[task], targets)
        self.rows: dict[str, Tensor] = {}  # by modality, the row that each item is of, (N,)
        self.balls: dict[str, Ball] = {}
        self.passes: Counter[str] = Counter()  # "forward" and "backward", made so far
        with evaluating(model), torch.no_grad():
            for m in self.modalities:
                self._look_at(m, threats[m])
            self.rest = model.encode(batch, [m for m in model.modalities if m not in self.modalities])

    def _look_at(self, m: str, threat: Threat) -> None:
        inputs, encoder = self.batch.inputs[m], self.model.encoders[m]
        if isinstance(inputs, Encoded):
            words = f"{m} comes as cached features, so that nothing reaches its raw numbers: leave out data.features"
            raise ConfigError([("data.features", words)])
        items, raw = inputs["items"], inputs[RAW[encoder.kind]]
        place = items.clamp(min=0).flatten()
        row = torch.zeros(len(raw), dtype=torch.long, device=raw.device)
        where = torch.arange(len(items), device=raw.device)[:, None].expand_as(items).flatten()
        there = items.flatten() >= 0
        row[place[there]] = where[there]
        self.rows[m] = row
        order = torch.zeros(len(raw), dtype=torch.long, device=raw.device)
        nth = torch.arange(items.shape[1], device=raw.device).expand_as(items).flatten()
        order[place[there]] = nth[there]
        numbers = self.batch.row[row].tolist()
        name = self.model.modalities.index(m)
        keys = tuple((number, name, k) for number, k in zip(numbers, order.tolist(), strict=True))
        free = _free(encoder.kind, inputs)
        centre = encoder.embed(raw) if encoder.kind == "text" else raw
        self.balls[m] = Ball.of(centre.detach(), threat, encoder.bounds, free, keys)

    @property
    def attackable(self) -> Tensor:
        """Rows with a label and one of the modalities, (B,) bool."""
        found = torch.zeros(self.batch.size, dtype=torch.bool, device=self.batch.row.device)
        for m in self.modalities:
            found |= self.batch.present[m]
        return found & self.goal.known

    @property
    def clean(self) -> Points:
        """As they came."""
        return {m: ball.centre for m, ball in self.balls.items()}

    def anywhere(self, draw: int) -> Points:
        """Random places within the threats."""
        return {m: ball.anywhere(self.seed, draw) for m, ball in self.balls.items()}

    def put(self, points: Mapping[str, Tensor]) -> Batch:
        """The batch with other raw numbers."""
        inputs = dict(self.batch.inputs)
        for m, x in points.items():
            own: dict[str, Tensor] = dict(inputs[m])  # type: ignore[arg-type]
            if self.model.encoders[m].kind == "text":
                del own["input_ids"]
                own["inputs_embeds"] = x
            else:
                own[RAW[self.model.encoders[m].kind]] = x
            inputs[m] = own
        return self.batch._replace(inputs=inputs)

    def answers(self, points: Mapping[str, Tensor]) -> Tensor:
        """The task's logits, (B, C), with a graph where one is asked for."""
        self.passes["forward"] += 1
        with evaluating(self.model):
            encoded = self.rest | self.model.encode(self.put(points), self.modalities)
            return precise(self.model.fuse(encoded).logits[self.task])

    def logits(self, points: Mapping[str, Tensor]) -> Tensor:
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
        other.balls = dict(balls)
        return other

    def along(self, m: str) -> tuple[int, ...]:
        """The dimensions of an item in which it has a place: height and width, time, tokens."""
        return {"image": (-2, -1), "audio": (-1,)}.get(self.model.encoders[m].kind, (-2,))

    def by_item(self, m: str, x: Tensor) -> Tensor:
        """What is said of rows, (B,), of their items, (N, 1, …)."""
        return x[self.rows[m]].view(-1, *[1] * (self.balls[m].centre.ndim - 1))

    def choose(self, rows: Tensor, ours: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Points:
        """Points of some rows (B,) bool, and others' for all else."""
        return {m: torch.where(self.by_item(m, rows), ours[m], others[m]) for m in others}


def _free(kind: str, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """What of an item may move: not what it is padded with."""
    if kind == "audio":
        raw, lengths = inputs["waveform"], inputs["lengths"]
        return torch.arange(raw.shape[-1], device=raw.device) < lengths[..., None]
    if kind == "text":
        return inputs["attention_mask"].bool()[..., None]
    return inputs["mask"][..., None] if kind == "features" else None


class Worst:
    """The worst points found so far, by row: wrong ones before right ones, then the larger margin."""

    def __init__(self, victim: Victim):
        self.victim, self.points = victim, victim.clean
        size, device = victim.batch.size, victim.batch.row.device
        self.margin = torch.full((size,), -torch.inf, device=device)

    def offer(self, points: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Keep what is worse than before; returns the margins, (B,), above zero where the attacker has what he wants."""
        margin = self.victim.goal.loss("margin", logits)
        better = margin > self.margin
        self.points = self.victim.choose(better, {m: x.detach() for m, x in points.items()}, self.points)
        self.margin = torch.where(better, margin, self.margin)
        return margin


def refuse(model: Model, task: str, threats: Mapping[str, Threat]) -> None:
    """Refuse what cannot be attacked.

    Raises:
        ConfigError: it cannot.
    """
    if task not in model.heads:
        raise ConfigError([("task", f"there is no task {task!r}{nearest(task, model.heads)}; allowed: {', '.join(model.heads)}")])
    if "classes" not in model.heads[task].vocabulary:
        kind = type(model.heads[task]).__name__.lower()
        raise ConfigError([("task", f"{task} has a head {kind}, and attacks make a classifier say another class: name one")])
    for m, threat in threats.items():
        if m not in model.encoders:
            words = f"there is no modality {m!r}{nearest(m, model.encoders)}; the model has {', '.join(model.encoders)}"
            raise ConfigError([(f"threats.{m}", words)])
        kind = model.encoders[m].kind
        if kind not in RAW:
            raise ConfigError([(f"threats.{m}", f"an encoder of {kind} has no raw numbers that may move: leave it out")])
        if kind == "text" and not hasattr(model.encoders[m], "embed"):
            name = type(model.encoders[m]).__name__
            raise ConfigError([(f"threats.{m}", f"{name} has no token embeddings to move: attack its words, or leave it out")])
        threat.refuse(f"threats.{m}")
