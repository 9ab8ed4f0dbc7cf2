"""Making what enters the blocks look like words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer

from mmkt.distributed import gather
from mmkt.layers import hf_body, text_blocks, transport
from mmkt.layers.masked import masked_mean
from mmkt.types import Batch, Objective, Outputs, Resources

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Match(Objective):
    """The distance between a batch's embedded items and embedded texts (ORCA, Shen et al., 2023), for ``align_then_refine``.

    An item is the mean over the tokens that its encoder (``borrow``) hands to the blocks, a text the mean over its words where
    they enter them. ``mmd`` (Gretton et al., 2012), ``sinkhorn`` (the divergence, Feydy et al., 2019), ``otdd`` (with the labels
    of both sides, Alvarez-Melis and Fusi, 2020). Batches of all processes are one; it speaks for one item a batch.
    """

    contrasts = True
    raw = True

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        modality: str,
        texts: str,
        column: str = "text",
        label: str | None = None,
        task: str | None = None,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        distance: Literal["mmd", "sinkhorn", "otdd"] = "mmd",
        rows: Annotated[int, Field(ge=2)] = 500,
        max_tokens: Annotated[int, Field(ge=2)] = 64,
    ):
        """Remember the settings.

        Args:
            dim: unused.
            modalities: of the model.
            outputs: by task.
            domains: unused.
            modality: whose embedder learns.
            texts: a manifest with texts of the source.
            column: of the texts.
            label: the column of the texts' classes, for ``otdd``.
            task: whose classes the batch has, for ``otdd``; by default the first.
            model: the text model whose words are meant: the one that the blocks are of.
            distance: which one.
            rows: texts that are used, the first of a fixed shuffle.
            max_tokens: of a text.

        Raises:
            ValueError: there is no such modality, or labels are missing for ``otdd``.
        """
        super().__init__()
        if modality not in modalities:
            raise ValueError(f"modality: there is no {modality!r}; allowed: {', '.join(modalities)}")
        if distance == "otdd" and (label is None or not outputs):
            raise ValueError("distance: otdd compares classes: name the texts' column in label, and have a task")
        self.modality, self.texts, self.columns, self.source = modality, texts, (column, label), model
        self.task, self.distance, self.most, self.max_tokens = task or next(iter(outputs), ""), distance, rows, max_tokens

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """Embed the texts.

        Raises:
            ValueError: they or the text model can't be had, or the encoder's tokens are none of this model's.
        """
        encoder: Any = learner.model.encoders[self.modality]
        if not hasattr(encoder, "embed") or encoder.kind == "text":
            raise ValueError(f"modality: the encoder of {self.modality} hands no tokens to blocks of text; take borrow")
        cells = {name: resources.column(self.texts, name) for name in self.columns if name}
        there = [k for k, text in enumerate(cells[self.columns[0]]) if text and all(x[k] is not None for x in cells.values())]
        order = torch.randperm(len(there), generator=torch.Generator().manual_seed(0))[: self.most]
        chosen = [there[k] for k in order]
        take = hf_body.part("text", summary=False)
        tokenizer, body = hf_body.load(self.source, None, weights="pretrained", reader=AutoTokenizer, take=take)
        if hf_body.width(body) != encoder.width:
            raise ValueError(f"model: {self.source} has words {hf_body.width(body)} wide, {self.modality} tokens {encoder.width}")
        with torch.no_grad():
            vectors = [self._embedded(tokenizer, body.eval(), str(cells[self.columns[0]][k])) for k in chosen]
        self.register_buffer("words", torch.stack(vectors), persistent=False)
        if self.columns[1]:
            names = sorted({str(x) for x in cells[self.columns[1]]})
            codes = torch.tensor([names.index(str(cells[self.columns[1]][k])) for k in chosen])
            self.register_buffer("classes", codes, persistent=False)

    def _embedded(self, tokenizer: Any, body: Any, text: str) -> Tensor:
        ids = tokenizer(text, truncation=True, max_length=self.max_tokens, return_tensors="pt")["input_ids"]
        return text_blocks.embed_words(body, ids)[0].mean(0)

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """The distance, ()."""
        encoder: Any = model.encoders[self.modality]
        inputs: Any = batch.inputs.get(self.modality)
        x = outputs.fused.pooled.new_zeros(batch.size, encoder.width) + outputs.fused.pooled.sum() * 0.0
        if inputs is not None:
            items = masked_mean(*encoder.embed({name: value for name, value in inputs.items() if name != "items"}))  # (N, W)
            x = x + items[inputs["items"][:, 0].clamp(min=0)]  # a row's first item
        there = batch.present[self.modality]
        if self.distance == "otdd":
            there = there & batch.labelled[self.task]
        there, x = gather(there.float()) > 0, gather(x.float())
        words: Any = self.words
        if there.sum() < 2:
            return x.sum() * 0.0
        if self.distance == "otdd":
            labels = gather(batch.labels[self.task].float()).long()
            return transport.otdd(x[there], labels[there], words, self.classes)  # type: ignore[arg-type]
        return transport.mmd(x[there], words) if self.distance == "mmd" else transport.sinkhorn(x[there], words, debiased=True)

    def count(self, batch: Batch) -> Tensor:
        """One a batch."""
        return torch.ones((), device=batch.row.device)
