"""Every modality's own logits: what fusions on logits fuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmkt.layers.presence import apply_each, mean_present, stacked
from mmkt.parts import nearest
from mmkt.types import Batch, Encoded, Fused, Outputs


class UnimodalLogits(nn.Module):
    """A linear layer a modality, for all tasks."""

    def __init__(self, dim: int, modalities: Sequence[str], outputs: Mapping[str, int]):
        super().__init__()
        self.outputs = dict(outputs)
        self.of = nn.ModuleDict({m: nn.Linear(dim, sum(outputs.values())) for m in modalities})

    def forward(self, parts: Mapping[str, Encoded]) -> tuple[Tensor, Tensor]:
        """(B, M, C) logits of all tasks side by side, zero where a modality is missing; presence (B, M)."""
        x, present = stacked(parts)
        logits = apply_each(self.of, x).float()
        return logits.masked_fill(~present[..., None], 0.0), present

    def by_task(self, logits: Tensor) -> dict[str, Tensor]:
        """(…, C) → each task's part."""
        return dict(zip(self.outputs, logits.split(list(self.outputs.values()), -1)))

    def fused(self, parts: Mapping[str, Encoded], logits: Mapping[str, Tensor], notes: Mapping[str, Tensor]) -> Fused:
        """The answer of a fusion on logits; its vector is the mean of what is present, which no parameter stands behind."""
        x, present = stacked(parts)
        return Fused(Encoded.of(mean_present(x, present)), dict(logits), {}, dict(notes))


def classes_of(outputs: Mapping[str, int], task: str) -> dict[str, int]:
    """One task of all, as ``UnimodalLogits`` takes them.

    Raises:
        ValueError: there is no such task.
    """
    if task not in outputs:
        raise ValueError(f"task: there is no {task!r}{nearest(task, outputs)}; allowed: {', '.join(outputs) or 'none'}")
    return {task: outputs[task]}


def labels_of(batch: Batch, task: str) -> Tensor:
    """A classification task's labels, (B,).

    Raises:
        ValueError: the task is no classification.
    """
    y = batch.labels[task]
    if y.is_floating_point():
        raise ValueError(f"the task {task!r} is no classification: this objective takes one whose head is classify")
    return y


def note_of(outputs: Outputs, batch: Batch, kind: str, task: str) -> tuple[Tensor, Tensor]:
    """A fusion's note on a classification task, (B, …), and the labels (B,).

    Raises:
        ValueError: the fusion leaves none, or the task is no classification.
    """
    name, y = f"{kind}.{task}", labels_of(batch, task)
    if name not in outputs.notes:
        fusions = {"evidence": "evidential", "logits": "late and dynamic", "confidence": "dynamic"}[kind]
        raise ValueError(f"the fusion leaves no {kind} of single modalities for the task {task!r}; of ours, {fusions} would")
    return outputs.notes[name], y
