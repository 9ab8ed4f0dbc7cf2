"""Pictures through any model of the timm library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmkt.layers.pixels import Pixels
from mmkt.layers.trunk import Trunk
from mmkt.pretrained import Weights
from mmkt.types import Encoded, Encoder, Processor


class TimmImage(Encoder):
    """A timm trunk behind a normalisation of its own: inputs are ``pixels`` (N, C, H, W) in [0, 1]."""

    kind = "image"
    backbone = "trunk.body"
    bounds = (0.0, 1.0)
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        house: Mapping[str, Encoder],
        assets: Path | None,
        *,
        model: str = "vit_small_patch16_224",
        weights: Weights = "pretrained",
        size: Annotated[int, Field(ge=8)] | None = None,
        channels: Literal[1, 3] = 3,
        crop: Annotated[float, Field(gt=0, le=1)] | None = None,
        augment: bool = False,
        options: dict[str, Any] = {},  # noqa: B006 - never changed
    ):
        """Load or build the trunk.

        Args:
            house: unused.
            assets: a checkpoint's folder with the architecture.
            model: a timm name, a local folder or a Hub id.
            weights: ``random`` draws the architecture's own initial weights; ``statistics`` draws each tensor anew with the mean
                and deviation of the pretrained one.
            size: side of the square input in pixels; by default the model's own.
            channels: 1 takes pictures as grey.
            crop: share of the side that evaluation's centre crop keeps; by default the model's own with pretrained
                weights, else all of it.
            augment: in training, turn by up to 10°, shift by up to 10 %, scale by 0.9 to 1.1.
            options: further arguments of ``timm.create_model``.
        """
        super().__init__()
        self.trunk = Trunk(
            model,
            weights=weights,
            channels=channels,
            size=(size, size) if size else None,
            options=options,
            assets=assets,
        )
        self.width = self.trunk.width
        known = self.trunk.data_config()
        own = crop or (known["crop_pct"] if weights != "random" else 1.0)
        self.channels, self.side, self.augment = channels, size or known["input_size"][-1], augment
        self.preprocessing = {"interpolation": known["interpolation"], "crop_pct": own}
        mean, std = (torch.tensor(known[key], dtype=torch.float32) for key in ("mean", "std"))
        if channels == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N pictures."""
        tokens, pooled = self.trunk((inputs["pixels"] - self.mean) / self.std)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Encoded(tokens, mask, pooled, mask[:, 0])

    def stages(self) -> list[list[str]]:
        """As timm groups its parameters."""
        return self.trunk.stages("trunk.")

    def processor(self) -> Processor:
        """Resize and centre crop, in training with ``augment`` a random affine map as well."""
        return Pixels(self.side, self.channels, self.augment, self.preprocessing)

    def blank(self) -> dict[str, Tensor]:
        """A black picture."""
        return {"pixels": torch.zeros(1, self.channels, self.side, self.side)}

    def checkpoint_gradients(self) -> None:
        """As timm divides the trunk."""
        self.trunk.checkpoint_gradients()

    def save_assets(self, folder: Path) -> None:
        """The architecture."""
        self.trunk.save(folder)
