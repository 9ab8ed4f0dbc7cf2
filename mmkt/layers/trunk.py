"""A timm model as a trunk: pictures (or spectrograms) in, a grid of tokens and a summary out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from mmkt.layers.redraw import redraw
from mmkt.pretrained import unreachable


class Trunk(nn.Module):
    """Any timm model without its classifier.

    Args:
        name: a timm name, a local folder, or a Hub id (``org/name``).
        weights: ``pretrained``, ``random``, or ``statistics``: drawn anew with the pretrained ones' means and deviations.
        channels: of the input.
        size: (height, width) of the input; passed to the models that are built for one size.
        options: further arguments of ``timm.create_model``.
        assets: a checkpoint's folder that ``save`` has written to; then name, channels, size and options come from it.

    Raises:
        ValueError: for a name that timm does not have, or weights that can't be had.
    """

    body: Any

    def __init__(
        self,
        name: str,
        *,
        weights: str,
        channels: int = 3,
        size: tuple[int, int] | None = None,
        options: Mapping[str, Any] | None = None,
        assets: Path | None = None,
    ):
        super().__init__()
        if assets:
            kept = json.loads((assets / "timm.json").read_text())
            self.body = timm.create_model(kept["architecture"], pretrained=False, num_classes=0, **kept["options"])
            self.body.pretrained_cfg = self.body.default_cfg = kept["config"]
            self.options = kept["options"]
        else:
            self.options = {"in_chans": channels} | dict(options or {})
            self.body, self.options = _create(name, weights != "random", self.options, size)
            if weights == "statistics":
                redraw(self.body)
        self.width: int = self.body.num_features
        # Where the head has a layer of its own, the summary would have another width than the tokens.
        self.own_summary = getattr(self.body, "head_hidden_size", self.width) == self.width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) → tokens (N, L, W), summary (N, W)."""
        grid = self.body.forward_features(x)
        tokens = grid
        if grid.ndim == 4:
            tokens = grid.flatten(2).transpose(1, 2) if grid.shape[1] == self.width else grid.flatten(1, 2)
        return tokens, self.body.forward_head(grid, pre_logits=True) if self.own_summary else tokens.mean(1)

    def stages(self, prefix: str) -> list[list[str]]:
        """Parameter names from input to output, as timm groups them."""
        groups = group_parameters(self.body, self.body.group_matcher(coarse=False))
        return [[f"{prefix}body.{name}" for name in groups[key]] for key in sorted(groups)]

    def checkpoint_gradients(self) -> None:
        """Have blocks computed again in backward.

        A batch norm inside them then moves its running statistics twice a step; the gradients are the same.

        Raises:
            ValueError: the architecture can't.
        """
        kind = type(self.body).__name__
        try:
            self.body.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            raise ValueError(f"timm's {kind} cannot compute blocks again; set train.checkpointing: false") from None

    def data_config(self) -> dict[str, Any]:
        """The preprocessing timm has for this model: mean, std, interpolation, crop_pct, input_size."""
        return timm.data.resolve_data_config(model=self.body, verbose=False)

    def save(self, folder: Path) -> None:
        """Write the architecture, so that it can be rebuilt without name or Hub."""
        config = {k: v for k, v in self.body.pretrained_cfg.items() if isinstance(v, (str, int, float, bool, list, tuple))}
        kept = {"architecture": self.body.default_cfg.get("architecture"), "options": self.options, "config": config}
        (folder / "timm.json").write_text(json.dumps(kept, indent=2) + "\n")


def _create(
    name: str, pretrained: bool, options: dict[str, Any], size: tuple[int, int] | None
) -> tuple[nn.Module, dict[str, Any]]:
    source = f"local-dir:{name}" if Path(name).is_dir() else f"hf-hub:{name}" if "/" in name else name
    if source == name and not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        raise ValueError(f"timm has no model {name!r}; near it: {', '.join(near) or 'none'} (all of them: timm.list_models())")
    attempts = [options | {"img_size": size}, options] if size else [options]
    for attempt in attempts:
        try:
            return timm.create_model(source, pretrained=pretrained, num_classes=0, **attempt), attempt
        except TypeError as error:  # a convolutional model is not built for one size
            if "img_size" in attempt and "img_size" in str(error):
                continue
            raise ValueError(f"timm's {name!r} does not take the options {options}: {error}") from None
        except (OSError, RuntimeError, torch.serialization.pickle.UnpicklingError) as error:
            raise unreachable(name, error) from error
    raise AssertionError("unreachable")
