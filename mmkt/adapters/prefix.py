"""Prefixes that attention sees."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from mmkt.layers.presets import body_of, family, full, pairs
from mmkt.types import Adapter, Encoder

# whose query layer gives what is compared with keys, head by head: no rotation or norm comes after it
FAMILIES = (
    *("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "clip", "siglip", "chinese_clip"),
    *("wav2vec2", "hubert", "whisper", "audio-spectrogram-transformer", "vit", "dinov2", "mmkt"),
)


class Prefix(Adapter):
    """Prefix tuning (Li & Liang, 2021) with zero-initialised attention (Zhang et al., 2023).

    Every head h also attends to ``length`` learned keys and values, in a softmax of their own; the answer enters through
    tanh(g_h), with g zero at the start. It is a module ``prefix`` of attention's output projection: ``keys`` and ``values``
    (length, W), ``gates`` (heads,). It cannot be merged.
    """

    merges = False

    def __init__(self, *, length: Annotated[int, Field(ge=1)] = 10, targets: list[str] | None = None):
        """Remember the settings.

        Args:
            length: learned keys and values a block.
            targets: no allowed value but null: which layer makes queries is known by family alone.
        """
        if targets is not None:
            raise ValueError("a prefix needs to know which layer makes an attention's queries: leave targets out")
        self.length = length

    def apply(self, encoder: Encoder) -> set[str]:
        """Keys, values and gates train."""
        body: Any = body_of(encoder)
        kind = family(body)
        if kind not in FAMILIES:
            raise ValueError(
                f"no prefixes for a body of the family {kind}; there are for {', '.join(FAMILIES)}, and other adapters"
            )
        trains = set()
        for query, out in pairs(encoder, "query", "attention_out"):
            queries, layer = body.get_submodule(query), body.get_submodule(out)
            attention = body.get_submodule(query.rpartition(".")[0])
            config: Any = getattr(getattr(body, "tower", body), "config", None)
            made = _Prefix(self.length, queries.out_features, config.num_attention_heads if config else attention.heads)
            queries.register_forward_hook(made.note)
            layer.add_module("prefix", made)
            layer.register_forward_pre_hook(made.change)
            trains |= {full(encoder, f"{out}.prefix.{name}") for name, _ in made.named_parameters()}
        return trains


class _Prefix(nn.Module):
    """Attention over learned keys and values. Its methods are hooks, so that a copied model's hooks are the copy's."""

    def __init__(self, length: int, width: int, heads: int):
        super().__init__()
        self.keys, self.values = (nn.Parameter(torch.randn(length, width) * 0.02) for _ in range(2))
        self.gates = nn.Parameter(torch.zeros(heads))
        self.queries: Tensor | None = None

    def forward(self, queries: Tensor) -> Tensor:
        """(B, L, W) → (B, L, W)."""
        heads = len(self.gates)
        q = rearrange(queries, "b l (h d) -> b h l d", h=heads)
        k, v = (rearrange(x, "p (h d) -> 1 h p d", h=heads).expand(len(q), -1, -1, -1) for x in (self.keys, self.values))
        y = F.scaled_dot_product_attention(q, k, v) * self.gates.tanh()[:, None, None]
        return rearrange(y, "b h l d -> b l (h d)")

    def note(self, layer: nn.Module, given: Any, out: Tensor) -> None:
        self.queries = out

    def change(self, layer: nn.Module, given: Any) -> Any:
        queries, self.queries = self.queries, None
        assert queries is not None, "attention makes queries before it ends"
        return given[0] + self(queries).to(given[0]), *given[1:]
