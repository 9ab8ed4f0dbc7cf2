"""Infused adapter by inhibiting and amplifying inner activations."""

from __future__ import annotations

from peft import IA3Config, IA3Model

from mmkt.adapters import _peft
from mmkt.layers.presets import Role, layers_of
from mmkt.types import Adapter, Encoder


class Ia3(Adapter):
    """(IA)³ (Liu et al., 2022): keys, values and what is between a feed-forward's layers are scaled by learned vectors.

    A layer's output y becomes l ⊙ y, with l (out,); of the role ``down`` it is the input that is scaled, with l (in,). All
    are ones at the start. It merges into the rows, or the columns, of the weights.
    """

    merges = True

    def __init__(
        self,
        *,
        roles: list[Role] = ["key", "value", "down"],  # noqa: B006 - never changed
        targets: list[str] | None = None,
        inputs: list[str] | None = None,
    ):
        """Remember the settings.

        Args:
            roles: which layers of every block: ``query``, ``key``, ``value``, ``attention_out``, ``up``, ``down``; where one
                layer makes queries, keys and values, any of the three is all of it.
            targets: shell-style patterns on whole names of linear layers below the body whose outputs are scaled; with
                ``inputs``, in place of ``roles``.
            inputs: the same of those whose inputs are scaled.
        """
        self.roles, self.targets, self.inputs = roles, targets, inputs

    def apply(self, encoder: Encoder) -> set[str]:
        """The vectors train."""
        if self.targets is None and self.inputs is None:
            names = layers_of(encoder, self.roles, None)
            inputs = layers_of(encoder, ["down"], None) if "down" in self.roles else []
        else:
            inputs = layers_of(encoder, [], self.inputs or [])
            names = layers_of(encoder, [], self.targets or []) + inputs
        exact = _peft.exactly(inputs) or "(?!)"  # which matches nothing
        return _peft.inject(encoder, IA3Model, IA3Config, names, feedforward_modules=exact)[0]

    def merge(self, encoder: Encoder) -> None:
        """Scale the weights, and the biases of layers whose outputs are scaled."""
        _peft.merge(encoder)
