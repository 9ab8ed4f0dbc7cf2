"""A module as it evaluates, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In ``eval()`` inside; afterwards what trained trains again, and nothing else: frozen batch norms stay as they are.

    Of a module that evaluates already nothing is touched, as attacks come here with every step.
    """
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
