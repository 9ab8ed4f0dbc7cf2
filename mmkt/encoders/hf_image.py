"""Pictures through any image model of the transformers library."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from transformers import AutoImageProcessor

from mmkt.layers import hf_body
from mmkt.layers.pixels import Pixels
from mmkt.pretrained import Weights
from mmkt.types import Encoded, Encoder, Processor


class HfImage(Encoder):
    """A Hugging Face image model (ViT, DINOv2, Swin, ConvNeXt, the image side of CLIP or SigLIP …) with its normalisation.

    Inputs are ``pixels`` (N, 3, H, W) in [0, 1]; tokens are the last hidden states, a map's places one after another; those
    of a two-sided model are projected into its shared space, and its own summary is its embedding.
    """

    kind = "image"
    backbone = "body"
    bounds = (0.0, 1.0)
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        house: Mapping[str, Encoder],
        assets: Path | None,
        *,
        model: str = "facebook/dinov2-small",
        weights: Weights = "pretrained",
        pooling: Literal["own", "cls", "mean"] = "own",
        size: Annotated[int, Field(ge=8)] | None = None,
        crop: Annotated[float, Field(gt=0, le=1)] | None = None,
        augment: bool = False,
    ):
        """Load or build the body.

        Args:
            house: unused.
            assets: a checkpoint's folder with configuration and preprocessing.
            model: local folder, or Hub id.
            weights: ``random`` draws the architecture's own initial weights; ``statistics`` draws each tensor anew with the mean
                and deviation of the pretrained one.
            pooling: the model's own summary, its first token, or the mean over all tokens.
            size: side of the square input in pixels; by default the model's own.
            crop: share of the side that evaluation's centre crop keeps; by default the model's own.
            augment: in training, turn by up to 10°, shift by up to 10 %, scale by 0.9 to 1.1.

        Raises:
            ValueError: the model can't be had, or has no such summary.
        """
        super().__init__()
        self.images, self.body = hf_body.load(
            model,
            assets,
            weights=weights,
            reader=AutoImageProcessor,
            take=hf_body.part("image", summary=pooling == "own"),
        )
        self.width: int = hf_body.width(self.body)
        self.pooling, self.augment = pooling, augment
        self.side, self.preprocessing = _geometry(self.images, size, crop)
        mean, std = _normalisation(self.images)
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        inner = hf_body.inner(self.body)
        other = self.side != getattr(inner.config, "image_size", self.side)
        known = inspect.signature(inner.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if other and "interpolate_pos_encoding" in known else {}
        if assets is None:  # a checkpoint's has passed
            self._refuse_summary(model)

    def _refuse_summary(self, model: str) -> None:
        kind, names = type(hf_body.inner(self.body)).__name__, [name for name, _ in self.body.named_parameters()]
        with torch.no_grad():
            training = self.body.training
            out = self.body.eval()(pixel_values=torch.zeros(1, 3, self.side, self.side), **self.options)
            self.body.train(training)
        if self.pooling == "own" and getattr(out, "pooler_output", None) is None:
            raise ValueError(f"{model!r} ({kind}) has no summary of its own; pooling: cls or mean")
        if self.pooling == "cls" and not any(name.endswith(("cls_token", "class_embedding")) for name in names):
            raise ValueError(f"{model!r} ({kind}) has no first token that stands for the picture; pooling: own or mean")
        if self.pooling == "mean" and out.last_hidden_state.ndim == 4 and getattr(out, "pooler_output", None) is not None:
            raise ValueError(f"{model!r} ({kind}) always normalises the mean of its map; pooling: own is that one")

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N pictures."""
        out = self.body(pixel_values=(inputs["pixels"] - self.mean) / self.std, **self.options)
        tokens = out.last_hidden_state
        if tokens.ndim == 4:  # (N, W, h, w)
            tokens = tokens.flatten(2).transpose(1, 2)
        if self.pooling == "own":
            pooled = out.pooler_output
        else:
            pooled = tokens[:, 0] if self.pooling == "cls" else tokens.mean(1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Encoded(tokens, mask, pooled, mask[:, 0])

    def stages(self) -> list[list[str]]:
        """Embeddings, each layer, what comes between and after them."""
        return hf_body.stages(name for name, _ in self.named_parameters())

    def processor(self) -> Processor:
        """Resize and centre crop, in training with ``augment`` a random affine map as well."""
        return Pixels(self.side, 3, self.augment, self.preprocessing)

    def blank(self) -> dict[str, Tensor]:
        """A black picture."""
        return {"pixels": torch.zeros(1, 3, self.side, self.side)}

    def checkpoint_gradients(self) -> None:
        """Every layer."""
        hf_body.checkpoint_gradients(self.body)

    def save_assets(self, folder: Path) -> None:
        """Configuration and preprocessing."""
        self.body.config.save_pretrained(folder)
        self.images.save_pretrained(folder)


def _geometry(images: Any, size: int | None, crop: float | None) -> tuple[int, dict[str, Any]]:
    """Side of the input, and what timm's transform takes for the same resizing and cropping."""
    resized = dict(images.size or {})
    edge = resized.get("shortest_edge")
    side = resized.get("height") or edge or 224
    share = getattr(images, "crop_pct", None) or 1.0  # ConvNeXt: the edge is the crop's
    if getattr(images, "do_center_crop", False) and images.crop_size:
        cut = dict(images.crop_size)["height"]
        side, share = cut, min(1.0, cut / side)
    name = Image.Resampling(int(images.resample)).name.lower()
    return size or side, {"interpolation": name, "crop_pct": crop or share, "crop_mode": "center" if edge else "squash"}


def _normalisation(images: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation (3,) of pixels in [0, 1]."""
    scale = 255 * images.rescale_factor if images.do_rescale else 255.0  # what one unit of ours is to the model
    if not images.do_normalize:
        return torch.zeros(3), torch.full((3,), 1 / scale)
    mean, std = (torch.tensor(x, dtype=torch.float32).expand(3) for x in (images.image_mean, images.image_std))
    return mean / scale, std / scale
