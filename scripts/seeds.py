"""python scripts/seeds.py CONFIG [key=value …] --arm NAME[:key=value,…] … [--seeds N …] [--metric TASK/NAME] [--jobs N]

The same training over several seeds, for one arm or more: mean, deviation and 95 % interval of each arm (Student's t over
seeds), and of each arm's paired difference to the first. A run that has ended is read, one that was cut off is continued,
so the command can be killed and typed again. Runs lie in ``RUN-ARM-SEED``, RUN being the config's.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mmkt import report
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.run import stage
from mmkt.score import spread


def train(config: str, settings: Sequence[str], run: Path, seed: int) -> None:
    """One run, to its end; nothing where it has ended."""
    stands = stage(run, read(Experiment, config, settings).evaluate.split)
    if stands == "ended":
        return
    command = [sys.executable, "-m", "mmkt.cli", "train", config, *settings, f"seed={seed}", f"run={run}"]
    if stands != "new":
        command.append("--resume")
    with run.with_name(f"{run.name}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise SystemExit(f"{run} failed: its output is in {run}.log")


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--arm", action="append", metavar="NAME:key=value,…", help="one of the trainings to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--metric", help="TASK/NAME; by default the first of the table")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; with several, each has one thread")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args()
    arms = dict((arm.split(":", 1) if ":" in arm else (arm, "")) for arm in options.arm or ["run"])
    base, todo, runs = read(Experiment, options.config, options.overrides).run, [], {}
    for seed in options.seeds:
        for name, settings in arms.items():
            more = [*options.overrides, *filter(None, settings.split(",")), *(["threads=1"] if options.jobs > 1 else [])]
            read(Experiment, options.config, more)  # a mistake in any arm is reported before the first run
            runs[name, seed] = Path(f"{base}-{name}-{seed}")
            todo.append((options.config, more, runs[name, seed], seed))
    Path(base).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda one: train(*one), todo))
    figures = {name: np.array([figure(runs[name, seed], options.metric) for seed in options.seeds]) for name in arms}
    first = next(iter(figures.values()))
    lines = [(name, values, *spread(values)) for name, values in figures.items()]
    lines += [(f"{n} − {next(iter(arms))}", x - first, *spread(x - first)) for n, x in list(figures.items())[1:]]
    if options.json:
        names = ("arm", "values", "mean", "deviation", "low", "high")
        known = [(n, v.tolist(), *(None if np.isnan(x) else x for x in rest)) for n, v, *rest in lines]
        print(json.dumps({"rows": [dict(zip(names, line)) for line in known]}))
        return
    table = Table("arm", "mean", "deviation", "95 % interval", f"seeds {', '.join(map(str, options.seeds))}", box=None)
    for name, values, mean, deviation, low, high in lines:
        table.add_row(name, f"{mean:.3f}", f"{deviation:.3f}", f"[{low:.3f}, {high:.3f}]", " ".join(f"{v:.3f}" for v in values))
    Console().print(table)


def figure(run: Path, metric: str | None) -> float:
    """A run's figure over all rows."""
    rows = [row for file in (run / "best").glob("evaluation-*/metrics.jsonl") for row in report.read(file) if row.group == "all"]
    known = {f"{row.task}/{row.metric}": row.value for row in rows}
    name = metric or next(iter(known))
    if name not in known:
        raise SystemExit(f"{run} has no figure {name!r}; it has {', '.join(known)}")
    return known[name]


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
