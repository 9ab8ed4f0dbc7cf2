"""Pictures or sounds through the blocks of a text-pretrained transformer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from mmkt.layers import hf_body, text_blocks
from mmkt.layers.log_mel import LogMel
from mmkt.layers.masked import masked_mean, zero_masked
from mmkt.layers.pixels import Pixels
from mmkt.layers.waveform import Waveform
from mmkt.pretrained import Weights
from mmkt.types import Encoded, Encoder, Processor


class Borrow(Encoder):
    """A text-pretrained body for another modality (Frozen pretrained transformers, Lu et al., 2021; ORCA, Shen et al., 2023).

    Patches of ``pixels`` (N, C, H, W) in [0, 1], or of the log-mel frames of a ``waveform`` (N, T) in [−1, 1] with its
    ``lengths`` (N,), go through a linear embedder, learned positions and a norm of their own, then through the body's blocks.
    The norm starts with a scale that gives tokens the length which words have on average where they enter the blocks.
    """

    positions: nn.Parameter

    def __init__(
        self,
        house: Mapping[str, Encoder],
        assets: Path | None,
        *,
        reads: Literal["image", "audio"],
        body: str = "sentence-transformers/all-MiniLM-L6-v2",
        weights: Weights = "pretrained",
        own: bool = False,
        layers: Annotated[int, Field(ge=0)] | None = None,
        pooling: Literal["mean", "first", "last"] = "mean",
        patch: Annotated[int, Field(ge=1)] = 4,
        size: Annotated[int, Field(ge=4)] = 28,
        channels: Literal[1, 3] = 3,
        rate: Annotated[int, Field(ge=1000)] = 16_000,
        seconds: Annotated[float, Field(gt=0)] = 5.0,
        mels: Annotated[int, Field(ge=8)] = 64,
        window: Annotated[float, Field(gt=0)] = 0.025,
        hop: Annotated[float, Field(gt=0)] = 0.010,
        augment: bool = False,
    ):
        """Find the body and make the embedder.

        Args:
            house: the encoders built before it, of which ``body`` may name one.
            assets: a checkpoint's folder with the body's configuration.
            reads: ``image`` or ``audio``.
            body: a text encoder of this model, whose blocks are then shared; or a text model, which is loaded without its
                words: local folder, or Hub id.
            weights: of a body of its own: ``random`` draws the architecture's own initial weights, ``statistics`` each tensor
                anew with the mean and deviation of the pretrained one.
            own: of a text encoder of this model, take a copy of the blocks instead of sharing them.
            layers: use the first ones alone; 0 is the control without a body.
            pooling: the summary: the mean over tokens, the first or the last token.
            patch: side of a picture's patches in pixels, or frames a token.
            size: side of the square picture in pixels.
            channels: 1 takes pictures as grey.
            rate: Hz; sounds are resampled to it, as ``seconds`` (a longer one is cut), ``mels``, ``window`` and ``hop`` are of
                sounds.
            seconds: of a clip.
            mels: mel bands.
            window: of the Fourier transform, in seconds.
            hop: between frames, in seconds.
            augment: in training; pictures: turn by up to 10°, shift by up to 10 %, scale by 0.9 to 1.1; sounds: shift by up to
                5 % of the clip, scale the volume by −6 to 6 dB, add noise at 10 to 40 dB.

        Raises:
            ValueError: the body can't be had, or its blocks can't be borrowed.
        """
        super().__init__()
        self.reads, self.pooling, self.patch, self.layers = reads, pooling, patch, layers
        self.size, self.channels, self.augment = size, channels, augment
        self.rate, self.samples = rate, round(rate * seconds)
        self.lender: tuple[Any, ...] = ()  # not a submodule: a shared body is the lender's
        found = self._body(house, assets, body, weights, own)
        self.width: int = found.config.hidden_size
        if reads == "image":
            if size % patch:
                raise ValueError(f"size: {size} does not divide into patches of {patch}; allowed patches divide it")
            numbers, length = channels * patch * patch, (size // patch) ** 2
        else:
            self.front = LogMel(rate, mels, window, hop)
            frames = math.ceil(self.samples / self.front.hop)
            numbers, length = mels * patch, math.ceil(frames / patch)
        self.embedder = nn.Linear(numbers, self.width)
        self.positions = nn.Parameter(torch.randn(length, self.width) * 0.02)
        self.norm = nn.LayerNorm(self.width)
        if assets is None:
            nn.init.constant_(self.norm.weight, text_blocks.typical_norm(found) / self.width**0.5)
        if not self.lender:
            text_blocks.cut(found, layers)
            self.config = found.config
            self.body = found if layers != 0 else None
            self.backbone = "body" if layers != 0 else None
        self.kind, self.bounds = reads, (0.0, 1.0) if reads == "image" else (-1.0, 1.0)  # type: ignore[misc]

    def _body(self, house: Mapping[str, Encoder], assets: Path | None, body: str, weights: str, own: bool) -> Any:
        """The whole text model; a shared one is noted as lent."""
        if body not in house:
            _, found = hf_body.load(body, assets, weights=weights, reader=None, take=hf_body.part("text", summary=False))
            text_blocks.layout(found)
            found.config.use_cache = False
            return found
        lender = house[body]
        if lender.kind != "text" or not isinstance(getattr(lender, "body", None), nn.Module):
            raise ValueError(
                f"body: {body} is an encoder of this model that has no text blocks; name one of kind text, or a model"
            )
        text_blocks.layout(lender.body)
        if weights != "pretrained":
            raise ValueError(f"weights: {weights} is said where the body is owned: model.encoders.{body}.weights={weights}")
        if own:
            return copy.deepcopy(lender.body)
        self.lender = (lender.body,)
        return lender.body

    def embed(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What enters the blocks: tokens (N, L, W), and which are there (N, L)."""
        if self.reads == "image":
            patches = rearrange(inputs["pixels"] * 2 - 1, "n c (h p) (w q) -> n (h w) (c p q)", p=self.patch, q=self.patch)
            mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        else:
            frames, mask = self.front(inputs["waveform"], inputs["lengths"])  # (N, F, mels), (N, F)
            short = -frames.shape[1] % self.patch
            patches = rearrange(nn.functional.pad(frames, (0, 0, 0, short)), "n (t p) m -> n t (p m)", p=self.patch)
            mask = nn.functional.pad(mask, (0, short))[:, :: self.patch]  # a token is there when its first frame is
        return self.norm(self.embedder(patches) + self.positions[: patches.shape[1]]), mask

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N pictures or clips."""
        tokens, mask = self.embed(inputs)
        body = self.lender[0] if self.lender else self.body
        if body is not None and self.layers != 0:
            tokens = text_blocks.run(body, tokens, mask, self.layers)
        tokens = zero_masked(tokens, mask)
        if self.pooling == "mean":
            return Encoded(tokens, mask, masked_mean(tokens, mask), mask[:, 0])
        place = mask.sum(1) - 1 if self.pooling == "last" else torch.zeros_like(mask[:, 0], dtype=torch.long)
        return Encoded(tokens, mask, tokens[torch.arange(len(tokens), device=tokens.device), place], mask[:, 0])

    def stages(self) -> list[list[str]]:
        """Embedder with positions and norm, then the blocks of a body of its own; shared ones are the text encoder's."""
        names = [name for name, _ in self.named_parameters()]
        first = [name for name in names if not name.startswith("body.")]
        return [first, *hf_body.stages(name for name in names if name.startswith("body."))]

    def processor(self) -> Processor:
        """Pictures in their square, sounds cut; in training with ``augment`` changed at random."""
        if self.reads == "image":
            return Pixels(self.size, self.channels, self.augment, {"crop_pct": 1.0})
        return Waveform(self.rate, self.samples, self.augment)

    def blank(self) -> dict[str, Tensor]:
        """A black picture, or a tenth of a second of silence."""
        if self.reads == "image":
            return {"pixels": torch.zeros(1, self.channels, self.size, self.size)}
        return {"waveform": torch.zeros(1, self.rate // 10), "lengths": torch.tensor([self.rate // 10])}

    def checkpoint_gradients(self) -> None:
        """Every block of a body of its own; a shared one is told by the text encoder."""
        if not self.lender and self.body is not None:
            hf_body.checkpoint_gradients(self.body)

    def save_assets(self, folder: Path) -> None:
        """The configuration of a body of its own."""
        if not self.lender:
            self.config.save_pretrained(folder)
