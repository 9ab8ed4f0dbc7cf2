"""Frozen pretrained transformers."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mmkt.layers.norms import norm_parameters
from mmkt.types import Phase, Transfer

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.types import Encoder


class Fpt(Transfer):
    """Frozen pretrained transformers (Lu et al., 2021): attention and feed-forward layers stay, what is around them trains.

    In every encoder its norms, positions and input layer train; of an encoder of text, norms and positions alone, as its
    words are pretrained. Shared space, fusion, heads and objectives train.
    """

    def __init__(self, *, lr: dict[str, Annotated[float, Field(gt=0)]] = {}):  # noqa: B006
        """Remember the patterns.

        Args:
            lr: pattern → factor on ``train.lr``.
        """
        self.lr = lr

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """One."""
        frozen = [f"encoders.{m}.{name}" for m, encoder in learner.model.encoders.items() for name in _inner(encoder)]
        return [Phase("fpt", steps, frozen=frozen, lr=self.lr)]


def _inner(encoder: Encoder) -> list[str]:
    """Names of an encoder's parameters that stay as they are."""
    if encoder.backbone is None:
        return []
    trains = norm_parameters(encoder)
    if encoder.kind != "text":
        trains |= set(encoder.stages()[0])
    return [name for name, _ in encoder.named_parameters() if name not in trains and not fnmatchcase(name, "*position*")]
