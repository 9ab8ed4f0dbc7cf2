"""The average of the weights beside those that train: what is evaluated, chosen and saved."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mmkt import distributed
from mmkt.learner import Learner
from mmkt.types import Average


class Averaged:
    """An average of all that some phase trains, and of the model's buffers: a batch norm's statistics go as its weights do.

    (Izmailov et al., 2018, compute those statistics anew with the averaged weights, in another pass over the training rows;
    this takes none.)

    Args:
        learner: on its device, sharded or not; shards are averaged where they lie.
        frozen: names of the parameters that no phase trains.
        average: how it moves; None: there is none, and everything here does nothing.
        steps: of all phases.
    """

    def __init__(self, learner: Learner, frozen: Collection[str], average: Average | None, steps: int):
        self.learner, self.average, self.steps = learner, average, steps
        self.mean: dict[str, Tensor] = {}
        if average is not None:
            wanted = {name for name, _ in learner.named_parameters() if name.removeprefix("model.") not in frozen}
            wanted |= self._buffers()
            own = learner.state_dict().items()
            self.mean = {name: x.clone() for name, x in own if name in wanted and x.is_floating_point()}

    def live(self) -> dict[str, Tensor]:
        """The weights themselves, by the same names; looked up anew, as wrapping for several processes moves them."""
        own = self.learner.state_dict() if self.mean else {}
        return {name: own[name] for name in self.mean}

    def _buffers(self) -> set[str]:
        return {f"model.{name}" for name, _ in self.learner.model.named_buffers()}

    def follow(self, step: int) -> None:
        """Move after a step (of all phases, from 0)."""
        if self.average is None:
            return
        move = self.average.move(step, self.steps)
        if move > 0:
            with torch.no_grad():
                get_ema_multi_avg_fn(1 - move)([*map(_local, self.mean.values())], [*map(_local, self.live().values())], None)

    def share(self) -> None:
        """Give every process rank 0's averaged buffers, as it has been given rank 0's buffers."""
        buffers = self._buffers()
        distributed.share(x for name, x in self.mean.items() if name in buffers)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Meanwhile the learner has the average; afterwards its own weights again, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        with torch.no_grad():
            for live, mean in zip(self.live().values(), self.mean.values()):
                own = live.clone()
                live.copy_(mean)
                mean.copy_(own)


def _local(x: Tensor) -> Tensor:
    """The tensor itself, or this process's share of a sharded one."""
    return x.to_local() if hasattr(x, "to_local") else x
