"""Sound recorded too loud."""

from __future__ import annotations

from torch import Tensor

from mmkt.types import Corruption


class Clipping(Corruption):
    """Clipping: the loudest samples, a share of all, are cut down to the loudest of the others."""

    kind = "audio"
    levels = (0.02, 0.05, 0.1, 0.2, 0.4)

    def __call__(self, item: Tensor, level: float, rate: int | None) -> Tensor:
        """As long as before."""
        loud = item.abs()
        most = loud.kthvalue(max(1, round((1 - level) * len(item)))).values
        return item.clamp(-most, most)
