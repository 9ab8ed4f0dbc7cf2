"""Where families of bodies keep what adapters go on: attention's projections and the feed-forward's two layers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from mmkt.types import Encoder

Role = Literal["query", "key", "value", "attention_out", "up", "down"]
NAMES: tuple[Role, ...] = ("query", "key", "value", "attention_out", "up", "down")


def _preset(block: str, *layers: str) -> dict[Role, str]:
    """Anchored regular expressions by role: a block's name, then its layers in the order of ``NAMES``."""
    start = block.replace(".", r"\.") + r"\.\d+\."
    return {role: start + layer.replace(".", r"\.") for role, layer in zip(NAMES, layers)}


def _either(*sides: dict[Role, str]) -> dict[Role, str]:
    """Of a family whose bodies are of several kinds."""
    return {role: "|".join(side[role] for side in sides) for role in NAMES}


def _each(name: str, *words: str) -> tuple[str, ...]:
    return tuple(name.format(word) for word in words)


BERT = (
    *_each("attention.self.{}", "query", "key", "value"),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
VIT = (*_each("attention.{}_proj", *"qkvo"), "mlp.fc1", "mlp.fc2")
WAVES = _preset(
    "encoder.layers",
    *_each("attention.{}_proj", "q", "k", "v", "out"),
    *_each("feed_forward.{}_dense", "intermediate", "output"),
)
LLAMA = _preset("layers", *_each("self_attn.{}_proj", *"qkvo"), "mlp.(?:gate|up)_proj", "mlp.down_proj")
SELF = _each("self_attn.{}_proj", "q", "k", "v", "out")
CLIP = _preset("tower.encoder.layers", *SELF, "mlp.fc1", "mlp.fc2")
WHISPER = _preset("layers", *SELF, "fc1", "fc2")
MPNET = _preset("encoder.layer", *_each("attention.attn.{}", *"qkvo"), "intermediate.dense", "output.dense")
# one layer makes queries, keys and values
GPT2 = ("attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
TIMM = ("attn.qkv", "attn.qkv", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
PRESETS: dict[str, dict[Role, str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _preset("encoder.layer", *BERT)),
    "mpnet": MPNET,
    "distilbert": _preset("transformer.layer", *(f"attention.{x}_lin" for x in ("q", "k", "v", "out")), "ffn.lin1", "ffn.lin2"),
    "gpt2": _preset("h", *GPT2),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), LLAMA),
    **dict.fromkeys(("clip", "siglip"), CLIP),
    "chinese_clip": _either(_preset("tower.encoder.layer", *BERT), CLIP),
    "clap": _either(_preset("tower.encoder.layer", *BERT), _preset(r"tower.audio_encoder.layers.\d+.blocks", *BERT)),
    **dict.fromkeys(("wav2vec2", "hubert"), WAVES),
    # torch's function for its attention reads the layers' weights without running them: no adapter would be heard
    "wavlm": {role: pattern for role, pattern in WAVES.items() if role in ("up", "down")},
    "whisper": WHISPER,
    **dict.fromkeys(("audio-spectrogram-transformer", "vit"), _preset("layers", *VIT)),
    "dinov2": _preset("encoder.layer", *VIT),
    "swin": _preset(r"encoder.layers.\d+.blocks", *VIT),
    "VisionTransformer": _preset("blocks", *TIMM),
    "SwinTransformer": _preset(r"layers.\d+.blocks", *TIMM),
    "mmkt": _preset("blocks", *(f"attention.{x}" for x in "qkvo"), "fc1", "fc2"),
}


def body_of(encoder: Encoder) -> nn.Module:
    """The body that an adapter changes.

    Raises:
        ValueError: the encoder owns none.
    """
    if encoder.backbone is None:
        kind = type(encoder).__name__
        raise ValueError(
            f"{kind} owns no body for an adapter: put it on the encoder that owns the body which this one shares, "
            "or leave it out where there is none"
        )
    return encoder.get_submodule(encoder.backbone)


def full(encoder: Encoder, name: str) -> str:
    """A name below the body as the encoder has it."""
    return f"{encoder.backbone}.{name}" if encoder.backbone else name


def family(body: nn.Module) -> str:
    """The type of a transformers model, the class of a timm one, else ``mmkt``."""
    config: Any = getattr(body, "config", None)
    if hasattr(config, "model_type"):
        return str(config.model_type)
    return type(body).__name__ if type(body).__module__.startswith("timm.") else "mmkt"


def layers_of(encoder: Encoder, roles: Sequence[Role], targets: Sequence[str] | None) -> list[str]:
    """Names below the body of the linear layers that an adapter goes on, in order.

    Args:
        encoder: that owns the body.
        roles: where the family's preset has them.
        targets: shell-style patterns on whole names (``*`` stands for dots too), in place of roles.

    Raises:
        ValueError: no preset and no targets, a role that the family lacks, or a pattern that matches no linear layer.
    """
    body = body_of(encoder)
    modules = dict(body.named_modules())
    # of torch's own attention the output projection is never run as a module
    linear = [n for n, m in modules.items() if isinstance(m, (nn.Linear, Conv1D)) and "NonDynamically" not in type(m).__name__]
    if targets is not None:
        for pattern in targets:
            if not any(fnmatchcase(name, pattern) for name in linear):
                raise ValueError(f"targets: {_lost(pattern, linear, [name for name in modules if name])}")
        return [name for name in linear if any(fnmatchcase(name, pattern) for pattern in targets)]
    kind = family(body)
    preset = PRESETS.get(kind)
    lacking = [role for role in roles if preset and role not in preset]
    if preset and lacking:
        raise ValueError(
            f"a {kind} body has no layer of its own as {' or '.join(lacking)}: what it has there would not notice an adapter. "
            f"Allowed are roles: [{', '.join(preset)}]"
        )
    patterns = [preset[role] for role in roles] if preset else []
    found = [name for name in linear if any(re.fullmatch(pattern, name) for pattern in patterns)]
    if not found:
        some = next((name for name in reversed(linear) if re.search(r"\.\d+\.", name)), "blocks.0.fc1")
        why = (
            f"the preset of the family {kind} matches nothing in this one"
            if preset
            else f"there is no preset for the family {kind}"
        )
        raise ValueError(
            f"{why}; there are presets for {', '.join(PRESETS)}. "
            f"Say which of its linear layers are meant, such as targets: ['{re.sub(r'[.][0-9]+[.]', '.*.', some)}']"
        )
    return found


def pairs(encoder: Encoder, first: Role, last: Role) -> list[tuple[str, str]]:
    """The layers of two roles, block by block; of several in one block the first.

    Raises:
        ValueError: as ``layers_of``.
    """
    firsts = {_block(name): name for name in reversed(layers_of(encoder, [first], None))}
    return [(firsts[_block(name)], name) for name in layers_of(encoder, [last], None)]


def _block(name: str) -> str:
    return name[: re.match(r".*\.\d+\.", name).end()]  # type: ignore[union-attr]


def parameters_of(encoder: Encoder, names: Sequence[str], targets: Sequence[str] | None) -> set[str]:
    """The encoder's names of those of the body's parameters whose modules ``targets`` match; all of them by default.

    Raises:
        ValueError: a pattern that matches none.
    """
    modules = [name.rpartition(".")[0] for name in names]
    for pattern in targets or ():
        if not any(fnmatchcase(module, pattern) for module in modules):
            near = difflib.get_close_matches(pattern, modules, n=3, cutoff=0.3) or modules[:3]
            raise ValueError(
                f"targets: {pattern!r} matches nothing; patterns are of whole names below the body, near are {', '.join(near)}"
            )
    chosen = [targets is None or any(fnmatchcase(module, pattern) for pattern in targets) for module in modules]
    return {full(encoder, name) for name, yes in zip(names, chosen) if yes}


def _lost(pattern: str, linear: Sequence[str], modules: Sequence[str]) -> str:
    """Why a pattern matches no linear layer, and what is near it."""
    other = [name for name in modules if fnmatchcase(name, pattern)]
    why = f"{pattern!r} matches {other[0]}, which is no linear layer" if other else f"{pattern!r} matches nothing"
    near = difflib.get_close_matches(pattern, linear, n=3, cutoff=0.3) or list(linear[:3])
    return f"{why}; patterns are of whole names below the body, near are {', '.join(near) or 'none: it has no linear layer'}"
