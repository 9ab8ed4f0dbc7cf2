"""Which parameters belong to normalisation layers."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

KINDS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)


def norm_parameters(module: nn.Module) -> set[str]:
    """Names of the scales and shifts of every norm, also of libraries' own (``LlamaRMSNorm``, ``LayerNorm2d``)."""
    names = set()
    for path, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, KINDS) or kind.endswith("Norm") or "LayerNorm" in kind:
            names |= {f"{path}.{name}" if path else name for name, _ in layer.named_parameters(recurse=False)}
    return names
