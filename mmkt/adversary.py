"""What adversarial training shares: who is attacked in a step, from which random place, and rows put in place of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmkt import distributed
from mmkt.generators import seed_of
from mmkt.parts import nearest
from mmkt.threat import Threat
from mmkt.types import Attack, Batch
from mmkt.victim import RAW, Points, Victim, precise, refuse

if TYPE_CHECKING:
    from mmkt.model import Model

Moved = dict[str, dict[str, Tensor]]  # by modality: other raw numbers, or how far token embeddings are shifted


class Adversary(nn.Module):
    """Threats to a task, carried out anew in every step.

    What is random is drawn by (seed, step, row), so that a row's attack depends neither on the others of its batch nor on the
    number of processes or accumulated batches; seed and step are buffers, so that a resumed run goes on to the bit.

    The model is attacked in ``eval()``, in full precision whatever ``train.precision`` says: dropout and batch norms rest, and no
    parameter gets a gradient.

    Args:
        task: of a head ``classify``.
        threats: by modality.
        modalities: of the model.
        jointly: all threats at once; otherwise each row draws one of those modalities that it has.
        share: of the rows that are attacked in a step, drawn row by row.
        labelled: only rows that have a label are.

    Raises:
        ValueError: no threat, one of a modality that the model has not, or one that allows nothing.
    """

    seed: Tensor
    step: Tensor

    def __init__(
        self,
        task: str,
        threats: Mapping[str, Threat],
        modalities: Sequence[str],
        *,
        jointly: bool = True,
        share: float = 1.0,
        labelled: bool = True,
    ):
        super().__init__()
        if not threats:
            raise ValueError(f"threats: needs one or more, {{{modalities[0]}: {{norm: linf, eps: 0.03}}}}")
        for m, threat in threats.items():
            if m not in modalities:
                found = f"there is no modality {m!r}{nearest(m, modalities)}"
                raise ValueError(f"threats.{m}: {found}; the model has {', '.join(modalities)}")
            threat.refuse(f"threats.{m}")
        self.task, self.threats, self.jointly, self.share, self.labelled = task, dict(threats), jointly, share, labelled
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def prepare(self, model: Model, *names: str) -> None:
        """Draw the seed, as the model was drawn; nothing else is drawn otherwise for it.

        Args:
            model: attacked.
            names: of the objective: what one draws is not what another does.

        Raises:
            ConfigError: the task is no classification, or a modality has no raw numbers that may move.
        """
        refuse(model, self.task, self.threats)
        with torch.random.fork_rng(devices=[]):
            drawn = int(torch.randint(2**62, ()))
        self.seed.copy_(torch.tensor(seed_of(drawn, *names)))

    def refuse_sharded(self, model: nn.Module) -> None:
        """Before a phase.

        Raises:
            ValueError: the model is sharded.
        """
        if distributed.is_sharded(model):
            raise ValueError("attacks run parts of the model by themselves, which FSDP2 has not gathered: launch with ddp.yaml")

    def refuse_attack(self, attack: Attack) -> None:
        """Refuse an attack that cannot keep to the threats.

        Raises:
            ValueError: so it is.
        """
        name = type(attack).__name__.lower()
        if attack.moves != "numbers":
            words = "a threat limits numbers: take fgsm, pgd, apgd or square"
            raise ValueError(f"attack: {name} changes {attack.moves}, and {words}")
        if not attack.keeps:
            raise ValueError(f"attack: {name} goes as far as it likes, and threats say how far: take fgsm, pgd, apgd or square")
        for m, threat in self.threats.items():
            if threat.norm not in attack.norms:
                raise ValueError(f"threats.{m}.norm: {name} keeps to {' or '.join(attack.norms)}, found {threat.norm}")

    def stepped(self) -> None:
        """The next step draws other numbers."""
        self.step += 1

    def victim(self, model: Model, batch: Batch) -> Victim:
        """A batch to attack; what has no turn in this step has no room to move."""
        seed = seed_of(int(self.seed), int(self.step))
        victim = Victim(model, batch, self.task, self.threats, seed=seed)
        turns = self._turns(batch, victim.modalities, seed)
        return victim.within({m: b._replace(eps=b.eps * victim.by_item(m, turns[m])) for m, b in victim.balls.items()})

    def _turns(self, batch: Batch, modalities: Sequence[str], seed: int) -> dict[str, Tensor]:
        """Whether a row is attacked, by modality, (B,) bool."""
        able = batch.labelled[self.task] if self.labelled else torch.ones_like(batch.labelled[self.task])
        turns = {m: able & batch.present[m] for m in modalities}
        if self.share < 1:
            on = torch.tensor([_uniform(seed, "share", row) < self.share for row in batch.row.tolist()], device=able.device)
            turns = {m: turn & on for m, turn in turns.items()}
        if not self.jointly and turns:
            there = torch.stack([batch.present[m] for m in modalities], 1)  # (B, M)
            drawn = torch.tensor([_uniform(seed, "modality", row) for row in batch.row.tolist()], device=able.device)
            chosen = (drawn * there.sum(1)).long()  # the how manieth of those that the row has
            place = there.cumsum(1) - 1
            turns = {m: turns[m] & (place[:, k] == chosen) for k, m in enumerate(modalities)}
        return turns

    def answers(self, model: Model, batch: Batch, several: Sequence[Moved]) -> list[Tensor]:
        """The task's logits (B, C) of the same rows moved in several ways, with a graph; what stays is encoded once for all."""
        rest = model.encode(batch, [m for m in model.modalities if m not in several[0]])
        moved = [rest | model.encode(put(model, batch, way), [*way]) for way in several]
        return [precise(model.fuse(encoded).logits[self.task]) for encoded in moved]


def climb(victim: Victim, points: Points, loss: Callable[[Tensor], Tensor], steps: int, size: float) -> list[Points]:
    """Steps uphill, each back into the threats.

    Args:
        victim: who is attacked.
        points: from there.
        loss: of logits (B, C), by row (B,).
        steps: how many.
        size: of each, as a share of ε.

    Returns:
        Where it began, and where each step led.
    """
    found = [points]
    for _ in range(steps):
        found.append(victim.moved(found[-1], victim.slope(found[-1], loss).gradients, size))
    return found


def moved(victim: Victim, points: Mapping[str, Tensor]) -> Moved:
    """Points as a batch carries them (``Batch.views``)."""
    found: Moved = {}
    for m, ball in victim.balls.items():
        x = points[m].detach()
        found[m] = {"shift": x - ball.centre} if victim.model.encoders[m].kind == "text" else {"raw": x}
    return found


def put(model: Model, batch: Batch, way: Mapping[str, Mapping[str, Tensor]]) -> Batch:
    """The batch moved. Token embeddings are looked up here and then shifted, so that what training moves is their table too."""
    inputs = dict(batch.inputs)
    for m, numbers in way.items():
        own: dict[str, Tensor] = dict(inputs[m])  # type: ignore[arg-type]
        encoder = model.encoders[m]
        if encoder.kind == "text":
            own["inputs_embeds"] = encoder.embed(own.pop("input_ids")) + numbers["shift"]
        else:
            own[RAW[encoder.kind]] = numbers["raw"]
        inputs[m] = own
    return batch._replace(inputs=inputs)


def carried(batch: Batch, key: str) -> Moved:
    """What was crafted under a key, {} where nothing was: in evaluation, and where no row has any of the modalities."""
    return batch.views.get(key, {})  # type: ignore[return-value]


def carry(batch: Batch, ways: Mapping[str, Moved]) -> Batch:
    """The batch with what was crafted beside it, by key."""
    return batch._replace(views={**batch.views, **ways})  # type: ignore[dict-item]


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(reference) ‖ softmax(logits)), (B,), of logits (B, C) each."""
    log_p, log_q = reference.log_softmax(1), logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _uniform(seed: int, what: str, row: int) -> float:
    """In [0, 1)."""
    return seed_of(seed, what, row) / 2**63
