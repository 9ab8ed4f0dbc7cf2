"""Attention masks of the transformers library, made without asking a GPU whether they mask anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_unread"


def unread_mask(
    *,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    **named: Any,
) -> Tensor | None:
    """The library's mask for torch's attention; it is left out, where it would mask nothing, on a CPU alone.

    To leave it out the library reads a number, for which the host would wait until the device has done all steps so far: the
    next step's kernels would be launched only then, in every step. Everything else is ``transformers.masking_utils.sdpa_mask``.
    """
    free = torch.device(device).type == "cpu"
    return sdpa_mask(
        allow_is_causal_skip=allow_is_causal_skip and free,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip and free,
        device=device,
        **named,
    )


AttentionInterface.register(NAME, sdpa_attention_forward)
AttentionMaskInterface.register(NAME, unread_mask)


def use(body: Any) -> Any:
    """The same model with such masks, where it takes torch's attention."""
    if body.config._attn_implementation == "sdpa":
        body.set_attn_implementation(NAME)
    return body
