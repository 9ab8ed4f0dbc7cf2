"""Vector-based random matrix adaptation."""

from __future__ import annotations

from typing import Annotated

from peft import VeraConfig, VeraModel
from pydantic import Field

from mmkt.adapters import _peft
from mmkt.layers.presets import Role, layers_of
from mmkt.types import Adapter, Encoder

SHARED = ("vera_A", "vera_B")


class Vera(Adapter):
    """VeRA (Kopiczko et al., 2024): W x + b ⊙ B (d ⊙ A x); A (r, in) and B (out, r) are random, fixed and every layer's.

    The vectors b (out,), zero at the start, and d (r,) train. Layers of other sizes take the first rows and columns. The
    matrices are buffers ``vera_A`` and ``vera_B`` of the encoder and saved with it. It merges: W + (b ⊙ B) (d ⊙ A).
    """

    merges = True

    def __init__(
        self,
        *,
        r: Annotated[int, Field(ge=1)] = 256,
        start: float = 0.1,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        seed: int = 0,
        roles: list[Role] = ["query", "value"],  # noqa: B006 - never changed
        targets: list[str] | None = None,
    ):
        """Remember the settings.

        Args:
            r: rank.
            start: of every number of d.
            dropout: of what enters A.
            seed: that A and B are drawn from.
            roles: which layers of every block: ``query``, ``key``, ``value``, ``attention_out``, ``up``, ``down``; where one
                layer makes queries, keys and values, any of the three is all of it.
            targets: shell-style patterns on whole names of linear layers below the body, in place of ``roles``.
        """
        self.roles, self.targets = roles, targets
        self.settings = {"r": r, "d_initial": start, "vera_dropout": dropout, "projection_prng_key": seed}

    def apply(self, encoder: Encoder) -> set[str]:
        """The vectors train."""
        names = layers_of(encoder, self.roles, self.targets)
        # PEFT would save the shared matrices with every layer: they lie in the same memory, and are saved once
        found, made = _peft.inject(encoder, VeraModel, VeraConfig, names, save_projection=False, **self.settings)
        for name in SHARED:
            encoder.register_buffer(name, getattr(made, name)["default"])
        return found

    def merge(self, encoder: Encoder) -> None:
        """Add the products to the weights."""
        _peft.merge(encoder)
        for name in SHARED:
            delattr(encoder, name)
