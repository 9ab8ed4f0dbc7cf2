"""Vectors that are there already: embeddings of any other model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkt.layers.masked import masked_mean, zero_masked
from mmkt.types import Encoded, Encoder, Processor

PIECE = 65_536  # cells whose vectors are looked at together


class Features(Encoder):
    """Vectors or sequences of vectors that a manifest holds, as they are: it has no parameters, the shared space projects.

    Inputs are ``vectors`` (N, T, W) and ``mask`` (N, T). A cell is a list of W numbers, one token, or a list of T such
    lists, one item of T tokens; the summary is their mean. W is the training split's. With ``standardize`` every dimension
    has the mean 0 and the deviation 1 over the training split's vectors; one that is constant there is only centred.
    """

    kind = "features"
    learns = True
    mean: Tensor
    std: Tensor

    def __init__(
        self, house: Mapping[str, Encoder], assets: Path | None, vocabulary: dict[str, Any], *, standardize: bool = False
    ):
        """Take over what was learned.

        Args:
            house: unused.
            assets: unused; all is in the vocabulary.
            vocabulary: what ``learn`` gave.
            standardize: subtract each dimension's mean, divide by its standard deviation.
        """
        super().__init__()
        self.width, self.vocabulary, self.standardize = vocabulary["width"], vocabulary, standardize
        if standardize:
            self.register_buffer("mean", torch.tensor(vocabulary["mean"]), persistent=False)
            self.register_buffer("std", torch.tensor([x or 1.0 for x in vocabulary["std"]]), persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N items."""
        tokens, mask = inputs["vectors"], inputs["mask"]
        if self.standardize:
            tokens = (tokens - self.mean) / self.std
        tokens = zero_masked(tokens, mask)
        return Encoded(tokens, mask, masked_mean(tokens, mask), mask[:, 0])

    def stages(self) -> list[list[str]]:
        """None: nothing here trains."""
        return []

    def processor(self) -> Processor:
        """Vectors as they are."""
        return _Vectors(self.width)

    def blank(self) -> dict[str, Tensor]:
        """One vector of zeros."""
        processor = self.processor()
        return processor.pad([processor(torch.zeros(1, self.width))])

    @classmethod
    def learn(cls, cells: pa.ChunkedArray, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The width that most vectors have and how many have it; to standardise, also each dimension's mean and deviation."""
        kind, depth = cells.type, 0
        while _is_list(kind):
            kind, depth = kind.value_type, depth + 1
        if not depth or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ValueError(
                f"features are one column of lists of numbers, or of lists of such lists; this one holds {cells.type} "
                f"(numbers of a column each are for the encoder table)"
            )
        widths: Counter[int] = Counter()
        for vectors in _pieces(cells):
            lengths = pc.value_counts(pc.list_value_length(vectors))
            widths.update({pair["values"]: pair["counts"] for pair in lengths.to_pylist() if pair["values"]})
        if not widths:
            raise ValueError("no row of the training split has a vector: name another column in data.columns")
        width, count = max(widths.items(), key=lambda pair: (pair[1], pair[0]))
        return {"width": width, "count": count} | (_moments(cells, width) if settings["standardize"] else {})


class _Vectors(Processor):
    kind = "features"
    draws = False
    pads = True

    def __init__(self, width: int):
        self.width = width

    def whole(self, cell: Any) -> bool:
        """A vector, or a list of vectors; a list of those is several items."""
        return _levels(cell) <= 2

    def length(self, item: Any) -> int:
        """Its vectors, with what a batch is padded to."""
        return self.padded(1 if _levels(item) == 1 else len(item))

    def __call__(self, item: Tensor, view: str | None = None) -> dict[str, Tensor]:
        """``vectors`` (T, W) of one item."""
        return {"vectors": item}

    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """(N, T, W), and which of them are there (N, T)."""
        lengths = torch.tensor([len(item["vectors"]) for item in items])
        vectors = nn.utils.rnn.pad_sequence([item["vectors"] for item in items], batch_first=True)
        vectors = F.pad(vectors, (0, 0, 0, self.padded(vectors.shape[1]) - vectors.shape[1]))
        return {"vectors": vectors, "mask": torch.arange(vectors.shape[1]) < lengths[:, None]}


def _levels(cell: Any) -> int:
    """How deep lists and arrays go, by the first things in them."""
    if isinstance(cell, list):
        return 1 + _levels(next((part for part in cell if part is not None), None))
    return getattr(cell, "ndim", 0)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _pieces(cells: pa.ChunkedArray) -> Iterator[pa.Array]:
    """The vectors of some cells at a time: lists of numbers, without the lists around them."""
    for start in range(0, len(cells), PIECE):
        for array in cells.slice(start, PIECE).chunks:
            while _is_list(array.type.value_type):
                array = array.flatten()
            yield array.drop_null()


def _moments(cells: pa.ChunkedArray, width: int) -> dict[str, list[float]]:
    """Mean and standard deviation of each dimension, in two passes; vectors that reading refuses do not count."""

    def usable() -> Iterator[np.ndarray]:
        for vectors in _pieces(cells):
            kept = vectors.filter(pc.equal(pc.list_value_length(vectors), width)).flatten()
            x = kept.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, width)  # null comes out as NaN
            yield x[(np.abs(x) <= torch.finfo(torch.float32).max).all(1)]

    count = sum(len(x) for x in usable())
    if not count:
        raise ValueError(f"no vector of the training split has {width} finite numbers")
    mean = sum(x.sum(0) for x in usable()) / count
    std = np.sqrt(sum(((x - mean) ** 2).sum(0) for x in usable()) / count)
    std[std <= 1e-6 * np.abs(mean)] = 0.0  # constant, as far as float32 can tell
    return {"mean": mean.tolist(), "std": std.tolist()}
