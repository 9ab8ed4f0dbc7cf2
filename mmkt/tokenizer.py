"""A tokenizer learned from a manifest's texts, and the configuration of a small BERT that reads it: for any language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, PreTrainedTokenizerFast

from mmkt.checkpoint import atomic
from mmkt.data import manifest as manifests
from mmkt.data import splits
from mmkt.data.columns import cells, is_absent
from mmkt.parts import ConfigError

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


class Learned(NamedTuple):
    """What was written where."""

    folder: Path
    texts: int
    vocabulary: int
    splits: list[str]


def learn(
    manifest: str,
    out: Path,
    *,
    column: str = "text",
    of: Sequence[str] = ("train",),
    vocabulary: int = 8000,
    layers: int = 2,
    width: int = 256,
    heads: int = 4,
    max_tokens: int = 128,
) -> Learned:
    """Learn WordPiece (Schuster and Nakajima, 2012) as BERT splits words: every Chinese character is a word of its own.

    Args:
        manifest: the rows.
        out: a new or empty folder; ``hf_text`` takes it as ``model`` with ``weights: random``.
        column: of the texts; a list in a cell counts as several.
        of: splits that are read; all rows where the manifest names no splits.
        vocabulary: tokens at the most; fewer where the texts have fewer.
        layers: of the BERT, as are ``width``, ``heads`` and ``max_tokens``.
        width: of its hidden states.
        heads: a layer.
        max_tokens: its longest text.

    Raises:
        ManifestError: the manifest can't be used, or lacks the column or a split.
        ConfigError: the folder is not empty, there are no texts, or the heads do not divide the width.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: give --out another folder, or delete it")
    if width % heads:
        raise ConfigError(f"{heads} heads do not divide a width of {width}; give --heads one that does")
    table = manifests.read(manifest)
    texts = manifests.column_of(table, column)
    if table.table["split"].null_count == len(table.table):
        of, chosen = [], [texts]
    else:
        chosen = [texts.take(splits.rows_of(table, split)) for split in of]
    if not (count := sum(1 for _ in _texts(chosen))):
        raise ConfigError(
            f"the column {column!r} has no text in {' and '.join(of) or 'it'}; name another with --column or --splits"
        )
    found = _trained(_texts(chosen), vocabulary)
    config = BertConfig(
        vocab_size=found.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=max_tokens,
        pad_token_id=found.token_to_id(SPECIAL["pad_token"]),
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=found, model_max_length=max_tokens, model_input_names=names, **SPECIAL)
    with atomic(out) as new:
        tokenizer.save_pretrained(new)
        config.save_pretrained(new)
    return Learned(out, count, found.get_vocab_size(), list(of))


def _trained(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    found = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    found.normalizer, found.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL.values()), show_progress=False)
    found.train_from_iterator(texts, trainer)
    ends = [(token, found.token_to_id(token)) for token in (SPECIAL["cls_token"], SPECIAL["sep_token"])]
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return found


def _texts(columns: Sequence[pa.ChunkedArray]) -> Iterator[str]:
    """Every text of some columns, those of a list one by one."""
    for cell in chain.from_iterable(map(cells, columns)):
        yield from (str(text) for text in (cell if isinstance(cell, list) else [cell]) if not is_absent(text))
