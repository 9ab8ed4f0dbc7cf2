"""Text through any encoder-only or decoder-only transformer of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from mmkt.layers import hf_body
from mmkt.layers.masked import masked_mean, zero_masked
from mmkt.types import Encoded, Encoder, Processor


class HfText(Encoder):
    """A Hugging Face text model: last hidden states as tokens, and a mean, first-token or last-token summary.

    Inputs are ``input_ids`` (N, L) or ``inputs_embeds`` (N, L, W), and ``attention_mask`` (N, L).
    """

    kind = "text"

    def __init__(
        self,
        house: Mapping[str, Encoder],
        assets: Path | None,
        *,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        weights: Literal["pretrained", "random"] = "pretrained",
        pooling: Literal["mean", "cls", "last"] = "mean",
        max_tokens: Annotated[int, Field(ge=2)] = 128,
        pairs: bool = False,
    ):
        """Load or build the body.

        Args:
            house: unused.
            assets: a checkpoint's folder with configuration and tokenizer.
            model: local folder, or Hub id (installed packages are looked at first).
            weights: ``random`` draws the architecture's own initial weights.
            pooling: of the summary.
            max_tokens: longer texts are cut.
            pairs: a cell's list of two strings is one input with the tokenizer's separator, not two items.
        """
        super().__init__()
        self.tokenizer, self.body = hf_body.load(
            model, assets, pretrained=weights == "pretrained", reader=AutoTokenizer, take=hf_body.without_pooler
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.body.config.use_cache = False
        self.width: int = self.body.config.hidden_size
        self.pooling, self.max_tokens, self.pairs = pooling, max_tokens, pairs

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N texts."""
        mask = inputs["attention_mask"].bool()
        known = {k: v for k, v in inputs.items() if k in ("input_ids", "inputs_embeds", "token_type_ids")}
        tokens = self.body(**known, attention_mask=inputs["attention_mask"]).last_hidden_state
        tokens = zero_masked(tokens, mask)
        if self.pooling == "mean":
            pooled = masked_mean(tokens, mask)
        else:
            last = mask.long().cumsum(1).argmax(1) if self.pooling == "last" else torch.zeros_like(mask[:, 0], dtype=torch.long)
            pooled = tokens[torch.arange(len(tokens), device=tokens.device), last]
        return Encoded(tokens, mask, pooled, mask.any(1))

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (N, L, W) that ``inputs_embeds`` takes."""
        return self.body.get_input_embeddings()(input_ids)

    def stages(self) -> list[list[str]]:
        """Embeddings, each layer, what comes after them."""
        return hf_body.stages(name for name, _ in self.named_parameters())

    def processor(self) -> Processor:
        """The tokenizer."""
        return _Tokens(self.tokenizer, self.max_tokens, self.pairs)

    def blank(self) -> dict[str, Tensor]:
        """The empty text."""
        processor = self.processor()
        return processor.pad([processor("")])

    def checkpoint_gradients(self) -> None:
        """Every layer."""
        hf_body.checkpoint_gradients(self.body)

    def save_assets(self, folder: Path) -> None:
        """Configuration and tokenizer."""
        self.body.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class _Tokens(Processor):
    kind = "text"
    draws = False

    def __init__(self, tokenizer: Any, max_tokens: int, pairs: bool):
        self.tokenizer, self.max_tokens, self.pairs = tokenizer, max_tokens, pairs

    def whole(self, cell: Any) -> bool:
        return self.pairs and len(cell) == 2

    def __call__(self, item: str | Sequence[str], view: str | None = None) -> dict[str, Tensor]:
        texts = [item] if isinstance(item, str) else list(item)
        found = self.tokenizer(*texts, truncation=True, max_length=self.max_tokens)
        keys = [k for k in ("input_ids", "token_type_ids") if k in found]
        tensors = {k: torch.tensor(found[k], dtype=torch.long) for k in keys}
        if not len(tensors["input_ids"]):  # a tokenizer without special tokens leaves nothing of ""
            tensors = {k: torch.tensor([self.tokenizer.pad_token_id if k == "input_ids" else 0]) for k in keys}
        return tensors

    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        fill = {"input_ids": self.tokenizer.pad_token_id}
        batch = {k: pad_sequence([i[k] for i in items], batch_first=True, padding_value=fill.get(k, 0)) for k in items[0]}
        lengths = torch.tensor([len(i["input_ids"]) for i in items])
        return batch | {"attention_mask": (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()}
