"""Contrast against a moving average of the model, and a queue of what it said before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from mmkt import distributed
from mmkt.layers import contrast
from mmkt.layers.contrast import Positive, Rows
from mmkt.modes import evaluating
from mmkt.types import Batch, Objective, Outputs, Phase, Resources

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Momentum(Objective):
    """Momentum contrast (MoCo, He et al., 2020; between modalities ALBEF, Li et al., 2021).

    For a pair (a, b) InfoNCE of the model's a against the teacher's b of this batch (of all processes) and of the last
    ``queue`` rows before it, and the other way round. The teacher is the model with its parameters' moving average,
    θ' ← decay · θ' + (1 − decay) · θ after every step, in evaluation mode. A row is no negative of itself, when it comes back
    while it is in the queue. Averages and queue are buffers: they are saved with the state to resume from.
    """

    contrasts = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        queue: Annotated[int, Field(ge=0)] = 4096,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.995,
        temperature: Positive = 0.07,
        temperature_bounds: tuple[Positive, Positive] = (0.01, 100.0),
        learn_temperature: bool = True,
        between: list[str] | None = None,
        anchor: str | None = None,
        parameters: list[str] = ["encoders", "space"],  # noqa: B006 - never changed
        chunk: Annotated[int, Field(ge=1)] | None = None,
    ):
        """Make the queue.

        Args:
            dim: D.
            modalities: of the model.
            outputs: unused.
            domains: unused.
            queue: keys of each modality that are kept; 0: those of the batch alone.
            decay: of the average.
            temperature: at the start.
            temperature_bounds: it stays between them.
            learn_temperature: or it stays as it is.
            between: modalities that are compared, by default all.
            anchor: compare this one with each of them, and no others.
            parameters: patterns of the model's parameters that are averaged; name what trains, the others are the model's.
            chunk: rows whose scores are held at a time; all by default.

        Raises:
            ValueError: fewer than two modalities, or one that there is not.
        """
        super().__init__()
        self.pairs = contrast.pairs(modalities, between, anchor)
        self.decay, self.patterns, self.chunk, self.size = decay, parameters, chunk, queue
        self.temperature = contrast.Temperature(temperature, temperature_bounds, learned=learn_temperature)
        self.names: dict[str, str] = {}  # of an averaged parameter → its buffer here
        self.compared = list(dict.fromkeys(m for pair in self.pairs for m in pair))
        for m in self.compared:
            self.register_buffer(f"keys_{m}", torch.zeros(queue, dim))
            self.register_buffer(f"there_{m}", torch.zeros(queue, dtype=torch.bool))
        self.register_buffer("rows", torch.full((queue,), -1))  # of the manifest
        self.register_buffer("next", torch.zeros(1, dtype=torch.long))  # where the queue is written to
        self.fresh: dict[str, Rows] = {}  # keys of the step at hand

    rows: Tensor
    next: Tensor

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """The average begins as the model is.

        Raises:
            ValueError: a pattern matches none of the model's parameters.
        """
        own = dict(learner.model.named_parameters())
        idle = [pattern for pattern in self.patterns if not learner.matching([pattern])]
        if idle:
            raise ValueError(f"parameters: {idle[0]!r} matches no parameter")
        for name, parameter in learner.matching(self.patterns).items():
            if name not in own:
                raise ValueError(f"parameters: {name} is none of the model's: the teacher is a model, without objectives")
            self.names[name] = f"average_{len(self.names)}"
            self.register_buffer(self.names[name], parameter.detach().clone())

    def begin(self, learner: Learner, phase: Phase) -> None:
        """Say what is averaged for nothing."""
        still = sum(p.numel() for name, p in learner.named().items() if name in self.names and not p.requires_grad)
        if still:
            words = f"momentum averages, and saves, {still:,} numbers that do not train in the phase {phase.name}"
            distributed.say(f"{words}: parameters=[…] names those that do")

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over this rank's rows and the pairs, ().

        Raises:
            ValueError: the model is sharded.
        """
        if distributed.is_sharded(model):
            raise ValueError("momentum averages whole parameters, which FSDP2 has not: launch with ddp.yaml")
        taught = self._taught(model, batch)
        with contrast.precise(batch.row.device):
            return self._summed(batch, outputs, taught)

    def _taught(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The teacher's vectors of this rank's rows, by modality, (B, D)."""
        averages = {name: getattr(self, buffer) for name, buffer in self.names.items()}
        with evaluating(model), torch.no_grad():
            encoded = functional_call(model, averages, (batch,)).encoded
        return {m: encoded[m].pooled for m in self.compared}

    def _summed(self, batch: Batch, outputs: Outputs, taught: Mapping[str, Tensor]) -> Tensor:
        scale, _ = self.temperature()
        vectors = {m: outputs.encoded[m].pooled for m in self.compared}
        mine, theirs = (contrast.sides(x, batch, batch.row, training=self.training) for x in (vectors, taught))
        self.fresh = {m: contrast.everywhere(x) for m, x in theirs.items()}
        loss = sum((x.vectors.sum() for x in mine.values()), start=scale.sum()) * 0.0  # connected even when no row has two
        for a, b in self.pairs:
            for x, y in ((a, b), (b, a)):
                queries = mine[x]._replace(there=mine[x].there & mine[y].there)
                losses = contrast.by_rows(contrast.info_nce, queries, self._keys(y), scale, None, self.chunk)
                loss = loss + 0.5 * losses.sum()
        return loss

    def _keys(self, m: str) -> Rows:
        """The teacher's vectors of this step and of the queue."""
        old = Rows(getattr(self, f"keys_{m}"), getattr(self, f"there_{m}"), torch.full_like(self.rows, -1), self.rows)
        return Rows(*(torch.cat([new, kept.to(new.dtype)]) for new, kept in zip(self.fresh[m], old)))

    def count(self, batch: Batch) -> Tensor:
        """Rows that have both of a pair, over the pairs."""
        return sum((batch.present[a] & batch.present[b]).sum() for a, b in self.pairs)  # type: ignore[return-value]

    @torch.no_grad()
    def stepped(self, learner: Learner, progress: float) -> None:
        """Move the average, and put the step's keys in the place of the oldest."""
        named = learner.named()
        for name, buffer in self.names.items():
            getattr(self, buffer).lerp_(named[name], 1 - self.decay)
        fresh, self.fresh = self.fresh, {}
        n = min(len(next(iter(fresh.values())).place), self.size) if fresh else 0
        if n:
            index = (self.next + torch.arange(n, device=self.next.device)) % self.size
            for m, keys in fresh.items():
                getattr(self, f"keys_{m}")[index] = keys.vectors[:n].to(getattr(self, f"keys_{m}").dtype)
                getattr(self, f"there_{m}")[index] = keys.there[:n]
            self.rows[index] = next(iter(fresh.values())).same[:n]
            self.next.copy_((self.next + n) % self.size)
