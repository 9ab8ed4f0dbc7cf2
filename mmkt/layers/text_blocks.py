"""The blocks of a text transformer, fed with tokens that are no words."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

VOCABULARY = 512  # words whose embeddings are looked at together


class Layout(NamedTuple):
    """Where a family keeps what."""

    blocks: str
    embeddings: tuple[str, ...]  # what makes tokens of words; dropped from a body of one's own
    last: str | None  # the norm behind the blocks
    causal: bool  # a token sees those before it alone


BERT = Layout("encoder.layer", ("embeddings", "embeddings_project"), None, False)
LLAMA = Layout("layers", ("embed_tokens",), "norm", True)
LAYOUTS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    "distilbert": Layout("transformer.layer", ("embeddings",), None, False),
    "gpt2": Layout("h", ("wte", "wpe"), "ln_f", True),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
}


def layout(body: Any) -> Layout:
    """Of a body.

    Raises:
        ValueError: its family is not known.
    """
    kind = body.config.model_type
    if kind not in LAYOUTS:
        raise ValueError(f"cannot borrow the blocks of a {kind} model; bodies of these types can be: {', '.join(LAYOUTS)}")
    return LAYOUTS[kind]


def embed_words(body: Any, ids: Tensor) -> Tensor:
    """What words (N, L) enter the blocks as, (N, L, W)."""
    names = layout(body).embeddings
    found = getattr(body, names[0])(ids)
    if "wpe" in names:
        found = found + body.wpe(torch.arange(ids.shape[1], device=ids.device))
    if getattr(body, "embeddings_project", None) is not None:  # ELECTRA's may be narrower
        found = body.embeddings_project(found)
    return found


def typical_norm(body: Any) -> float:
    """The mean length of the vectors that words enter the blocks as, over the vocabulary."""
    size, training, total = body.get_input_embeddings().num_embeddings, body.training, 0.0
    body.eval()
    with torch.no_grad():
        for ids in torch.arange(size).split(min(VOCABULARY, body.config.max_position_embeddings // 2)):
            total += float(embed_words(body, ids[None]).norm(dim=-1).sum())
    body.train(training)
    return total / size


def cut(body: Any, layers: int | None) -> None:
    """Leave the first blocks and the last norm alone, in place: no words, no pooler.

    Raises:
        ValueError: there are not that many blocks.
    """
    found = layout(body)
    blocks = body.get_submodule(found.blocks)
    if layers is not None:
        if layers > len(blocks):
            raise ValueError(f"layers: {layers} is more than the {len(blocks)} that the body has")
        del blocks[layers:]
        body.config.num_hidden_layers = layers
    for name in (*found.embeddings, "pooler"):
        if getattr(body, name, None) is not None:
            setattr(body, name, None)


def run(body: Any, tokens: Tensor, mask: Tensor, layers: int | None = None) -> Tensor:
    """Tokens (N, L, W) through the first blocks (all by default) and the last norm; ``mask`` (N, L) bool says what is there."""
    found = layout(body)
    mask_of = create_causal_mask if found.causal else create_bidirectional_mask
    places = torch.arange(tokens.shape[1], device=tokens.device)[None]
    more = {"position_ids": places} if found.causal else {}
    bias = mask_of(config=body.config, inputs_embeds=tokens, attention_mask=mask, **({"cache": None} | more if more else {}))
    if found is LLAMA:
        more["position_embeddings"] = body.rotary_emb(tokens, position_ids=places)
    x: Any = tokens
    for block in body.get_submodule(found.blocks)[:layers]:
        x = block(x, attention_mask=bias, **more)
        x = x[0] if isinstance(x, tuple) else x
    last: nn.Module | None = body.get_submodule(found.last) if found.last else None
    return last(x) if last is not None else x
