"""Contrastive alignment of the modalities in the shared space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from mmkt.layers import contrast
from mmkt.layers.contrast import Positive
from mmkt.layers.ring import How, ring
from mmkt.types import Batch, Objective, Outputs

if TYPE_CHECKING:
    from mmkt.model import Model


class Align(Objective):
    """InfoNCE (CLIP, Radford et al., 2021) or the sigmoid loss (SigLIP, Zhai et al., 2023) over pairs of modalities.

    For a pair (a, b): −½ Σ_i [log softmax_j(s·⟨a_i, b_j⟩)_i + log softmax_j(s·⟨b_i, a_j⟩)_i] over rows that have both, or
    −Σ_ij log σ(±(s·⟨a_i, b_j⟩ + bias)), negatives from all processes. The sum runs over this rank's rows; the learner divides
    by (row, pair) items.
    """

    contrasts = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        loss: Literal["infonce", "sigmoid"] = "infonce",
        temperature: Positive = 0.07,
        temperature_bounds: tuple[Positive, Positive] = (0.01, 100.0),
        learn_temperature: bool = True,
        bias: float | None = None,
        bias_bounds: tuple[float, float] | None = None,
        between: list[str] | None = None,
        anchor: str | None = None,
        same: str | None = None,
        hardness: Annotated[float, Field(ge=0)] = 0.0,
        chunk: Annotated[int, Field(ge=1)] | None = None,
        exchange: Literal["gather", "ring"] = "gather",
        remote: bool = True,
    ):
        """Remember the pairs.

        Args:
            dim: unused.
            modalities: of the model.
            outputs: by task.
            domains: unused.
            loss: InfoNCE in both directions, or the sigmoid loss.
            temperature: at the start (CLIP 0.07, SigLIP 0.1).
            temperature_bounds: it stays between them.
            learn_temperature: or it stays as it is.
            bias: of the sigmoid loss alone, at the start; by default −10.
            bias_bounds: it stays between them; by default −100 and 100.
            between: modalities that are compared, by default all.
            anchor: compare this one with each of them, and no others (ImageBind, Girdhar et al., 2023).
            same: ``group`` or a task: rows of one group or class are no negatives of each other.
            hardness: how much more the nearer negatives of InfoNCE weigh; 0: all alike.
            chunk: rows whose scores are held at a time; all by default.
            exchange: every process holds the vectors of all, or they go round: less memory, more messages.
            remote: vectors have their gradient from all processes' losses; else from their own process's alone.

        Raises:
            ValueError: settings that don't go together, or name what there is not.
        """
        super().__init__()
        self.pairs = contrast.pairs(modalities, between, anchor)
        if hardness and (loss != "infonce" or exchange == "ring"):
            raise ValueError("hardness: it weighs the negatives of loss=infonce with exchange=gather")
        if same not in (None, "group") and same not in outputs:
            raise ValueError(f"same: allowed are {', '.join(['group', *outputs])}, found {same!r}")
        if loss == "sigmoid":
            bias, bias_bounds = -10.0 if bias is None else bias, bias_bounds or (-100.0, 100.0)
        elif bias is not None or bias_bounds is not None:
            raise ValueError(f"bias: loss={loss} has none; say loss=sigmoid, or leave bias and bias_bounds out")
        self.temperature = contrast.Temperature(
            temperature, temperature_bounds, learned=learn_temperature, bias=bias, bias_bounds=bias_bounds
        )
        self.loss = contrast.hard_info_nce(hardness) if hardness else contrast.LOSSES[loss]
        self.same, self.chunk, self.round, self.remote = same, chunk, exchange == "ring", remote
        self.how = How(loss, chunk, remote)
        # the sigmoid loss is the same both ways; where rows have their gradient from their own process alone, each way is needed
        self.ways = 1 if loss == "sigmoid" and remote else 2

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over this rank's rows and the pairs, ()."""
        with contrast.precise(batch.row.device):
            return self._summed(batch, outputs)

    def _summed(self, batch: Batch, outputs: Outputs) -> Tensor:
        scale, bias = self.temperature()
        vectors = {m: outputs.encoded[m].pooled for pair in self.pairs for m in pair}
        one = contrast.sides(vectors, batch, contrast.alike(batch, self.same), training=self.training)
        # connected even when no row has two
        loss = sum((x.vectors.sum() for x in one.values()), start=scale.sum() + (0.0 if bias is None else bias.sum())) * 0.0
        every = one if self.round else {m: contrast.everywhere(x, remote=self.remote) for m, x in one.items()}
        for a, b in self.pairs:
            for x, y in ((a, b), (b, a))[: self.ways]:
                queries = one[x]._replace(there=one[x].there & one[y].there)
                keys = every[y]._replace(there=every[x].there & every[y].there)
                if self.round:
                    losses = ring(queries, keys, scale, bias, self.how)
                else:
                    losses = contrast.by_rows(self.loss, queries, keys, scale, bias, self.chunk)
                loss = loss + losses.sum() / self.ways
        return loss

    def count(self, batch: Batch) -> Tensor:
        """Rows that have both of a pair, over the pairs."""
        return sum((batch.present[a] & batch.present[b]).sum() for a, b in self.pairs)  # type: ignore[return-value]
