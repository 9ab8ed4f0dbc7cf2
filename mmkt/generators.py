"""Every random generator of a process, as tensors: torch's, Python's and numpy's global ones; and what seeds are made of."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that only depends on the parts: the same in every process, version and platform."""
    text = json.dumps([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed(number: int) -> None:
    """Seed all of them, on the CPU and on GPUs."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def state() -> dict[str, Tensor]:
    """Where they stand.

    Returns:
        ``cpu`` and, where a GPU is in use, ``cuda``: torch's own bytes, (n,) uint8. ``python`` and ``numpy``: the Mersenne
        Twister's words and the place among them, (625,) int64; ``python.gauss`` and ``numpy.gauss``: whether the second of a
        pair of normal numbers is waiting, and that number, (2,) float64.

    Raises:
        ValueError: somebody has exchanged numpy's global generator.
    """
    _, words, waiting = random.getstate()
    other: Any = np.random.get_state(legacy=False)
    if other["bit_generator"] != "MT19937":
        words = f"numpy's global generator is {other['bit_generator']}, and MT19937 alone can be saved"
        raise ValueError(f"{words}: leave out numpy.random.set_bit_generator")
    found = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(words),
        "python.gauss": torch.tensor([waiting is not None, waiting or 0.0], dtype=torch.float64),
        "numpy": torch.tensor([*other["state"]["key"].tolist(), other["state"]["pos"]]),
        "numpy.gauss": torch.tensor([other["has_gauss"], other["gauss"]], dtype=torch.float64),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(states: Mapping[str, Tensor]) -> None:
    """Put them back where they stood; one that ``states`` does not name stays as it is."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "python" in states:
        waits, waiting = states["python.gauss"].tolist()
        random.setstate((3, tuple(states["python"].tolist()), waiting if waits else None))
    if "numpy" in states:
        *key, place = states["numpy"].tolist()
        waits, waiting = states["numpy.gauss"].tolist()
        np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), place, int(waits), waiting))


@contextmanager
def untouched() -> Iterator[None]:
    """What is drawn inside leaves no trace."""
    before = state()
    try:
        yield
    finally:
        restore(before)
