"""Sound as a log-mel spectrogram, through any timm model or a small transformer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmkt.layers.log_mel import LogMel
from mmkt.layers.masked import masked_mean, zero_masked
from mmkt.layers.transformer import Block, sinusoids
from mmkt.layers.trunk import Trunk
from mmkt.layers.waveform import Waveform
from mmkt.layers.windows import read_windows
from mmkt.pretrained import Weights
from mmkt.types import Encoded, Encoder, Processor


class Spectrogram(Encoder):
    """Waveforms (N, T) in [−1, 1] at ``rate`` Hz, and their ``lengths`` (N,) in samples, through a log-mel front-end.

    With several ``windows`` there are K of them for each clip: (N, K, T), (N, K). ``backbone: transformer`` cuts the
    spectrogram into steps of ``patch`` frames and masks what is padding. A timm backbone sees a picture of ``seconds`` of
    sound, which shorter clips are continued to with silence.
    """

    kind = "audio"
    bounds = (-1.0, 1.0)
    positions: Tensor

    def __init__(
        self,
        house: Mapping[str, Encoder],
        assets: Path | None,
        *,
        rate: Annotated[int, Field(ge=1000)] = 16_000,
        seconds: Annotated[float, Field(gt=0)] = 10.0,
        windows: Annotated[int, Field(ge=1)] = 1,
        mels: Annotated[int, Field(ge=8)] = 64,
        window: Annotated[float, Field(gt=0)] = 0.025,
        hop: Annotated[float, Field(gt=0)] = 0.010,
        backbone: str = "transformer",
        weights: Weights = "random",
        width: Annotated[int, Field(ge=8)] = 192,
        layers: Annotated[int, Field(ge=1)] = 4,
        heads: Annotated[int, Field(ge=1)] = 3,
        patch: Annotated[int, Field(ge=1)] = 4,
        augment: bool = False,
        options: dict[str, Any] = {},  # noqa: B006 - never changed
    ):
        """Build the front-end and the backbone.

        Args:
            house: unused.
            assets: a checkpoint's folder with the architecture of a timm backbone.
            rate: Hz; clips are resampled to it.
            seconds: of a window.
            windows: a longer clip is read in up to that many consecutive windows, what is beyond them is cut and counted. Its
                tokens are those of all windows; its summary is the mean of theirs, weighted by their samples.
            mels: mel bands.
            window: of the Fourier transform, in seconds.
            hop: between frames, in seconds.
            backbone: ``transformer``, or a timm name, local folder or Hub id.
            weights: of a timm backbone.
            width: of the transformer, as are ``layers``, ``heads`` and ``patch`` (frames a token).
            layers: blocks.
            heads: a block.
            patch: frames a token.
            augment: in training, shift by up to 5 % of the clip, scale the volume by −6 to 6 dB, add noise at 10 to 40 dB.
            options: further arguments of ``timm.create_model``.
        """
        super().__init__()
        self.rate, self.samples, self.windows = rate, round(rate * seconds), windows
        self.patch, self.augment = patch, augment
        self.checkpointing = False
        self.front = LogMel(rate, mels, window, hop)
        self.trunk: Trunk | None = None
        if backbone == "transformer":
            self.embed = nn.Linear(mels * patch, width)
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            frames = -(-self.samples // self.front.hop)
            self.register_buffer("positions", sinusoids(-(-frames // patch), width), persistent=False)
            self.width = width
        else:
            size = (mels, -(-self.samples // self.front.hop))
            self.trunk = Trunk(backbone, weights=weights, channels=1, size=size, options=options, assets=assets)
            self.width = self.trunk.width
        self.backbone = "trunk.body" if self.trunk else ""

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N clips."""
        known = {"waveform": inputs["waveform"], "lengths": inputs["lengths"]}
        return read_windows(self._read, known, known["lengths"])

    def _read(self, known: Mapping[str, Tensor]) -> Encoded:
        waveform = known["waveform"]
        if self.trunk:
            waveform = nn.functional.pad(waveform, (0, self.samples - waveform.shape[1]))
        frames, mask = self.front(waveform, known["lengths"])  # (N, F, mels), (N, F)
        if self.trunk:
            tokens, pooled = self.trunk(frames.transpose(1, 2)[:, None])
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            return Encoded(tokens, mask, pooled, mask[:, 0])
        short = -frames.shape[1] % self.patch
        x = rearrange(nn.functional.pad(frames, (0, 0, 0, short)), "n (t p) m -> n t (p m)", p=self.patch)
        mask = nn.functional.pad(mask, (0, short))[:, :: self.patch]  # a step is there when its first frame is
        x = self.embed(x) + self.positions[: x.shape[1]]
        for block in self.blocks:
            again = self.checkpointing and self.training
            x = checkpoint(block, x, mask, use_reentrant=False) if again else block(x, mask)
        tokens = zero_masked(self.norm(x), mask)
        return Encoded(tokens, mask, masked_mean(tokens, mask), mask[:, 0])

    def stages(self) -> list[list[str]]:
        """Embedder, blocks, last norm; or as timm groups its parameters."""
        if self.trunk:
            return self.trunk.stages("trunk.")
        parts = ["embed", *(f"blocks.{k}" for k in range(len(self.blocks))), "norm"]
        return [[n for n, _ in self.named_parameters() if n.startswith(f"{part}.")] for part in parts]

    def processor(self) -> Processor:
        """Cut to ``windows`` of ``seconds``; in training with ``augment`` also shift, volume and noise."""
        return Waveform(self.rate, self.samples, self.augment, self.windows)

    def blank(self) -> dict[str, Tensor]:
        """A tenth of a second of silence."""
        return {"waveform": torch.zeros(1, self.rate // 10), "lengths": torch.tensor([self.rate // 10])}

    def checkpoint_gradients(self) -> None:
        """Every block of the transformer, or as timm divides the trunk."""
        self.checkpointing = True
        if self.trunk:
            self.trunk.checkpoint_gradients()

    def save_assets(self, folder: Path) -> None:
        """The architecture of a timm backbone."""
        if self.trunk:
            self.trunk.save(folder)
