"""Bottleneck layers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mmkt.layers.presets import body_of, full, layers_of, pairs
from mmkt.types import Adapter, Encoder

FIRST: Any = {"attention_out": "query", "down": "up"}  # the layer that a sublayer begins with, by the one that ends it
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class Bottleneck(Adapter):
    """Adapters (Houlsby et al., 2019): behind a sublayer h ← h + scale · W_up σ(W_down h), with W_up zero at the start.

    ``parallel`` (He et al., 2022) adds scale · W_up σ(W_down x) to h, where x is what enters the sublayer's first layer. It
    is a module ``bottleneck`` of the linear layer that ends the sublayer, whose own names stay. It cannot be merged.
    """

    merges = False

    def __init__(
        self,
        *,
        r: Annotated[int, Field(ge=1)] = 16,
        placement: Literal["sequential", "parallel"] = "sequential",
        activation: Literal["relu", "gelu"] = "relu",
        scale: Annotated[float, Field(gt=0)] = 1.0,
        roles: list[Literal["attention_out", "down"]] = ["attention_out", "down"],  # noqa: B006 - never changed
        targets: list[str] | None = None,
    ):
        """Remember the settings.

        Args:
            r: width of the bottleneck.
            placement: behind a sublayer, or beside it.
            activation: σ.
            scale: of what is added.
            roles: behind attention, behind the feed-forward.
            targets: shell-style patterns on whole names of linear layers below the body, in place of ``roles``; sequential
                alone.
        """
        self.r, self.activation, self.scale, self.roles, self.targets = r, activation, scale, roles, targets
        self.parallel = placement == "parallel"
        if self.parallel and targets is not None:
            raise ValueError("placement: parallel needs to know where a sublayer begins: leave targets out, or set sequential")

    def apply(self, encoder: Encoder) -> set[str]:
        """The bottlenecks train."""
        body = body_of(encoder)
        places: list[tuple[str | None, str]]
        if self.parallel:
            places = [pair for role in self.roles for pair in pairs(encoder, FIRST[role], role)]
        else:
            places = [(None, name) for name in layers_of(encoder, self.roles, self.targets)]
        trains = set()
        for first, last in places:
            layer: Any = body.get_submodule(last)
            begin: Any = body.get_submodule(first) if first else None
            given, width = _widths(begin)[0] if begin else _widths(layer)[1], _widths(layer)[1]
            made = _Bottleneck(given, width, self.r, self.activation, self.scale)
            layer.add_module("bottleneck", made)
            layer.register_forward_hook(made.change)
            if begin:
                begin.register_forward_pre_hook(made.note)
            trains |= {full(encoder, f"{last}.bottleneck.{name}") for name, _ in made.named_parameters()}
        return trains


class _Bottleneck(nn.Module):
    """From a width to another. Its methods are hooks, so that a copied model's hooks are the copy's."""

    def __init__(self, given: int, width: int, r: int, activation: str, scale: float):
        super().__init__()
        self.down, self.act, self.up = nn.Linear(given, r), ACTIVATIONS[activation](), nn.Linear(r, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale = scale
        self.noted: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.act(self.down(x)))

    def note(self, layer: nn.Module, given: Any) -> None:
        self.noted = given[0]

    def change(self, layer: nn.Module, given: Any, out: Tensor) -> Tensor:
        noted, self.noted = self.noted, None
        return out + self(out if noted is None else noted)


def _widths(layer: Any) -> tuple[int, int]:
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
