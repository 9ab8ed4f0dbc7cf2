"""python scripts/bench_manifest.py [--rows N] [--formats parquet csv jsonl]

Seconds and peak memory of what a manifest of a million rows takes, by its format: ``mmkt data check --no-content``, and
everything that training does up to its first batch, with two workers. Memory is that of the command and all its processes
together: the sum of their proportional set sizes, in which a shared page counts once. Libraries that other processes of the
machine use count in part alone: run it where no other process uses torch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

EVALUATED = 500  # rows each in validation and test; the others train
PICTURES = 100
EVERY = 0.05  # seconds between looks at memory
CONFIG = """
data: {manifest: MANIFEST}
model:
  dim: 16
  encoders: {image: {name: timm_image, model: test_efficientnet_gn, weights: random, size: 32}}
  heads: {kind: classify}
objectives: {kind: {name: classify, task: kind}}
"""
FIRST_BATCH = """
import os, sys, time
from accelerate import Accelerator
from mmkt import launch
from mmkt.config import read
from mmkt.experiment import Experiment
Accelerator()
setup = launch.build(read(Experiment, "config.yaml", sys.argv[1:]))
launch.fingerprint(setup.manifest)
batches = setup.feed.training(0, 100)
assert next(batches).size == 32
time.sleep(0.5)  # workers read ahead, and their memory is looked at
os._exit(0)  # taking torch down reads pages that training does not
"""


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    peak: int  # bytes, of all its processes together


def tables(rows: int, seed: int = 0, size: int = 50_000) -> Iterator[pa.Table]:
    """The manifest by pieces: pictures and captions of ten kinds, in groups of some ten rows and five domains."""
    random = np.random.default_rng(seed)
    words = np.array([f"word{k}" for k in range(2000)])
    for first in range(0, rows, size):
        number = np.arange(first, min(first + size, rows))
        place = rows - 1 - number
        split = np.where(place < EVALUATED, "test", np.where(place < 2 * EVALUATED, "validation", "train"))
        group = np.char.add(np.char.add(split, "-"), (number // 10).astype(str))
        yield pa.table(
            {
                "id": np.char.add("row-", number.astype(str)),
                "split": split,
                "domain": np.char.add("camera-", random.integers(5, size=len(number)).astype(str)),
                "group": group,
                "image": [f"pictures/{k:04}.png" for k in random.integers(PICTURES, size=len(number))],
                "caption": [" ".join(line) for line in words[random.integers(len(words), size=(len(number), 8))]],
                "kind": np.char.add("kind-", random.integers(10, size=len(number)).astype(str)),
                "score": random.normal(size=len(number)),
            }
        )


def make(folder: Path, formats: Sequence[str], rows: int) -> None:
    """Write ``manifest.FORMAT`` of each format and the pictures that all rows point to."""
    (folder / "pictures").mkdir()
    random = np.random.default_rng(1)
    for k in range(PICTURES):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"pictures/{k:04}.png")
    for name in formats:
        path, pieces = folder / f"manifest.{name}", tables(rows)
        first = next(pieces)
        if name == "jsonl":
            with path.open("w", encoding="utf-8") as file:
                for piece in [first, *pieces]:
                    file.writelines(json.dumps(row) + "\n" for row in piece.to_pylist())
            continue
        writer = (
            pq.ParquetWriter(path, first.schema)
            if name == "parquet"
            else pa.csv.CSVWriter(path, first.schema)
            if name == "csv"
            else pa.ipc.new_file(path, first.schema)
        )
        with writer:
            for piece in [first, *pieces]:
                writer.write_table(piece)
    (folder / "config.yaml").write_text(CONFIG)


def cost(command: Sequence[str], folder: Path) -> Cost:
    """Run a command and look at the memory of its process tree all the while.

    Raises:
        RuntimeError: it failed (a check that finds problems in the rows, with exit status 1, has not).
    """
    start, peak = time.perf_counter(), 0
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        while process.poll() is None:
            processes = tree(process.pid)
            found = sum(map(memory, processes))
            if tree(process.pid) == processes:  # else one ended, and its pages counted twice
                peak = max(peak, found)
            time.sleep(EVERY)
    if process.returncode not in (0, 1) or "Traceback" in (folder / "log").read_text():
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}\n{(folder / 'log').read_text()}")
    return Cost(time.perf_counter() - start, peak)


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def memory(pid: int) -> int:
    """Bytes of a process, a page that n processes share as its nth part; where the kernel doesn't say, all resident pages."""
    for file, name in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(name):
                return 1024 * int(line.split()[1])
    return 0


def commands(name: str) -> dict[str, list[str]]:
    """What is measured, by what it is called."""
    manifest = f"manifest.{name}"
    check = ["-m", "mmkt.cli", "data", "check", manifest, "--no-content", "--labels", "kind", "score"]
    batch = ["-c", FIRST_BATCH, f"data.manifest={manifest}", "data.workers=2", "data.batch_size=32", "threads=1"]
    return {"data check --no-content": [sys.executable, *check], "first batch": [sys.executable, *batch]}


def main() -> None:
    """Print a line a format and command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", default=["parquet", "csv", "jsonl"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.formats, options.rows)
        for name in options.formats:
            size = (folder / f"manifest.{name}").stat().st_size
            print(f"{name}: {options.rows:,} rows, {size / 1e6:.0f} MB")
            for title, command in commands(name).items():
                seconds, peak = cost(command, folder)
                print(f"  {title}: {seconds:.1f} s, {peak / 1e6:.0f} MB at the peak", flush=True)


if __name__ == "__main__":
    main()
