"""Long items read in consecutive windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from mmkt.types import Encoded


def read_windows(read: Callable[[Mapping[str, Tensor]], Encoded], inputs: Mapping[str, Tensor], sizes: Tensor) -> Encoded:
    """Read N items; of those in several windows the windows that there are, each alone, their tokens one after another.

    Args:
        read: encodes a batch of windows.
        inputs: (N, …), or (N, K, …) of N items in K windows.
        sizes: (N,), or (N, K): how much a window holds (tokens, samples), 0 where there is none; an item's summary is the
            mean of its windows' in proportion to it.
    """
    if sizes.ndim == 1:
        return read(inputs)
    there = sizes > 0
    found = read({name: x[there] for name, x in inputs.items()})
    tokens, mask, pooled = (x.new_zeros(*sizes.shape, *x.shape[1:]) for x in found[:3])  # (N, K, L, W), (N, K, L), (N, K, W)
    tokens[there], mask[there], pooled[there] = found[:3]
    share = sizes / sizes.sum(1, keepdim=True)
    return Encoded(tokens.flatten(1, 2), mask.flatten(1, 2), (pooled * share[..., None]).sum(1), there[:, 0])
