"""python scripts/bench_trainer.py [--steps N] [--batch N] [--pairs N] [--python ENV/bin/python] [--own-time]

mmkt beside transformers.Trainer on text classification (BANKING77, 77 intents): the same pretrained MiniLM, fine-tuned whole, the
same rows in the same order, AdamW in one kernel as both have it by default, the same rates, clipping and precision, no dropout.
Each side runs in a process of its own, in turns. Rows a second are of the mean step, a line of log every ten included; memory is
the process's peak, or on a GPU what was allocated there.

Trainer has a BertForSequenceClassification (a pooler and a layer: 177 thousand numbers on the body), its own DataLoader, and rows
that are tokenised beforehand; mmkt has ``fit`` on its own feed, which tokenises as it goes, and a projection, a fusion
and a head (770 thousand numbers). So the loss curves are alike, not equal. As rows come by once, tokenising counts on both sides:
Trainer's is spread over its steps. Trainer needs accelerate and nothing else that mmkt has not: the environment is mmkt's own.

    export MMKT_DATA=DIR  # with intents in it
    mmkt data prepare intents corpus=banking77 --from $MMKT_DATA/intents --out data/banking77
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import _beside
import torch
from _beside import EVERY, Clock, drop_nothing, say, ticking
from accelerate import Accelerator

from mmkt import launch
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.run import Run
from mmkt.train import fit

LR, DECAY, CLIP = 1e-4, 0.01, 1.0
SETTINGS = [
    "data.validation=null",
    "data.group_by_length=null",
    "model.space.dropout=0.0",
    "transfer={name: full}",
    "train.epochs=null",
    "train.schedule=constant",
    "train.warmup=0.0",
    f"train.lr={LR}",
    f"train.weight_decay={DECAY}",
    f"train.clip={CLIP}",
    f"train.log_every={EVERY}",
    f"train.save_every={10**9}",
    f"train.evaluate_every={10**9}",
    "trackers=[]",
    "threads=1",
]


def built(options: argparse.Namespace) -> tuple[launch.Setup, Experiment]:
    """The experiment."""
    more = [f"data.manifest={options.manifest}", f"data.batch_size={options.batch}", f"train.steps={options.steps}"]
    config = read(Experiment, "configs/experiment/banking77.yaml", [*SETTINGS, *more])
    setup = launch.build(config)
    drop_nothing(setup.learner)
    return setup, config


def ours(options: argparse.Namespace) -> None:
    """Train with ``fit``."""
    setup, config = built(options)
    clock, losses, training = Clock(options.own_time), [], setup.feed.training
    setup.feed.training = lambda *a, **k: ticking(training(*a, **k), clock)
    with tempfile.TemporaryDirectory() as folder:
        run, plain = Run(Path(folder) / "run", config, "bench"), Run.log
        run.log = lambda values: (losses.append(values["loss"]), plain(run, values))
        fit(setup.learner, setup.feed, launch.plan_of(setup, config), run, Accelerator(), config.train)
    say(clock, options.batch, losses)


def theirs(options: argparse.Namespace) -> None:
    """Train with transformers.Trainer."""
    from torch.utils.data import SequentialSampler
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from mmkt.pretrained import resolve

    setup, _ = built(options)
    source = resolve("sentence-transformers/all-MiniLM-L6-v2")
    order = [int(row) for batch in setup.feed.training(0, options.steps) for row in batch.row]
    texts, labels = setup.manifest.table["text"], setup.feed.labels["intent"][0]
    tokenizer = AutoTokenizer.from_pretrained(source)
    clock, losses = Clock(options.own_time), []
    start = clock.now()
    rows = [dict(tokenizer(texts[k].as_py(), truncation=True, max_length=64)) | {"label": int(labels[k])} for k in order]
    clock.beforehand = (clock.now() - start) / options.steps
    classes = len(setup.learner.model.heads["intent"].vocabulary["classes"])
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=classes, dtype=torch.float32)
    drop_nothing(model)

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(rows)

    with tempfile.TemporaryDirectory() as folder:
        told = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=options.batch, learning_rate=LR,
            weight_decay=DECAY, max_grad_norm=CLIP, lr_scheduler_type="constant", logging_steps=EVERY, save_strategy="no",
            report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        InOrder(model, told, DataCollatorWithPadding(tokenizer), rows, callbacks=[Steps()]).train()
    say(clock, options.batch, losses)


def main() -> None:
    """Run one side, or both in turns."""
    _beside.main(__file__, __doc__, (ours, theirs), "Trainer", "data/banking77/manifest.parquet", steps=60, batch=32, pairs=3)


if __name__ == "__main__":
    main()
