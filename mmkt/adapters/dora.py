"""Weight-decomposed low-rank adaptation."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from pydantic import Field

from mmkt.adapters import _peft
from mmkt.layers.presets import Role, layers_of
from mmkt.types import Adapter, Encoder


class Dora(Adapter):
    """DoRA (Liu et al., 2024): V = W + (alpha / r) B A; every row of V is scaled to a length m that is learned.

    A (r, in) is drawn at random, B (out, r) is zero and m (out,) the rows' lengths in W at the start. As in the paper the
    length that V is divided by takes no gradient. It merges: m V / ‖V‖.
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
            alpha: the change of the direction is scaled by alpha / r.
            dropout: of what enters A.
            roles: which layers of every block: ``query``, ``key``, ``value``, ``attention_out``, ``up``, ``down``; where one
                layer makes queries, keys and values, any of the three is all of it.
            targets: shell-style patterns on whole names of linear layers below the body, in place of ``roles``.
        """
        self.roles, self.targets = roles, targets
        self.settings = {"r": r, "lora_alpha": alpha, "lora_dropout": dropout, "use_dora": True}

    def apply(self, encoder: Encoder) -> set[str]:
        """A, B and the lengths train."""
        names = layers_of(encoder, self.roles, self.targets)
        return _peft.inject(encoder, LoraModel, LoraConfig, names, **self.settings)[0]

    def renew(self, encoder: Encoder) -> None:
        """Make m the rows' lengths in the weights that are there now."""
        for module in encoder.modules():
            if isinstance(module, LoraLayer):
                made: Any = module.lora_magnitude_vector["default"]
                kept, a, b = made.weight, module.lora_A["default"].weight, module.lora_B["default"].weight
                made.update_layer(base_layer=module.get_base_layer(), lora_A=a, lora_B=b, scaling=module.scaling["default"])
                with torch.no_grad():
                    kept.copy_(made.weight)
                made.weight = kept

    def merge(self, encoder: Encoder) -> None:
        """Write the scaled rows into the weights."""
        _peft.merge(encoder)
