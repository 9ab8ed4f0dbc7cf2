"""python scripts/robust_arms.py RUN --arms NAME … [--seeds N …] [--jobs N] [evaluate.…=value …]

Robust accuracy of the runs that scripts/seeds.py trained (``RUN-ARM-SEED``): each is attacked as ``mmkt evaluate --robustness``
does it, with the same rows, threats and attacks for all, into ``RUN-ARM-SEED/best/attacked``; what lies there already is read, so
the command can be killed and typed again. Per arm the mean over seeds and Student's 95 % interval: without an attack, and for
every modality attacked by itself and all at once the worst case over the attacks that keep to ε; attacks by edits each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console

from mmkt import report
from mmkt.robust_accuracy import BROKEN, CLEAN, METRIC, WORST, Trial
from mmkt.score import spread


def attack(run: Path, overrides: list[str]) -> Path:
    """One run's attacks, where they are not there yet; the file of its figures."""
    best = run / "best"
    if not best.is_dir():
        raise SystemExit(f"there is no {best}: scripts/seeds.py trains RUN-ARM-SEED")
    out = best / "attacked"
    if not (out / "attacks.jsonl").is_file():
        command = [sys.executable, "-m", "mmkt.cli", "evaluate", str(best), "--robustness", "evaluate.subsets=false"]
        done = subprocess.run([*command, *overrides, "--out", str(out)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{best}: {done.stderr[-2000:]}")
    return out / "attacks.jsonl"


def conditions(file: Path) -> dict[str, float]:
    """What is told of a run: the plain figure, worst cases, and attacks by edits."""
    rows = [row for row in report.read(file) if row.metric == METRIC]
    bounded = {Trial.of(row.condition).surface for row in rows if row.condition.endswith(f".{WORST}")}
    found = {}
    for row in rows:
        trial = Trial.of(row.condition) if row.condition != CLEAN else None
        if trial is None or trial.attack == WORST or (trial.surface not in bounded and trial.factor == 1):
            found[row.condition.removesuffix(f".{WORST}")] = row.value
    return found


def main() -> None:
    """Attack what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="as the config names it, without arm and seed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of data.… and evaluate.…, for every run")
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    options = parser.parse_intermixed_args()
    places = {(arm, seed): Path(f"{options.run}-{arm}-{seed}") for seed in options.seeds for arm in options.arms}
    with ThreadPoolExecutor(options.jobs) as pool:
        files = dict(zip(places, pool.map(lambda run: attack(run, options.overrides), places.values())))
    found = {key: conditions(file) for key, file in files.items()}
    names = list(next(iter(found.values())))
    columns: dict[str, list[str]] = {name: [] for name in names}
    for arm in options.arms:
        for name in names:
            mean, _, low, high = spread([found[arm, seed][name] for seed in options.seeds])
            columns[name].append(f"{mean:.3f}" + ("" if np.isnan(low) else f" [{max(low, 0):.3f}, {min(high, 1):.3f}]"))
    warned = [
        f"{places[key]}: {row.condition}" for key, file in files.items() for row in report.read(file) if row.metric == BROKEN
    ]
    title = f"robust accuracy, seeds {', '.join(map(str, options.seeds))}"
    sheet = report.sheet(title, {"arm": options.arms}, columns, warned)
    report.show([sheet], Console())
    print(*report.markdown(sheet), sep="\n")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
