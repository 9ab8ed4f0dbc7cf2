"""One modality alone, through the same pipeline: a baseline of every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from mmkt.layers.mlp import mlp
from mmkt.layers.presence import target_of
from mmkt.types import Encoded, Fused, Fusion


class Unimodal(Fusion):
    """One modality: y = MLP(x_m), as ``concat`` would make it of that one. A missing one is its learned vector e_m.

    The others are encoded and not read, so that rows, steps and the random order are those of the fusions it stands beside.
    """

    level = "pooled"
    symmetric = False
    missing = "stand-in"
    interacts = False
    cost = "D·H"
    params = "(2*D + 1)*(hidden or 2*D) + D"
    flops = "4*D*(hidden or 2*D)"

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        *,
        modality: str | None = None,
        hidden: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ):
        """Build the MLP; ``modality`` is the first by default, ``hidden`` 2·dim."""
        super().__init__()
        hidden = hidden or 2 * dim
        self.reads = (target_of(modality, modalities),)
        self.mlp = mlp(dim, hidden, dim, dropout)

    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """(B, D) a modality → (B, D)."""
        unread = sum(x.pooled[:, :0].sum() for m, x in parts.items() if m not in self.reads)
        # adding nothing keeps the others' parameters in the graph, which DDP and FSDP2 ask for
        return Fused(Encoded.of(self.mlp(parts[self.reads[0]].pooled) + unread), {}, {}, {})
