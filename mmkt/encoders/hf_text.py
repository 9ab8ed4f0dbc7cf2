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
from mmkt.layers.windows import read_windows
from mmkt.pretrained import Weights
from mmkt.types import Encoded, Encoder, Processor


class HfText(Encoder):
    """A Hugging Face text model (BERT, RoBERTa, GPT-2 …, the text side of CLIP, SigLIP or CLAP): last hidden states as tokens.

    Inputs are ``input_ids`` (N, L) or ``inputs_embeds`` (N, L, W), and ``attention_mask`` (N, L); with several
    ``windows`` there are K of them for each text: (N, K, L). Tokens of a two-sided model are projected into its shared space.
    """

    kind = "text"
    backbone = "body"

    def __init__(
        self,
        house: Mapping[str, Encoder],
        assets: Path | None,
        *,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        weights: Weights = "pretrained",
        pooling: Literal["own", "mean", "cls", "last"] = "own",
        max_tokens: Annotated[int, Field(ge=2)] | None = None,
        windows: Annotated[int, Field(ge=1)] = 1,
        pairs: bool = False,
    ):
        """Load or build the body.

        Args:
            house: unused.
            assets: a checkpoint's folder with configuration and tokenizer.
            model: local folder, or Hub id (installed packages are looked at first).
            weights: ``random`` draws the architecture's own initial weights; ``statistics`` draws each tensor anew with the mean
                and deviation of the pretrained one.
            pooling: the model's own summary (a two-sided model's embedding; the others' is the mean), the mean over tokens,
                the first or the last token.
            max_tokens: of a window, with the tokenizer's special tokens; by default 128, or what the model takes if that is
                less. SigLIP reads as many as it takes, no fewer.
            windows: a longer text is read in up to that many consecutive windows, what is beyond them is cut. Its tokens
                are those of all windows; its summary is the mean of theirs, weighted by their tokens.
            pairs: a cell's list of two strings is one input with the tokenizer's separator, not two items.

        Raises:
            ValueError: the model can't be had or has no text side, takes another number of tokens, or no windows can be made.
        """
        super().__init__()
        self.tokenizer, self.body = hf_body.load(
            model,
            assets,
            weights=weights,
            reader=AutoTokenizer,
            take=hf_body.part("text", summary=False),
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        hf_body.inner(self.body).config.use_cache = False
        self.width: int = hf_body.width(self.body)
        self.full_length: bool = getattr(self.body, "full_length", False)
        self.pooling = getattr(self.body, "pick", "mean") if pooling == "own" else pooling
        self.max_tokens, self.windows, self.pairs = self._most(model, max_tokens), windows, pairs
        if windows > 1 and (pairs or not self.tokenizer.is_fast):
            found = "pairs: true" if pairs else f"the tokenizer {type(self.tokenizer).__name__}, which is not a fast one"
            raise ValueError(f"windows: {windows} does not go with {found}; set windows: 1")

    def _most(self, model: str, asked: int | None) -> int:
        """Tokens of a window; what the tokenizer was saved with is a default, what the body has positions for a limit."""
        most = hf_body.positions(self.body)
        if asked is not None and most is not None and (asked > most or (self.full_length and asked < most)):
            allowed = f"{most} alone, padding included," if self.full_length else f"up to {most}"
            raise ValueError(f"max_tokens: {asked} is not what {model!r} takes; {allowed} are allowed")
        if self.full_length:
            assert most is not None, "SigLIP has learned positions"
            return most
        return asked or min(128, most or 128, self.tokenizer.model_max_length)

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N texts."""
        known = {k: v for k, v in inputs.items() if k in ("input_ids", "inputs_embeds", "token_type_ids", "attention_mask")}
        return read_windows(self._read, known, known["attention_mask"].sum(-1))

    def _read(self, known: Mapping[str, Tensor]) -> Encoded:
        mask = known["attention_mask"].bool()
        tokens = zero_masked(self.body(**known).last_hidden_state, mask)
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
        return _Tokens(self.tokenizer, self.max_tokens, self.windows, self.pairs, self.full_length)

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
    pads = True
    draws = False

    def __init__(self, tokenizer: Any, max_tokens: int, windows: int, pairs: bool, full_length: bool):
        self.tokenizer, self.max_tokens, self.windows, self.pairs = tokenizer, max_tokens, windows, pairs
        self.full_length = full_length  # padding is part of the text

    def whole(self, cell: Any) -> bool:
        return self.pairs and len(cell) == 2 and not any(isinstance(part, list) for part in cell)  # two pairs are two items

    def length(self, item: str | Sequence[str]) -> int:
        """Its tokens, up to those that are cut off; of a text of several windows each is padded to a full one."""
        texts = [item] if isinstance(item, str) else list(item)
        found = self.tokenizer(*texts, verbose=False, return_attention_mask=False, return_token_type_ids=False)
        count = len(found["input_ids"])
        if count <= self.max_tokens and not self.full_length:
            return self.padded(max(1, count), self.max_tokens)
        special = self.tokenizer.num_special_tokens_to_add()  # in every window
        windows = -(-(count - special) // max(1, self.max_tokens - special))
        return max(1, min(self.windows, windows)) * self.max_tokens

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
        if self.full_length:
            windows = {k: [F.pad(x, (0, self.max_tokens - len(x)), value=self._fill(k)) for x in v] for k, v in windows.items()}
        lengths = torch.tensor([len(x) for x in windows["input_ids"]])
        tensors = {k: pad_sequence(v, batch_first=True, padding_value=self._fill(k)) for k, v in windows.items()}
        return tensors | {"lengths": lengths, "cut": torch.tensor(cut)}

    def _fill(self, key: str) -> int:
        return self.tokenizer.pad_token_id if key == "input_ids" else 0

    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """(N, L), or (N, K, L) where there may be several windows."""
        number, length = (max(item["input_ids"].shape[d] for item in items) for d in (0, 1))
        length, batch = self.padded(length, self.max_tokens), {}
        for key in items[0].keys() - {"lengths", "cut"}:
            ends = [(0, length - x.shape[1], 0, number - x.shape[0]) for x in (item[key] for item in items)]
            batch[key] = torch.stack([F.pad(item[key], end, value=self._fill(key)) for item, end in zip(items, ends)])
        lengths = pad_sequence([item["lengths"] for item in items], batch_first=True)  # (N, K)
        batch["attention_mask"] = (torch.arange(length) < lengths[..., None]).long()
        if self.windows == 1:
            batch = {key: x[:, 0] for key, x in batch.items()}
        return batch | {"cut": torch.stack([item["cut"] for item in items])}
