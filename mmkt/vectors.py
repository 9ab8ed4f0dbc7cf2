"""A model's vectors, out of its predictions."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkt.types import Predictions


def unit_vectors(predictions: Predictions, m: str) -> Tensor:
    """The column ``vector.M`` with length 1, (n, D); zeros where a row lacks the modality.

    Raises:
        ValueError: vectors that are not finite.
    """
    column = predictions.table[f"vector.{m}"].combine_chunks()
    there, flat = column.is_valid().to_numpy(zero_copy_only=False), column.flatten().to_numpy(zero_copy_only=False)
    found = np.zeros((len(column), len(flat) // max(1, there.sum()) or 1), np.float32)
    found[there] = flat.reshape(-1, found.shape[1])
    bad = int((~np.isfinite(found)).any(1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {there.sum()} vectors of {m} are not finite numbers, so nothing is near to them: train with a lower "
            "rate, or leave out what takes them (evaluate.retrieval=false, no evaluate.prompts, no evaluate.shots)"
        )
    return F.normalize(torch.from_numpy(found), dim=1)
