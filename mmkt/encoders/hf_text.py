"""Text through any encoder-only or decoder-only transformer of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from mmkt.layers import hf_body
from mmkt.layers.masked import masked_mean, zero_masked
from mmkt.types import Encoded, Encoder, Processor


class HfText(Encoder):
    """A Hugging Face text model: last hidden states as tokens, and a mean, first-token or last-token summary.

    Inputs are ``input_ids`` (N, L) or ``inputs_embeds`` (N, L, W), and ``attention_mask`` (N, L); with several
    ``windows`` there are K of them for each text: (N, K, L).
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
        windows: Annotated[int, Field(ge=1)] = 1,
        pairs: bool = False,
    ):
        """Load or build the body.

        Args:
            house: unused.
            assets: a checkpoint's folder with configuration and tokenizer.
            model: local folder, or Hub id (installed packages are looked at first).
            weights: ``random`` draws the architecture's own initial weights.
            pooling: of the summary.
            max_tokens: of a window, with the tokenizer's special tokens.
            windows: a longer text is read in up to that many consecutive windows, what is beyond them is cut. Its tokens
                are those of all windows; its summary is the mean of theirs, weighted by their tokens.
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
        self.pooling, self.max_tokens, self.windows, self.pairs = pooling, max_tokens, windows, pairs
        if windows > 1 and (pairs or not self.tokenizer.is_fast):
            found = "pairs: true" if pairs else f"the tokenizer {type(self.tokenizer).__name__}, which is not a fast one"
            raise ValueError(f"windows: {windows} does not go with {found}; set windows: 1")

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N texts."""
        mask = inputs["attention_mask"].bool()
        known = {k: v for k, v in inputs.items() if k in ("input_ids", "inputs_embeds", "token_type_ids")}
        if mask.ndim == 3:
            return self._join(known, mask)
        tokens, pooled = self._read(known, mask)
        return Encoded(tokens, mask, pooled, mask.any(1))

    def _read(self, known: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens = zero_masked(self.body(**known, attention_mask=mask.long()).last_hidden_state, mask)
        if self.pooling == "mean":
            pooled = masked_mean(tokens, mask)
        else:
            last = mask.long().cumsum(1).argmax(1) if self.pooling == "last" else torch.zeros_like(mask[:, 0], dtype=torch.long)
            pooled = tokens[torch.arange(len(tokens), device=tokens.device), last]
        return tokens, pooled

    def _join(self, known: Mapping[str, Tensor], mask: Tensor) -> Encoded:
        """Read the windows (N, K, L) that there are, and put each text's one after another."""
        there = mask.any(2)  # (N, K)
        read, summaries = self._read({name: x[there] for name, x in known.items()}, mask[there])
        tokens, pooled = read.new_zeros(*mask.shape, self.width), summaries.new_zeros(*there.shape, self.width)
        tokens[there], pooled[there] = read, summaries
        share = mask.sum(2) / mask.sum((1, 2))[:, None]  # of a text's tokens
        return Encoded(tokens.flatten(1, 2), mask.flatten(1, 2), (pooled * share[..., None]).sum(1), there[:, 0])

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (N, L, W) that ``inputs_embeds`` takes."""
        return self.body.get_input_embeddings()(input_ids)

    def stages(self) -> list[list[str]]:
        """Embeddings, each layer, what comes after them."""
        return hf_body.stages(name for name, _ in self.named_parameters())

    def processor(self) -> Processor:
        """The tokenizer."""
        return _Tokens(self.tokenizer, self.max_tokens, self.windows, self.pairs)

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

    def __init__(self, tokenizer: Any, max_tokens: int, windows: int, pairs: bool):
        self.tokenizer, self.max_tokens, self.windows, self.pairs = tokenizer, max_tokens, windows, pairs

    def whole(self, cell: Any) -> bool:
        return self.pairs and len(cell) == 2

    def __call__(self, item: str | Sequence[str], view: str | None = None) -> dict[str, Tensor]:
        """Windows (K, L) of one text, and whether some of it is beyond them."""
        texts = [item] if isinstance(item, str) else list(item)
        if self.windows > 1:
            found = self.tokenizer(*texts, truncation=True, max_length=self.max_tokens, return_overflowing_tokens=True)
            cut = len(found["input_ids"]) > self.windows
        else:
            found = {k: [v] for k, v in self.tokenizer(*texts, verbose=False).items()}
            cut = len(found["input_ids"][0]) > self.max_tokens
            if cut:
                found = {k: [v] for k, v in self.tokenizer(*texts, truncation=True, max_length=self.max_tokens).items()}
        keys = [k for k in ("input_ids", "token_type_ids") if k in found]
        windows = {k: [torch.tensor(x, dtype=torch.long) for x in found[k][: self.windows]] for k in keys}
        if not len(windows["input_ids"][0]):  # a tokenizer without special tokens leaves nothing of ""
            windows = {k: [torch.tensor([self._fill(k)])] for k in keys}
        lengths = torch.tensor([len(x) for x in windows["input_ids"]])
        tensors = {k: pad_sequence(v, batch_first=True, padding_value=self._fill(k)) for k, v in windows.items()}
        return tensors | {"lengths": lengths, "cut": torch.tensor(cut)}

    def _fill(self, key: str) -> int:
        return self.tokenizer.pad_token_id if key == "input_ids" else 0

    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """(N, L), or (N, K, L) where there may be several windows."""
        number, length = (max(item["input_ids"].shape[d] for item in items) for d in (0, 1))
        batch = {}
        for key in items[0].keys() - {"lengths", "cut"}:
            ends = [(0, length - x.shape[1], 0, number - x.shape[0]) for x in (item[key] for item in items)]
            batch[key] = torch.stack([F.pad(item[key], end, value=self._fill(key)) for item, end in zip(items, ends)])
        lengths = pad_sequence([item["lengths"] for item in items], batch_first=True)  # (N, K)
        batch["attention_mask"] = (torch.arange(length) < lengths[..., None]).long()
        if self.windows == 1:
            batch = {key: x[:, 0] for key, x in batch.items()}
        return batch | {"cut": torch.stack([item["cut"] for item in items])}
