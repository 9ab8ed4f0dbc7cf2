"""Learning from another model's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmkt.distributed import gather
from mmkt.types import Batch, Objective, Outputs, Resources

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Distill(Objective):
    """Distillation from a checkpoint that may read other modalities, such as the text of a manifest of pictures and texts.

    ``logits``: T² · KL(softmax(t / T) ‖ softmax(s / T)) (Hinton et al., 2015); of tags the same over yes and no of each; of
    other heads the squared error. ``features``: the squared distance, averaged over dimensions, of the teacher's fused vector
    to a linear map of the student's (FitNets, Romero et al., 2015). ``relations``: of the rows of a batch, over all processes,
    distances relative to their mean, and angles at each row (RKD, Park et al., 2019), which need no map.

    The teacher is asked once, before training: its answers are of the plain rows. It speaks for all of them, labelled or not.
    """

    contrasts = True  # relations are among the rows of a batch

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        teacher: str,
        of: Literal["logits", "features", "relations"] = "logits",
        task: str | None = None,
        temperature: Annotated[float, Field(gt=0)] = 2.0,
        angles: Annotated[float, Field(ge=0)] = 2.0,
    ):
        """Remember the settings.

        Args:
            dim: D, the student's fused width.
            modalities: unused.
            outputs: by task.
            domains: unused.
            teacher: a checkpoint of mmkt, a folder or a Hub id.
            of: what is learned.
            task: whose logits; by default the first.
            temperature: T.
            angles: weight of the angles beside the distances.

        Raises:
            ValueError: there is no task.
        """
        super().__init__()
        self.teacher, self.of, self.temperature, self.angles, self.dim = teacher, of, temperature, angles, dim
        if of == "logits" and not outputs:
            raise ValueError("of: logits needs a task: add a head, or say of: features")
        self.task = task or next(iter(outputs), "")
        self.contrasts = of == "relations"  # type: ignore[misc]

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """Ask the teacher.

        Raises:
            ValueError: it can't be had, or does not answer this task in these classes.
        """
        answers = resources.answers(self.teacher)
        target = answers.pooled
        if self.of == "logits":
            if self.task not in answers.logits:
                known = ", ".join(answers.logits) or "no task"
                raise ValueError(f"task: the teacher {self.teacher} answers {known}, not {self.task!r}; say of: features")
            target = _translated(
                answers.logits[self.task], answers.vocabularies[self.task], learner.model.heads[self.task].vocabulary
            )
        if self.of == "features":
            self.map = nn.Linear(self.dim, target.shape[1])
        place = torch.full((int(answers.row.max()) + 1,), -1)
        place[answers.row] = torch.arange(len(answers.row))
        self.register_buffer("target", target, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over this rank's rows, ()."""
        target: Any = self.target
        teacher = target[self.place[batch.row]].float()  # type: ignore[index]
        if self.of == "features":
            return (self.map(outputs.fused.pooled).float() - teacher).square().mean(1).sum()
        if self.of == "relations":
            return self._relations(outputs.fused.pooled.float(), teacher)
        student, t, kind = outputs.logits[self.task].float(), self.temperature, type(model.heads[self.task]).__name__.lower()
        if kind == "classify":
            return t**2 * F.kl_div((student / t).log_softmax(1), (teacher / t).log_softmax(1), log_target=True, reduction="sum")
        if kind == "tag":
            both = [torch.stack([F.logsigmoid(x / t), F.logsigmoid(-x / t)]) for x in (student, teacher)]
            return t**2 * F.kl_div(both[0], both[1], log_target=True, reduction="sum")
        return (student - teacher).square().sum()

    def _relations(self, student: Tensor, teacher: Tensor) -> Tensor:
        loss = student.sum() * 0.0
        every = [gather(student), gather(teacher)]
        if len(every[0]) < 3:
            return loss  # two rows have no angle, and one distance is its own mean
        distances, angles = zip(*(_distances_and_angles(x, y) for x, y in zip((student, teacher), every)))
        loss = loss + F.smooth_l1_loss(distances[0], distances[1], reduction="sum") / (len(every[0]) - 1)
        return loss + self.angles * F.smooth_l1_loss(angles[0], angles[1], reduction="sum") / len(every[0]) ** 2

    def count(self, batch: Batch) -> Tensor:
        """All rows."""
        return torch.full((), batch.size, device=batch.row.device)


def _distances_and_angles(x: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows (b, D) among all (B, D): distances over their mean, (b, B), and cosines of the angles at a row, (b, B, B)."""
    apart = every[None] - x[:, None]  # (b, B, D)
    distances = (apart.square().sum(2) + 1e-12).sqrt()
    all_apart = (every[None] - every[:, None]).square().sum(2)
    mean = (all_apart + 1e-12).sqrt().sum() / (len(every) * (len(every) - 1))
    unit = apart / distances[..., None].clamp(min=1e-6)
    return distances / mean, unit @ unit.transpose(1, 2)


def _translated(logits: Tensor, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Tensor:
    """A teacher's logits in the student's terms: its order of classes, its unit of a number."""
    kinds = [[key for key in vocabulary if key != "calibration"] for vocabulary in (theirs, ours)]
    if set(kinds[0]) != set(kinds[1]):
        found = f"the teacher's has {', '.join(kinds[0])}, the student's {', '.join(kinds[1])}"
        raise ValueError(f"the task's heads are of two kinds ({found}): give it one kind of head, or say of: features")
    if "std" in ours:  # of a regression, each in standard deviations of its own training split
        return (logits * theirs["std"] + theirs["mean"] - ours["mean"]) / ours["std"]
    before, now = theirs.get("classes"), ours.get("classes")
    if before == now:
        return logits
    if before is None or now is None or set(before) != set(now):
        raise ValueError(
            f"the teacher's classes are {before}, the student's {now}: they have to be the same, or say of: features"
        )
    return logits[:, [before.index(c) for c in now]]
