"""Layers from the PEFT library on a body's linear layers, and back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmkt.layers.presets import body_of, full
from mmkt.types import Encoder


def inject(encoder: Encoder, tuner: type, config: type, names: Sequence[str], **settings: Any) -> tuple[set[str], Any]:
    """Put a PEFT method on linear layers of the body.

    Args:
        encoder: changed in place.
        tuner: PEFT's class of the method. ``inject_adapter_in_model`` only calls it, and refuses VeRA for what it shares.
        config: PEFT's class of its settings.
        names: of the layers, below the body.
        settings: of the method.

    Returns:
        Names of the encoder's parameters that it added, and the tuner.
    """
    body = body_of(encoder)
    before = {id(p) for p in body.parameters()}
    settings["target_modules"] = exactly(names)
    settings["fan_in_fan_out"] = any(isinstance(body.get_submodule(name), Conv1D) for name in names)
    with warnings.catch_warnings():
        # where Linear and Conv1D are mixed, PEFT says which it takes as what, and does so
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        warnings.filterwarnings("ignore", message="Specified to not save vera_A")  # we do it ourselves
        # in a shell of its own the body has no configuration, of which PEFT would ask what a two-sided model's does not say
        made = tuner(nn.ModuleDict({"body": body}), config(**settings), "default")
    return {full(encoder, name) for name, p in body.named_parameters() if id(p) not in before}, made


def exactly(names: Sequence[str]) -> str:
    """A regular expression that matches these names below the body alone."""
    return "|".join(re.escape(f"body.{name}") for name in names)


def merge(encoder: Encoder) -> None:
    """Work every layer's change into the linear layer below it, which takes its old place."""
    body = body_of(encoder)
    for name, layer in list(body.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            with torch.no_grad():
                layer.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(body.get_submodule(parent), own, layer.get_base_layer())
