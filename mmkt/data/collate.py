"""From items to a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmkt.data.rows import Inputs, Item
from mmkt.data.sampling import Draw
from mmkt.types import Batch, Encoded, Processor


class Collate:
    """A DataLoader's ``collate_fn``: items in, ``Batch`` out (see there for shapes)."""

    def __init__(
        self,
        modalities: Sequence[str],
        processors: Mapping[str, Processor],
        labels: Mapping[str, tuple[Tensor, Tensor]],
        domain: Tensor,
        group: Tensor,
    ):
        """Remember what is looked up by row.

        Args:
            modalities: all of them, in the model's order.
            processors: by modality.
            labels: by task, (rows, …) labels and (rows,) bool which rows have one.
            domain: (rows,) long, −1 where unnamed.
            group: (rows,) long, −1 where unnamed.
        """
        self.modalities, self.processors, self.labels = list(modalities), dict(processors), dict(labels)
        self.domain, self.group = domain, group

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Stack and pad B items."""
        # every item has the same views, those that the dataset makes
        views = {view: self._inputs([item.views[view] for item in items]) for view in items[0].views}
        inputs = self._inputs([item.inputs for item in items])
        present = {m: torch.tensor([m in item.inputs for item in items]) for m in self.modalities}
        return self.of([item.key for item in items], inputs, present, views)

    def of(self, keys: Sequence[Draw], inputs: dict[str, Any], present: dict[str, Tensor], views: dict[str, dict]) -> Batch:
        """What is looked up by row, beside what was made of B draws."""
        row = torch.tensor([key.row for key in keys])
        return Batch(
            inputs=inputs,
            present=present,
            labels={task: labels[row] for task, (labels, _) in self.labels.items()},
            labelled={task: labelled[row] for task, (_, labelled) in self.labels.items()},
            views=views,
            row=row,
            domain=self.domain[row],
            group=self.group[row],
            stream=torch.tensor([key.stream for key in keys]),
        )

    def _inputs(self, rows: Sequence[Inputs]) -> dict[str, dict[str, Tensor] | Encoded]:
        inputs: dict[str, dict[str, Tensor] | Encoded] = {}
        for modality in self.modalities:
            flat = [item for row in rows for item in row.get(modality, [])]
            if flat:
                padded = self.processors[modality].pad(flat)
                assert "items" not in padded, "'items' says which item each row has"
                inputs[modality] = {**padded, "items": _places([len(row.get(modality, [])) for row in rows])}
        return inputs


MESSAGES = {
    "cut": "were longer than their encoder takes, and cut",
    "unknown": "have values that the training split does not have, and are read without them",
}


class Cuts:
    """How many items an encoder could not take whole, by modality, said once."""

    def __init__(self) -> None:
        self.cut: Counter[tuple[str, str]] = Counter()  # by modality and what befell them
        self.seen: Counter[str] = Counter()

    def note(self, batch: Batch) -> None:
        """Count a batch's."""
        for m, inputs in batch.inputs.items():
            if isinstance(inputs, dict):
                self.note_items(m, inputs)

    def note_items(self, m: str, inputs: Mapping[str, Tensor]) -> None:
        """Count items of one modality."""
        for key in MESSAGES.keys() & inputs.keys():  # one at the most
            self.cut[m, key] += int(inputs[key].sum())
            self.seen[m] += len(inputs[key])

    def lines(self, *others: Cuts) -> list[str]:
        """A line for each modality that this befell, here and in ``others``."""
        every = (self, *others)
        cut, seen = sum((x.cut for x in every), Counter()), sum((x.seen for x in every), Counter())
        return [f"{m}: {n} of {seen[m]} items read {MESSAGES[key]}" for (m, key), n in cut.items() if n]


def _places(counts: Sequence[int]) -> Tensor:
    """Which of the flat items each row has, (B, K), −1 where it has fewer than K."""
    number = torch.tensor(counts)[:, None]  # (B, 1)
    places = torch.arange(max(counts))  # (K,)
    return torch.where(places < number, number.cumsum(0) - number + places, -1)
