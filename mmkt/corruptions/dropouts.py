"""Sound over a bad line."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkt.types import Corruption

SECONDS = 0.02  # of a packet, as telephony over the internet sends


class Dropouts(Corruption):
    """Packets of 20 ms that never came, each by itself with a probability: silence in their place."""

    kind = "audio"
    levels = (0.1, 0.2, 0.3, 0.4, 0.5)

    def __call__(self, item: Tensor, level: float, rate: int | None) -> Tensor:
        """As long as before."""
        assert rate is not None, "a sound has a rate"
        length = max(1, round(SECONDS * rate))
        kept = torch.rand(-(-len(item) // length)) >= level  # (packets,)
        return item * kept.repeat_interleave(length)[: len(item)]
