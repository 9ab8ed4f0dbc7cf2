"""Batches brought to a device, on a GPU while it is at work on the batch before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mmkt.types import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on a device.

    On a GPU the copy of a batch is begun, on a stream of its own, before the batch that comes before it is handed out: so it
    runs beside that one's step, provided that the batch is pinned (``Batch.pinned``) and nothing in the step makes the host
    wait. One batch more lies on the device.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    side = torch.cuda.Stream(device)
    ready = _copied(next(batches, None), device, side)
    while ready is not None:
        batch, copied = ready
        ready = _copied(next(batches, None), device, side)
        here = torch.cuda.current_stream(device)
        here.wait_event(copied)
        # its memory is given back only when the step's stream is done with it
        for x in pytree.tree_leaves(batch):
            if isinstance(x, Tensor):
                x.record_stream(here)
        yield batch


def _copied(batch: Batch | None, device: torch.device, side: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event] | None:
    """A batch whose copy is under way, and what says that it is done."""
    if batch is None:
        return None
    with torch.cuda.stream(side):
        copy = batch.to(device)
        done = torch.cuda.Event()
        done.record(side)
    return copy, done
