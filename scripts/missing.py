"""python scripts/missing.py CONFIG [key=value …] [--rates 0 0.25 0.5] [--tests 0 0.25 0.5 0.75] [--seeds N …] [--jobs N] [--json]

What it costs and brings to train with modalities missing: one training a rate (``data.dropout`` of every modality) and seed,
each evaluated where modalities are missing at several rates. The mean and 95 % interval (Student's t over seeds) by rate in
training and in test, and a plot (RUN-missing.png). A run that has ended is read, one that was cut off is continued, so the
command can be killed and typed again. Runs lie in ``RUN-missing-RATE-SEED``.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from seeds import train

from mmkt import report
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.plots import COLOURS, STYLE
from mmkt.score import spread


def main() -> None:
    """Train and evaluate what is missing, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rates", type=float, nargs="+", default=[0, 0.25, 0.5], help="in training")
    parser.add_argument("--tests", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75], help="in test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; with several, each has one thread")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args()
    config = read(Experiment, options.config, options.overrides)
    todo, runs = [], {}
    for seed in options.seeds:
        for rate in options.rates:
            lost = [f"data.dropout.{m}={rate}" for m in config.model.encoders]
            more = [*options.overrides, *lost, *(["threads=1"] if options.jobs > 1 else [])]
            read(Experiment, options.config, more)
            runs[rate, seed] = Path(f"{config.run}-missing-{rate:g}-{seed}")
            todo.append((options.config, more, runs[rate, seed], seed))
    Path(config.run).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        curves = dict(zip(runs, pool.map(lambda one: curve(*one, options.tests), todo)))
    figures = {rate: np.array([curves[rate, seed] for seed in options.seeds]) for rate in options.rates}
    if options.json:
        print(json.dumps({"tests": options.tests, "figures": {str(rate): x.tolist() for rate, x in figures.items()}}))
        return
    numbers = {f"test {test:g}": [words(values[:, k]) for values in figures.values()] for k, test in enumerate(options.tests)}
    title = f"each modality missing with this probability, {len(options.seeds)} seeds"
    report.show([report.sheet(title, {"training": [f"{rate:g}" for rate in figures]}, numbers)], Console())
    file = Path(f"{config.run}-missing.png")
    draw(figures, options.tests).savefig(file, dpi=150)
    print(file, file=sys.stderr)


def curve(config: str, settings: list[str], run: Path, seed: int, tests: list[float]) -> list[float]:
    """The first figure of a run, trained if need be, at every rate in test."""
    train(config, settings, run, seed)
    folder = run / "best/evaluation-missing"
    wanted = [f"missing@{test:g}" for test in tests]
    known = _first(folder) if folder.is_dir() else {}
    if not set(wanted) <= set(known):
        more = [f"missing={tests}", "subsets=true", "resamples=0", "page=false"]
        command = [sys.executable, "-m", "mmkt.cli", "evaluate", str(run / "best"), "--out", str(folder)]
        done = subprocess.run([*command, *(f"evaluate.{text}" for text in more)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{run} could not be evaluated: {done.stderr}")
        known = _first(folder)
    return [known[name] for name in wanted]


def _first(folder: Path) -> dict[str, float]:
    """By condition, the figures of the first task."""
    rows = report.read(folder / "missing.jsonl")
    return {row.condition: row.value for row in rows if row.task == rows[0].task}


def words(values: np.ndarray) -> str:
    """A mean and its interval."""
    mean, _, low, high = spread(values)
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def draw(figures: dict[float, np.ndarray], tests: list[float]) -> Figure:
    """A line a rate in training."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        for (rate, values), colour in zip(figures.items(), COLOURS):
            axes.plot(tests, values.mean(0), "o-", color=colour, label=f"{rate:g} in training")
            axes.fill_between(tests, values.min(0), values.max(0), color=colour, alpha=0.15)
        axes.set_xlabel("each modality is missing in test with this probability")
        axes.set_ylabel("mean over seeds; band: all of them")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
