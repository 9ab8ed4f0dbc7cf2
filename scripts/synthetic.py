"""python scripts/synthetic.py [--tasks NAME …] [--fusions NAME …] [--seeds N …] [--jobs N] [--markdown]

Every fusion on synthetic tasks whose ceilings are known (configs/experiment/xor.yaml, 10,000 test rows, 1,000 steps at each
of two learning rates, the better one on validation; the last checkpoint, none is chosen): ``xor``; ``lost``, a redundant
task in which half of all rows lack the second modality; ``unseen``, the same where only test rows lack it. Test accuracy
beside the ceiling, and which fusions break what they declare. A run that has ended is read, so the command can be killed
and typed again.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmkt import launch
from mmkt.catalogue import catalogue
from mmkt.config import read
from mmkt.data.sources.synthetic import Synthetic
from mmkt.experiment import Experiment
from mmkt.model import Model, parameter_count
from mmkt.run import stage

CONFIG = "configs/experiment/xor.yaml"
RATES = ("3e-3", "1e-2")
FIXED = ("train.evaluate_every=1000", "evaluate.resamples=0")
REDUNDANT = {"task": "redundant", "strength": 1.5, "missing": 0.5, "missing_of": ["b"]}
TASKS = {"xor": {"task": "xor", "strength": 3.0}, "lost": REDUNDANT, "unseen": REDUNDANT | {"missing_in": ["test"]}}
INTERACTING, SUM, NEAR = 0.95, 0.80, 0.02  # what interactions reach on XOR, what no sum over modalities does, "within 2 points"


class Cell(NamedTuple):
    """One run."""

    task: str
    fusion: str
    rate: str
    seed: int

    def folder(self) -> Path:
        """Where it is."""
        return Path("checkpoints/synthetic") / "-".join(map(str, self))

    def settings(self) -> list[str]:
        """What it changes in the experiment file."""
        source = [f"data.source.{name}={json.dumps(value)}" for name, value in TASKS[self.task].items()]
        manifest = f"data.manifest=data/synthetic-{self.task}/manifest.parquet"
        return [
            *source,
            manifest,
            f"model.fusion={self.fusion}",
            f"train.lr={self.rate}",
            f"seed={self.seed}",
            f"run={self.folder()}",
            *FIXED,
        ]


def train(cell: Cell) -> None:
    """One run to its end, in silence; nothing where it has ended."""
    if stage(cell.folder(), "test") == "ended":
        return
    shutil.rmtree(cell.folder(), ignore_errors=True)  # it takes seconds: what was cut off starts anew
    with contextlib.redirect_stderr(io.StringIO()):
        launch.train(read(Experiment, CONFIG, cell.settings()))


def accuracies(cell: Cell) -> tuple[float, float]:
    """On validation, of the checkpoint that was kept, and on test."""
    lines = [json.loads(line) for line in (cell.folder() / "metrics.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (cell.folder() / "best/evaluation-test/metrics.jsonl").read_text().splitlines()]
    test = next(row["value"] for row in rows if row["metric"] == "accuracy" and row["group"] == "all")
    return max(line["validation/label/accuracy"] for line in lines if "validation/label/accuracy" in line), test


def chosen(task: str, fusion: str, seeds: Sequence[int]) -> list[float]:
    """Test accuracies, a seed each, of the rate that is best on validation over all seeds."""
    found = {rate: np.array([accuracies(Cell(task, fusion, rate, seed)) for seed in seeds]) for rate in RATES}
    return max(found.values(), key=lambda x: x[:, 0].mean())[:, 1].tolist()


def verdict(facts: dict, task: str, accuracy: float, ceiling: float) -> str:
    """Which declaration an accuracy breaks, if any."""
    if task == "xor" and facts["interacts"] and accuracy < INTERACTING:
        return "interacts"
    if task == "xor" and not facts["interacts"] and accuracy > SUM:
        return "no interaction"
    if task != "xor" and facts["missing"] == "exact" and accuracy < ceiling - NEAR:
        return f"exact ({task})"
    return ""


def main() -> None:
    """Train what is missing and print the table."""
    facts = {name: part["facts"] for name, part in catalogue("fusion")["fusion"].items()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--fusions", nargs="+", choices=list(facts), default=list(facts), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    cells = [Cell(t, f, r, s) for t in options.tasks for f in options.fusions for r in RATES for s in options.seeds]
    for task in options.tasks:  # the manifest is made once, before processes could make it at a time
        launch.build(read(Experiment, CONFIG, Cell(task, "sum", RATES[0], 0).settings()))
    with multiprocessing.get_context("spawn").Pool(options.jobs) if options.jobs > 1 else contextlib.nullcontext() as pool:
        runs = pool.imap_unordered(train, cells) if pool else map(train, cells)
        list(track(runs, "training", len(cells), console=Console(stderr=True)))
    ceilings = {task: Synthetic(**TASKS[task]).ceiling("a+b") for task in options.tasks}  # type: ignore[arg-type]
    lines = []
    for name in options.fusions:
        found = {task: chosen(task, name, options.seeds) for task in options.tasks}
        broken = [verdict(facts[name], task, float(np.mean(x)), ceilings[task]) for task, x in found.items()]
        size = parameter_count(
            Model.from_pretrained(Cell(options.tasks[0], name, RATES[0], options.seeds[0]).folder() / "best").fusion
        )
        declared = [facts[name]["missing"], "yes" if facts[name]["interacts"] else "no", f"{size:,}"]
        lines.append([name, *declared, *(figure(x) for x in found.values()), ", ".join(filter(None, broken)) or "–"])
    heads = ["fusion", "missing", "interacts", "parameters", *(f"{t} ({c:.3f})" for t, c in ceilings.items()), "breaks"]
    if options.markdown:
        print("\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines]))
        return
    table = Table(*heads, box=None)
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def figure(values: Sequence[float]) -> str:
    """The accuracy, or the mean and the least and largest of several seeds."""
    mean = float(np.mean(values))
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
