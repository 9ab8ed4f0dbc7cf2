"""Which modality was exchanged for another row's, and the right answer all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmkt import distributed, generators
from mmkt.layers.consistency import judged, refuse_two, scores_of
from mmkt.layers.gaussian import pick
from mmkt.layers.unimodal import labels_of
from mmkt.modes import evaluating
from mmkt.types import Batch, Encoded, Objective, Outputs, Phase
from mmkt.victim import precise

if TYPE_CHECKING:
    from mmkt.feed import Feed
    from mmkt.learner import Learner
    from mmkt.model import Model


class OddOneOut(Objective):
    """Training of the fusion ``odd_one_out`` (Yang et al., 2021): −log q_0(x) − log q_m(x') + CE(f(x'), y).

    x' is the row with one of its modalities m, drawn anew, exchanged in the shared space for that of another row of this
    process's batch. q says which modality is odd (q_0: none is), so the fusion learns to find a modality that comes from
    elsewhere, and to answer without it. It goes beside ``classify``, which trains f(x). Rows with three modalities or more count,
    as among two none is the odd one; those that no other row can lend anything are told q_0 alone. A row without a
    label has no CE.

    The paper's perturbed inputs are the objective ``single_source``, which goes beside this one. Rows that ``adversarial``
    attacks in the clean ones' place would be called consistent here: set its ``beside``. In evaluation the exchange is the same
    whenever a batch is.
    """

    contrasts = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        watch: Annotated[int, Field(ge=0)] = 200,
    ):
        """Remember the settings.

        Args:
            dim: unused.
            modalities: of the model.
            outputs: unused.
            domains: unused.
            task: a classification.
            watch: validation rows of which every evaluation logs how often the exchanged modality is found.

        Raises:
            ValueError: fewer than three modalities.
        """
        super().__init__()
        refuse_two(modalities)
        self.task, self.watch = task, watch

    def begin(self, learner: Learner, phase: Phase) -> None:
        """Before a phase.

        Raises:
            ValueError: the model is sharded.
        """
        if distributed.is_sharded(learner):
            raise ValueError("odd_one_out runs the fusion by itself, which FSDP2 has not gathered: launch with ddp.yaml")

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the rows with three modalities or more, ().

        Raises:
            ValueError: the fusion does not say which modality is odd, or the task is no classification.
        """
        y, scores = labels_of(batch, self.task), scores_of(outputs)
        with nullcontext() if self.training else _fixed():
            exchange = exchanged(outputs.encoded, batch)
        answered = model.answer(exchange.parts)
        none = torch.zeros_like(exchange.odd)
        plain = F.cross_entropy(scores, none, reduction="none").masked_fill(~judged(batch.present), 0.0)
        found = F.cross_entropy(scores_of(answered), exchange.odd, reduction="none").masked_fill(~exchange.done, 0.0)
        right = F.cross_entropy(precise(answered.logits[self.task]), y, reduction="none")
        right = right.masked_fill(~(exchange.done & batch.labelled[self.task]), 0.0)
        return (plain + found + right).sum()

    def count(self, batch: Batch) -> Tensor:
        """The rows with three modalities or more."""
        return judged(batch.present).sum()

    def watched(self, learner: Learner, feed: Feed, rows: np.ndarray) -> dict[str, float]:
        """Of validation rows: the share of exchanged modalities that are found, and of rows as they come that raise an alarm."""
        if not self.watch:
            return {}
        some = np.sort(rows)[np.unique(np.linspace(0, len(rows) - 1, min(self.watch, len(rows))).round().astype(np.int64))]
        device = next(learner.parameters()).device
        counts = torch.zeros(4, device=device)
        with evaluating(learner.model), torch.no_grad():
            for batch in feed.evaluation(some):
                batch = batch.to(device)
                outputs = learner.model(batch)
                with _fixed():
                    exchange = exchanged(outputs.encoded, batch)
                found = scores_of(learner.model.answer(exchange.parts)).argmax(1) == exchange.odd
                able, alarm = judged(batch.present), scores_of(outputs).argmax(1) > 0
                counts += torch.stack([(found & exchange.done).sum(), exchange.done.sum(), (alarm & able).sum(), able.sum()])
        found_, done, alarms, able_ = distributed.total(counts).tolist()
        return {"odd found": found_ / done, "odd alarm": alarms / able_} if done else {}


class Exchange(NamedTuple):
    """Rows with a modality from elsewhere."""

    parts: dict[str, Encoded]
    odd: Tensor  # (B,) long: 1 + the place of that modality; 0 or meaningless where not done
    done: Tensor  # (B,) bool


def exchanged(parts: Mapping[str, Encoded], batch: Batch) -> Exchange:
    """Every row that has three modalities gets one of them, drawn from torch's generator, from another row that has it."""
    present = torch.stack([x.present for x in parts.values()], 1)  # (B, M)
    other = batch.row[:, None] != batch.row  # (B, B): a row may be in a batch more than once
    lent = (other.float() @ present.float() > 0) & present & judged(batch.present)[:, None]  # (B, M)
    which = pick(lent)  # (B,)
    donor = pick(other & present.T[which])  # (B,)
    done = lent.any(1)
    found = {}
    for k, (m, own) in enumerate(parts.items()):
        turn = done & (which == k)
        found[m] = Encoded(*(torch.where(turn.view(-1, *[1] * (x.ndim - 1)), x[donor], x) for x in own))
    return Exchange(found, 1 + which, done)


@contextmanager
def _fixed() -> Iterator[None]:
    """What is drawn inside is always the same, and leaves no trace."""
    with generators.untouched():
        torch.manual_seed(0)
        yield
