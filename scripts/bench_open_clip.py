"""python scripts/bench_open_clip.py --python ENV/bin/python [--steps N] [--batch N] [--pairs N] [--size N] [--dim N] [--own-time]

mmkt beside open_clip (https://github.com/mlfoundations/open_clip) on contrastive training: the same two towers (a pretrained
MiniLM, mean-pooled, and timm's vit_tiny_patch16_224 with random weights), the same first weights, rows, order and AdamW (each
side's own: mmkt's is one kernel), no dropout. Each side runs in a process of its own, in turns. Rows a second are of the mean
step, a line of log every ten included; memory is the process's peak, or on a GPU what was allocated there.

open_clip runs its own ``train_one_epoch`` and ``ClipLoss``; mmkt runs ``fit``. Both are handed the same tensors, made beforehand:
open_clip's loaders read webdatasets, and CSV files of paths with one caption, which these rows
are not. So loading is not compared.

    export MMKT_DATA=DIR  # with flickr1k in it
    mmkt data prepare flickr1k --from $MMKT_DATA/flickr1k --out data/flickr1k
    python -m venv ENV && ENV/bin/pip install -e ".[demo]" open_clip_torch  # torch stays in mmkt's window
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _beside
import torch
from _beside import EVERY, Clock, drop_nothing, say, ticking
from accelerate import Accelerator
from torch import nn

from mmkt import launch
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.run import Run
from mmkt.train import fit
from mmkt.types import Batch

LR, DECAY, BETAS, CLIP = 5e-4, 0.1, (0.9, 0.98), 1.0
SETTINGS = [
    "data.one_of=[text]",
    "data.validation=null",
    "model.encoders.audio=null",
    "model.space={norm: false, dropout: 0.0}",
    "model.fusion=sum",
    "transfer={name: full, frozen: [fusion]}",
    "train.epochs=null",
    "train.schedule=constant",
    "train.warmup=0.0",
    f"train.lr={LR}",
    f"train.weight_decay={DECAY}",
    f"train.betas={list(BETAS)}",
    f"train.clip={CLIP}",
    "train.select=null",
    f"train.log_every={EVERY}",
    f"train.save_every={10**9}",
    f"train.evaluate_every={10**9}",
    "trackers=[]",
    "threads=1",
]


def built(options: argparse.Namespace) -> tuple[launch.Setup, Experiment, list[Batch]]:
    """The experiment, and every step's batch."""
    image = f"{{name: timm_image, model: vit_tiny_patch16_224, weights: random, size: {options.size}}}"
    config = read(
        Experiment,
        "configs/experiment/flickr1k.yaml",
        [
            *SETTINGS,
            f"data.manifest={options.manifest}",
            f"data.batch_size={options.batch}",
            f"model.dim={options.dim}",
            f"model.encoders.image={image}",
            f"train.steps={options.steps}",
        ],
    )
    setup = launch.build(config)
    drop_nothing(setup.learner)
    return setup, config, list(setup.feed.training(0, options.steps))


def ours(options: argparse.Namespace) -> None:
    """Train with ``fit``."""
    setup, config, batches = built(options)
    clock, losses = Clock(options.own_time), []
    setup.feed.training = lambda start, stop, *_, **__: ticking(iter(batches[start:stop]), clock)
    with tempfile.TemporaryDirectory() as folder:
        run, plain = Run(Path(folder) / "run", config, "bench"), Run.log
        run.log = lambda values: (losses.append(values["loss"]), plain(run, values))
        fit(setup.learner, setup.feed, launch.plan_of(setup, config), run, Accelerator(), config.train)
    say(clock, options.batch, losses)


def theirs(options: argparse.Namespace) -> None:
    """Train the same weights with open_clip's own step."""
    from open_clip import ClipLoss
    from open_clip_train.train import train_one_epoch

    setup, _, batches = built(options)
    model, learner = _their_model(setup, options), setup.learner
    mean, std = (getattr(learner.model.encoders["image"], key) for key in ("mean", "std"))
    pairs = []
    for batch in batches:
        image, text = (batch.inputs[m] for m in ("image", "text"))
        pixels, ids = image["pixels"][image["items"][:, 0]], text["input_ids"][text["items"][:, 0]]
        pairs.append(((pixels - mean) / std, ids))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    still = [p for name, p in named if p.ndim < 2 or "logit_scale" in name]  # as open_clip_train.main has it
    moved = [p for name, p in named if not (p.ndim < 2 or "logit_scale" in name)]
    groups = [{"params": still, "weight_decay": 0.0}, {"params": moved, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    clock, losses = Clock(options.own_time), []

    class Noted(ClipLoss):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            found = super().forward(*arguments, **named)
            losses.append(float(found["contrastive_loss"].detach()))
            return found

    class Loader:
        num_batches, num_samples = options.steps, options.steps * options.batch

        def __iter__(self) -> Any:
            return ticking(iter(pairs), clock)

    data = {"train": SimpleNamespace(dataloader=Loader(), set_epoch=lambda _: None)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    told = SimpleNamespace(
        device=device, precision="fp32", distill=False, accum_freq=1, skip_scheduler=True, horovod=False, grad_clip_norm=CLIP,
        rank=0, local_rank=0, world_size=1, batch_size=options.batch, log_every_n_steps=EVERY, wandb=False, log_local=False,
    )  # fmt: skip
    train_one_epoch(model.to(device), data, Noted(), 0, optimizer, None, None, None, told)
    say(clock, options.batch, [statistics.mean(losses[k : k + EVERY]) for k in range(0, len(losses), EVERY)])


def _their_model(setup: launch.Setup, options: argparse.Namespace) -> nn.Module:
    """open_clip's model of the same towers, with mmkt's first weights."""
    import timm
    from open_clip.model import CustomTextCLIP

    from mmkt.pretrained import resolve

    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear"}
    source = resolve("sentence-transformers/all-MiniLM-L6-v2")
    text = {"hf_model_name": source, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear", "hf_model_pretrained": False}
    model = CustomTextCLIP(options.dim, vision, text | {"context_length": 40}, output_dict=True)
    own = setup.learner.model
    # open_clip builds timm's models for their own size alone
    model.visual.trunk = timm.create_model("vit_tiny_patch16_224", img_size=options.size, num_classes=0)
    _take(model.visual.trunk, own.encoders["image"].trunk.body)
    _take(model.text.transformer, own.encoders["text"].body)
    project = own.space.project
    model.visual.head = nn.Linear(own.encoders["image"].width, options.dim)
    model.text.proj = nn.Linear(own.encoders["text"].width, options.dim)
    _take(model.visual.head, project["image"][0])
    _take(model.text.proj, project["text"][0])
    drop_nothing(model)
    return model


def _take(module: nn.Module, other: nn.Module) -> None:
    """Copy weights; what the other lacks (a pooler, a head) is left out of training, as it is there."""
    lacking, strange = module.load_state_dict(other.state_dict(), strict=False)
    if strange:
        raise SystemExit(f"the towers differ: open_clip's has no {', '.join(strange[:5])}")
    for name in lacking:
        module.get_parameter(name).requires_grad_(False)


def main() -> None:
    """Run one side, or both in turns."""
    _beside.main(
        __file__,
        __doc__,
        (ours, theirs),
        "open_clip",
        "data/flickr1k/manifest.parquet",
        steps=30,
        batch=64,
        size=64,
        dim=256,
        pairs=3,
    )


if __name__ == "__main__":
    main()
