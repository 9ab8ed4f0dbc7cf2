"""Features made: rows through an encoder that rests, into files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmkt import checkpoint, distributed
from mmkt.data.collate import Cuts
from mmkt.data.rows import Rows
from mmkt.data.sampling import Draw
from mmkt.feature_store import opened, stored_in
from mmkt.space import join
from mmkt.types import Encoded, Encoder

CHUNK, SMALL = 16, 32_768  # items of so few numbers that are encoded together, always so many; larger ones one at a time
PENDING = 4096  # items that wait for others of their shape


class Source(NamedTuple):
    """One modality's encoder and where its cells are."""

    modality: str
    encoder: Encoder
    lender: Encoder | None  # whose body it borrows
    spec: Mapping[str, Any]
    rows: Rows  # of this modality alone, nothing drawn
    precision: str = "no"


def computed(
    source: Source, which: Sequence[int], autocast: Callable[[], AbstractContextManager]
) -> Iterator[tuple[int, Encoded]]:
    """Rows and their features (one row each), in any order.

    An encoder's last digits depend on how many items it is given and how far they are padded. Here it always gets ``CHUNK``
    small items of one shape, a short chunk filled with copies, or one large item: then a row's features are the same to the
    bit whatever comes with it.
    """
    m, encoder = source.modality, source.encoder
    processor, device = source.rows.processors[m], next((p.device for p in encoder.parameters()), torch.device("cpu"))
    shapes: dict[Any, list[tuple[int, int, dict[str, Tensor]]]] = defaultdict(list)
    counts: dict[int, int] = {}
    begun: dict[int, dict[int, Encoded]] = defaultdict(dict)
    cuts = Cuts()

    def run(some: list[tuple[int, int, dict[str, Tensor]]]) -> Iterator[tuple[int, Encoded]]:
        items = [item for *_, item in some]
        padded = processor.pad(items + items[-1:] * (_together(items[0]) - len(items)))
        cuts.note_items(m, {name: x[: len(items)] for name, x in padded.items()})
        with torch.inference_mode(), autocast():
            made = encoder({name: x.to(device) for name, x in padded.items()})
        for k, (row, place, _) in enumerate(some):
            begun[row][place] = Encoded(*(x[k : k + 1].cpu() for x in made))
            if len(begun[row]) == counts[row]:
                parts = [begun[row][i] for i in range(counts[row])]
                del begun[row]
                yield row, _joined(parts)

    for row in which:
        items = source.rows[Draw(row, 0, 0)].inputs[m]
        counts[row] = len(items)
        for place, item in enumerate(items):
            shape = tuple((name, tuple(x.shape)) for name, x in sorted(item.items()))
            shapes[shape].append((row, place, item))
            if len(shapes[shape]) == _together(item):
                yield from run(shapes.pop(shape))
        while sum(map(len, shapes.values())) > PENDING:
            yield from run(shapes.pop(next(iter(shapes))))
    for some in shapes.values():
        yield from run(some)
    for line in cuts.lines():
        distributed.say(line)


def _together(item: Mapping[str, Tensor]) -> int:
    """How many items of this shape are encoded at a time."""
    return CHUNK if sum(x.numel() for x in item.values()) <= SMALL else 1


def _joined(parts: list[Encoded]) -> Encoded:
    """A row's items as the model joins them."""
    longest = max(part.tokens.shape[1] for part in parts)

    def padded(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(1, longest - x.shape[1], *x.shape[2:])], 1)

    one = Encoded(
        torch.cat([padded(part.tokens) for part in parts]),
        torch.cat([padded(part.mask) for part in parts]),
        torch.cat([part.pooled for part in parts]),
        torch.cat([part.present for part in parts]),
    )
    return join(one, torch.arange(len(parts))[None])


def write(folder: Path, source: Source, contents: np.ndarray, which: Sequence[int], autocast: Any) -> None:
    """Rows of different contents as a new folder, unless another process was quicker; what others hold is not computed again."""
    known = {content.tobytes(): (file, k) for file in stored_in(folder.parent) for k, content in enumerate(file.contents)}
    there = {row: known[content.tobytes()] for row, content in zip(which, contents) if content.tobytes() in known}
    missing = [row for row in which if row not in there]
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))  # a name of its own: several may be at it
    try:
        pooled, masks, order, length = [], [], [], []
        words = f"features of {source.modality}"
        with (new / "tokens.bin").open("wb") as file:
            made = track(computed(source, missing, autocast), words, len(missing), console=Console(stderr=True), transient=True)
            for row, one in chain(((row, held.row(k)) for row, (held, k) in there.items()), made):
                file.write(one.tokens[0].contiguous().view(torch.uint8).numpy().tobytes())
                pooled.append(one.pooled)
                masks.append(one.mask[0])
                order.append(row)
                length.append(one.tokens.shape[1])
        place = {row: k for k, row in enumerate(which)}
        index = {
            "contents": torch.from_numpy(contents[[place[row] for row in order]]),
            "pooled": torch.cat(pooled),
            "mask": torch.cat(masks),
            "length": torch.tensor(length),
        }
        checkpoint.write_tensors(new / "index.safetensors", index)
        if folder.exists() and opened(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is there, and the same to the bit
            new.rename(folder)
    except OSError as error:
        if checkpoint.is_full(error):
            raise checkpoint.CheckpointError(
                f"the disk is full: {folder} could not be written; make room, or see mmkt cache"
            ) from None
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
