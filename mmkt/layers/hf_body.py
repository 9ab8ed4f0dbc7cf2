"""Bodies from the transformers library: loading them whole or refusing in words, and the order of their parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from mmkt.layers import unread_mask
from mmkt.layers.hf_tower import TYPES, Tower
from mmkt.layers.redraw import redraw
from mmkt.pretrained import resolve, unreachable

logging.disable_progress_bar()  # ours is the one bar


def load(
    name: str,
    assets: Path | None,
    *,
    weights: str,
    reader: Any,
    changes: Mapping[str, Any] | None = None,
    take: Callable[[Any], nn.Module] = lambda body: body,
) -> tuple[Any, Any]:
    """A model and what reads its raw items.

    Args:
        name: local folder, or Hub id (installed packages are looked at first).
        assets: a checkpoint's folder with configuration and reader; then the weights are left to the caller.
        weights: ``pretrained`` ones, in float32; ``random`` gives the architecture's own initial ones, ``statistics`` draws
            every tensor anew with the mean and deviation of the pretrained one.
        reader: ``AutoTokenizer``, ``AutoImageProcessor``, ``AutoFeatureExtractor``; None where nothing is read.
        changes: of the configuration, where it has such a setting.
        take: the part of the model that is used.

    Returns:
        The reader, and the part.

    Raises:
        ValueError: they can't be had (weights are read from safetensors alone), or the file lacks weights of that part.
    """
    source = str(assets) if assets else resolve(name)
    try:
        read = reader.from_pretrained(source) if reader else None
        config = AutoConfig.from_pretrained(source)
        for key, value in (changes or {}).items():
            if hasattr(config, key):
                setattr(config, key, value)
        if assets or weights == "random":
            return read, take(unread_mask.use(AutoModel.from_config(config)))
        whole, report = AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise unreachable(name, error) from error
    drawn = {id(p) for key, p in whole.named_parameters() if key in report["missing_keys"]}
    body = take(unread_mask.use(whole))
    lacking = [key for key, p in body.named_parameters() if id(p) in drawn]
    if lacking:
        raise ValueError(
            f"the weights of {name!r} lack {len(lacking)} of its {type(body).__name__}'s parameters ({lacking[0]} is one): "
            "give a checkpoint that has them, another pooling if they are the pooler's, or weights: random"
        )
    if weights == "statistics":
        redraw(body)
    return read, body


def part(side: str, *, summary: bool) -> Callable[[Any], nn.Module]:
    """For ``load``: one side of a two-sided model, else all of it.

    Args:
        side: ``text``, ``image`` or ``audio``.
        summary: False leaves a pooler out: where the summary is another, its weights would train on nothing.
    """

    def take(body: Any) -> nn.Module:
        if body.config.model_type in TYPES:
            return Tower(body, side, summary)
        if not summary and getattr(body, "pooler", None) is not None:
            body.pooler = None
        return body

    return take


def inner(body: Any) -> Any:
    """The transformers model itself, whose configuration has the body's own sizes."""
    return body.tower if isinstance(body, Tower) else body


def width(body: Any) -> int:
    """Of its tokens and of its summary."""
    if isinstance(body, Tower):
        return body.width
    sizes = getattr(body.config, "hidden_sizes", None)
    return sizes[-1] if sizes else body.config.hidden_size


def positions(body: Any) -> int | None:
    """Tokens that a text body has positions for; None where any number will do."""
    found = getattr(inner(body).config, "max_position_embeddings", None)
    if not found or found < 0:
        return None
    # RoBERTa and its kin count positions from behind the padding's
    table = next((m for name, m in body.named_modules() if name.endswith("position_embeddings")), None)
    padding = getattr(table, "padding_idx", None)
    return found if padding is None else found - padding - 1


def checkpoint_gradients(body: Any) -> None:
    """Have every layer computed again in backward.

    Raises:
        ValueError: the architecture can't.
    """
    body = inner(body)
    if not body.supports_gradient_checkpointing:
        raise ValueError(f"transformers' {type(body).__name__} cannot compute layers again; set train.checkpointing: false")
    kind = {"use_reentrant": False}
    if hasattr(body, "activation_checkpointing_enable"):
        body.activation_checkpointing_enable(activation_checkpointing_kwargs=kind)
    else:  # transformers 5.20 has only the older name, which later ones warn of
        body.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)


def stages(names: Iterable[str]) -> list[list[str]]:
    """Parameter names, in the order of registration, cut wherever the numbers of layers in them change."""

    def place(name: str) -> list[str]:
        return re.findall(r"\.(?:layer|layers|h|block|blocks|stages|conv_layers)\.(\d+)(?=\.)", name)

    return [list(group) for _, group in groupby(names, lambda name: (place(name), "conv_layers" in name))]
