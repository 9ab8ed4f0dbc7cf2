"""A label column as tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkt.data.columns import ROWS, codes
from mmkt.data.manifest import Manifest, ManifestError, column_of


def labels(
    manifest: Manifest, column: str, label: Callable[[Any], Tensor], rows: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """All labels of a column: (rows, …), and which rows have one, (rows,) bool.

    Args:
        manifest: of n rows.
        column: the label column; null and NaN are unlabelled.
        label: a cell as a tensor; None gives the filler, and it raises ValueError for what it does not know.
        rows: those that count; the others are unlabelled, whatever they hold. None for all.

    Raises:
        ManifestError: there is no such column, or ``label`` refuses cells: the message has up to five of them.
    """
    values, place = codes(column_of(manifest, column))
    if rows is not None:
        place[np.isin(np.arange(len(place)), rows, invert=True)] = -1
    there = np.unique(place[place >= 0])  # values that count
    blocks, wrong, reason = [label(None)[None]], [], ""
    for start in range(0, len(there), ROWS):  # tensors of one number each take a hundred times its room
        tensors = []
        for k in there[start : start + ROWS]:
            try:
                tensors.append(label(values[int(k)].as_py()))
            except ValueError as error:
                wrong.append(k)
                reason = reason or str(error)
        blocks += [torch.stack(tensors)] if tensors else []
    if wrong:
        refused = np.flatnonzero(np.isin(place, wrong))
        ids = manifest.table["id"]
        some = [f"row {ids[int(row)].as_py()!r} has {values[int(place[row])].as_py()!r}" for row in refused[:5]]
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise ManifestError(f"column {column!r}: {'; '.join(some)}{more}: {reason}")
    which = np.zeros(len(values) + 1, dtype=np.int64)
    which[there] = np.arange(1, len(there) + 1)  # a row's tensor by its value; the last, −1, is the filler
    return torch.cat(blocks)[torch.from_numpy(which[place])], torch.from_numpy(place >= 0)
