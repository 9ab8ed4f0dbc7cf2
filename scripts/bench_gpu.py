"""python scripts/bench_gpu.py [--batch N …] [--steps N] [--peak TFLOPS] [--dry]

Steps of ``fit`` with towers of the usual size: ViT-B/16 (timm), BERT-base, and a spectrogram transformer of AST's size, all
trained, with random weights, on one batch of made-up rows that is used again and again. bf16, with torch.compile and without, at
each batch size: time a step, rows a second, model FLOPs utilisation (MFU) and the most memory that was allocated.

FLOPs are what torch.utils.flop_counter counts in a forward and a backward; MFU is their share of the device's dense bf16 peak,
which is known for the devices in ``PEAKS`` and given by --peak for others. Compiling is not timed, nor are the first steps.

Under FSDP2, with one rank (compile does not go with it):

    accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 1 scripts/bench_gpu.py

--dry does the same with tiny towers on a CPU, without compiling: whether it runs, not how fast.
"""

from __future__ import annotations

import argparse
import gc
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from accelerate import Accelerator
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, PreTrainedTokenizerFast

from mmkt import distributed, launch
from mmkt.config import check
from mmkt.experiment import Experiment
from mmkt.parts import Parts
from mmkt.run import Run
from mmkt.train import fit
from mmkt.types import Batch

WARM = 5  # steps that are not timed
# dense bf16, TFLOPS, by what the device's name holds; the makers' data sheets
PEAKS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10G": 70.0}


class Done(Exception):
    """All steps are timed: a run that is not saved."""


class Size(NamedTuple):
    """Of the towers and their inputs."""

    width: int
    layers: int
    heads: int
    picture: str  # a timm model
    pixels: int
    words: int
    seconds: float
    mels: int


BASE = Size(768, 12, 12, "vit_base_patch16_224", 224, 128, 10.0, 128)
TINY = Size(32, 2, 2, "test_vit", 32, 8, 0.5, 16)


def made(folder: Path, size: Size, rows: int) -> dict:
    """A manifest of noise and an experiment on it, as plain settings."""
    random, words = np.random.default_rng(0), [f"w{k}" for k in range(1000)]
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **names).save_pretrained(folder / "bert")
    BertConfig(
        vocab_size=30522,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
    ).save_pretrained(folder / "bert")
    table = []
    for k in range(rows):
        picture, sound = io.BytesIO(), io.BytesIO()
        Image.fromarray(random.integers(0, 256, (size.pixels, size.pixels, 3), dtype=np.uint8)).save(picture, "BMP")
        soundfile.write(sound, random.normal(0, 0.1, int(16000 * size.seconds)), 16000, format="WAV")
        text = " ".join(random.choice(words, size.words))
        row = {"text": text, "image": picture.getvalue(), "audio": sound.getvalue(), "kind": f"k{k % 4}", "split": "train"}
        table.append(row | {"id": f"r{k}"})
    pq.write_table(pa.Table.from_pylist(table), folder / "rows.parquet")
    shape = {"width": size.width, "layers": size.layers, "heads": size.heads}
    return {
        "run": str(folder / "run"),
        "data": {"manifest": str(folder / "rows.parquet"), "validation": None},
        "model": {
            "dim": size.width,
            "encoders": {
                "text": {"name": "hf_text", "model": str(folder / "bert"), "weights": "random", "max_tokens": size.words},
                "image": {"name": "timm_image", "model": size.picture, "weights": "random", "size": size.pixels},
                "audio": {"name": "spectrogram", "rate": 16000, "seconds": size.seconds, "mels": size.mels, **shape},
            },
            "heads": {"kind": "classify"},
        },
        "objectives": {"kind": {"name": "classify", "task": "kind"}},
        "train": {"lr": 1e-4, "log_every": 10**9, "evaluate_every": 10**9, "save_every": 10**9, "fused": True},
        "trackers": [],
    }


def flops(setup: launch.Setup, batch: Batch) -> int:
    """Of one step: forward and backward, as torch counts them."""
    learner = setup.learner.train()
    with FlopCounterMode(display=False) as counter:
        loss, _ = learner(batch, learner.counts([batch]))
        loss.backward()
    learner.zero_grad()
    return counter.get_total_flops()


def timed(settings: dict, accelerator: Accelerator, rows: int, steps: int, compiled: bool) -> tuple[float, int]:
    """Seconds a step, and the FLOPs of one."""
    settings = settings | {"data": settings["data"] | {"batch_size": rows}}
    more = {"steps": WARM + steps + 1, "precision": accelerator.mixed_precision, "compile": compiled}
    config = check(Experiment, settings | {"train": settings["train"] | more}, Parts())
    setup = launch.build(config)
    batch, marks = next(setup.feed.training(0, 1)), list[float]()
    setup.learner.to(accelerator.device)
    work = flops(setup, batch.to(accelerator.device))
    setup.learner.to("cpu")  # where FSDP2 shards it from

    def again(start: int, stop: int, *_: object, **__: object) -> Iterator[Batch]:
        if stop - start == 1:  # looking for what is unreached
            yield batch
            return
        ready = batch.pinned() if accelerator.device.type == "cuda" else batch
        for k in range(start, stop):
            if k in (WARM, WARM + steps):
                if accelerator.device.type == "cuda":
                    torch.cuda.synchronize()
                marks.append(time.perf_counter())
            if k == WARM + steps:
                raise Done
            yield ready

    setup.feed.training = again
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder) / "run", config, "bench")
            fit(setup.learner, setup.feed, launch.plan_of(setup, config), run, accelerator, config.train)
    except Done:
        pass
    accelerator.free_memory()
    return (marks[1] - marks[0]) / steps, work


def peak_of(name: str, given: float | None) -> float | None:
    """FLOPs a second of a device at the most, or None."""
    return next((1e12 * x for x in [given, *(peak for known, peak in PEAKS.items() if known in name)] if x), None)


def main() -> None:
    """Print a line a batch size and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128], help="rows (32 128)")
    parser.add_argument("--steps", type=int, default=30, help="that are timed (30)")
    parser.add_argument("--peak", type=float, help="of the device in dense bf16, TFLOPS")
    parser.add_argument("--dry", action="store_true", help="tiny towers, on a CPU too")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not options.dry:
        raise SystemExit("there is no CUDA device here: --dry tries the script with tiny towers on the CPU")
    device = torch.cuda.get_device_name() if cuda else "CPU"
    accelerator = Accelerator(mixed_precision="bf16")
    peak, sharded = peak_of(device, options.peak), accelerator.is_fsdp2
    distributed.say(f"{device}, torch {torch.__version__}, {'FSDP2, one rank' if sharded else 'one process'}")
    print("| rows | precision | compile | ms a step | rows/s | TFLOPs a step | MFU | GB |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        settings = made(Path(folder), TINY if options.dry else BASE, max(options.batch))
        for rows in options.batch:
            for compiled in [False] if sharded or not cuda else [False, True]:
                gc.collect()  # the learner before, whose hooks point to itself
                if cuda:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                seconds, work = timed(settings, accelerator, rows, options.steps, compiled)
                share = f"{work / seconds / peak:.1%}" if peak and work else "–"
                memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if cuda else "–"
                cells = [rows, "bf16", "yes" if compiled else "no", f"{1e3 * seconds:.1f}", f"{rows / seconds:.0f}"]
                print("| " + " | ".join(map(str, [*cells, f"{work / 1e12:.4g}", share, memory])) + " |", flush=True)


if __name__ == "__main__":
    main()
