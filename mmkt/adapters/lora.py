"""Low-rank adaptation."""

from __future__ import annotations

from typing import Annotated

from peft import LoraConfig, LoraModel
from pydantic import Field

from mmkt.adapters import _peft
from mmkt.layers.presets import Role, layers_of
from mmkt.types import Adapter, Encoder


class Lora(Adapter):
    """LoRA (Hu et al., 2022): W x + (alpha / r) B A x, with A (r, in) drawn at random and B (out, r) zero at the start.

    It merges: W + (alpha / r) B A.
    """

    merges = True

    def __init__(
        self,
        *,
        r: Annotated[int, Field(ge=1)] = 8,
        alpha: Annotated[float, Field(gt=0)] = 16.0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        roles: list[Role] = ["query", "value"],  # noqa: B006 - never changed
        targets: list[str] | None = None,
    ):
        """Remember the settings.

        Args:
            r: rank.
            alpha: the change is scaled by alpha / r.
            dropout: of what enters A.
            roles: which layers of every block: ``query``, ``key``, ``value``, ``attention_out``, ``up``, ``down``; where one
                layer makes queries, keys and values, any of the three is all of it.
            targets: shell-style patterns on whole names of linear layers below the body, in place of ``roles``.
        """
        self.roles, self.targets = roles, targets
        self.settings = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout}

    def apply(self, encoder: Encoder) -> set[str]:
        """A and B train."""
        names = layers_of(encoder, self.roles, self.targets)
        return _peft.inject(encoder, LoraModel, LoraConfig, names, **self.settings)[0]

    def merge(self, encoder: Encoder) -> None:
        """Add the products to the weights."""
        _peft.merge(encoder)
