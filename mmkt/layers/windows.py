"""Long items read in consecutive windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from mmkt.types import Encoded


def read_windows(read: Callable[[Mapping[str, Tensor]], Encoded], inputs: Mapping[str, Tensor], sizes: Tensor) -> Encoded:
    """Read the windows that there are, each alone, and put each item's tokens one after another.

    Args:
        read: encodes a batch of windows.
        inputs: (N, K, …) of N items in K windows.
        sizes: (N, K), how much a window holds (tokens, samples), 0 where there is none; an item's summary is the mean of
            its windows' in proportion to it.
    """
    there = sizes > 0
    found = read({name: x[there] for name, x in inputs.items()})
    tokens, mask, pooled = (x.new_zeros(*sizes.shape, *x.shape[1:]) for x in found[:3])  # (N, K, L, W), (N, K, L), (N, K, W)
    tokens[there], mask[there], pooled[there] = found[:3]
    share = sizes / sizes.sum(1, keepdim=True)
    return Encoded(tokens.flatten(1, 2), mask.flatten(1, 2), (pooled * share[..., None]).sum(1), there[:, 0])
