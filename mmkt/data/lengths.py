"""How long rows are in a modality: what batches of like length are made by."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmkt.data import media
from mmkt.data.columns import cells
from mmkt.data.rows import items_of
from mmkt.experiment import Data
from mmkt.parts import ConfigError
from mmkt.types import Processor


def sizes(column: pa.ChunkedArray, processor: Processor, root: Path) -> np.ndarray:
    """Of every row, (rows,), at a glance: characters, vectors, or bytes; of a modality that is no table."""
    if processor.kind == "text":
        found: Iterable[int] = (len(str(cell or "")) for cell in cells(column))
    elif processor.kind == "features":
        found = (len(cell or ()) for cell in cells(column))  # tokens; one vector is as long as any other
    else:
        found = (media.size(cell, root) for cell in cells(column))
    return np.fromiter(found, dtype=np.int64, count=len(column))


def tokens(column: pa.ChunkedArray, processor: Processor, rows: np.ndarray, *, alternatives: bool = False) -> np.ndarray:
    """Of some texts or vectors, (all rows,), what the encoder reads: a cell's items together; 0 for rows not asked for.

    A text's characters say little of it: those that are cut off cost nothing, and a token is one of them in some languages, ten
    in others. It takes about as long as tokenising the rows once.

    Args:
        column: of texts or vectors.
        processor: whose tokens they are.
        rows: that are asked for.
        alternatives: one item of a cell enters at a time, so it is as long as the longest.
    """
    wanted = np.zeros(len(column), dtype=bool)
    wanted[rows] = True

    def length(cell: Any) -> int:
        items = [] if cell is None else items_of(cell, processor)
        each = [processor.length(item if isinstance(item, list) else str(item)) for item in items]
        return max(each, default=0) if alternatives else sum(each)

    found = (length(cell) if asked else 0 for cell, asked in zip(cells(column), wanted))
    return np.fromiter(found, dtype=np.int64, count=len(column))


def refuse_apart(data: Data) -> None:
    """Refuse what does not go with ``data.tokens``.

    Raises:
        ConfigError: no modality is named, or something else makes the batch.
    """
    if data.tokens is None:
        return
    if data.group_by_length is None:
        words = "counts a modality's lengths: name it in data.group_by_length (data.group_by_length=text)"
        raise ConfigError([("data.tokens", words)])
    for name, why in (("streams", "whose quotas make the batch"), ("balance", "which draws rows again and again")):
        if getattr(data, name):
            raise ConfigError([("data.tokens", f"does not go with data.{name}, {why}: leave one of them out")])
