"""What a fusion says of modalities that contradict each other, and of whom it can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmkt.types import Outputs


def scores_of(outputs: Outputs) -> Tensor:
    """The note ``odd_scores`` of a fusion, (B, 1 + M): of none being odd, and of every modality.

    Raises:
        ValueError: it leaves none.
    """
    if "odd_scores" not in outputs.notes:
        raise ValueError("the fusion does not say which modality is odd (the note odd_scores); of ours, odd_one_out would")
    return outputs.notes["odd_scores"]


def judged(present: Mapping[str, Tensor]) -> Tensor:
    """Rows of which it can be told which modality is odd, (B,) bool: three are there, or more."""
    return torch.stack(list(present.values())).sum(0) > 2


def refuse_two(modalities: Sequence[str]) -> None:
    """Refuse a model of which nothing can be told.

    Raises:
        ValueError: it has fewer than three modalities.
    """
    if len(modalities) < 3:
        found = f"the model has {len(modalities)}: {', '.join(modalities)}"
        raise ValueError(f"of two modalities that contradict each other none is the odd one; {found}. Add an encoder")
