"""python scripts/robust_arms.py RUN --arms NAME … [--seeds N …] [--jobs N] [evaluate.…=value …]
python scripts/robust_arms.py STUDY.yaml [--arms NAME …] [--seeds N …] [--jobs N] [evaluate.…=value …]

Robust accuracy of the runs that scripts/seeds.py trained (``RUN-ARM-SEED``), or of those of an ablation that has ended, each
label at the rate that it chose: each is attacked as ``mmkt evaluate --robustness`` does it, with the same rows, threats and
attacks for all, into the run's ``best/attacked`` (``--name``); what lies there already is read, so the command can be killed and
typed again.

Per arm the mean over seeds and Student's 95 % interval: without an attack, and for every modality attacked by itself and all at
once the worst case over the attacks that keep to ε; attacks by edits each; and by how much all at once are worse than the worst
of one. Then each arm's differences to the first one, paired by seed.
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
from mmkt.checkpoint import read_json, write_json
from mmkt.config import read
from mmkt.robust_accuracy import BROKEN, CLEAN, JOINT, METRIC, WORST, Trial
from mmkt.score import spread
from mmkt.studies.ablation import Ablation
from mmkt.studies.ablation_cells import Key
from mmkt.study import Ablation as File

Runs = dict[tuple[str, int], Path]  # by arm and seed
GAP = "joint − worst of one"


def of_study(file: str, arms: list[str] | None, seeds: list[int] | None) -> Runs:
    """Those of an ablation, each label at the rate that it chose."""
    study = Ablation(read(File, file))
    found: Runs = {}
    cells = {str(cell): cell for cell in study.cells}
    for arm in arms or cells:
        if arm not in cells:
            raise SystemExit(f"--arms: {file} has no {arm!r}; it has {', '.join(cells)}")
        rate = study.chosen(cells[arm])
        if rate is None:
            raise SystemExit(f"{arm} has not ended: mmkt ablate {file}")
        found |= {(arm, seed): study.folder(Key(cells[arm], rate, seed)) for seed in seeds or study.study.seeds}
    return found


def attack(run: Path, overrides: list[str], name: str = "attacked") -> Path:
    """One run's attacks, where they are not there yet; the file of its figures."""
    best = run / "best"
    if not best.is_dir():
        raise SystemExit(f"there is no {best}: scripts/seeds.py trains RUN-ARM-SEED, mmkt ablate a study's runs")
    out = best / name
    note = out / "asked.json"
    if note.is_file() and read_json(note) != {"settings": overrides}:
        found = " ".join(read_json(note)["settings"]) or "no settings"
        raise SystemExit(f"{out} was attacked with other settings ({found}): give these, or another --name")
    if not note.is_file():
        command = [sys.executable, "-m", "mmkt.cli", "evaluate", str(best), "--robustness", "evaluate.subsets=false"]
        done = subprocess.run([*command, *overrides, "--out", str(out)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{best}: {done.stderr[-2000:]}")
        write_json(note, {"settings": overrides})
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
    if JOINT in bounded:
        found[GAP] = found[JOINT] - min(found[name] for name in bounded - {JOINT})
    return found


def table(title: str, found: dict[tuple[str, int], dict[str, float]], notes: list[str], differences: bool) -> report.Sheet:
    """Means over seeds with their intervals, of shares or of differences between them."""
    arms = list(dict.fromkeys(arm for arm, _ in found))
    columns: dict[str, list[str]] = {name: [] for figures in found.values() for name in figures}
    for arm in arms:
        for name, cells in columns.items():
            values = [figures[name] for (own, _), figures in found.items() if own == arm and name in figures]
            if not values:  # it does not read that modality
                cells.append("")
                continue
            mean, _, low, high = spread(values)
            signed = "+" if name == GAP or differences else ""
            if not signed:
                low, high = max(low, 0.0), min(high, 1.0)
            cells.append(f"{mean:{signed}.3f}" + ("" if np.isnan(low) else f" [{low:{signed}.3f}, {high:{signed}.3f}]"))
    return report.sheet(title, {"arm": arms}, columns, notes)


def main() -> None:
    """Attack what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="as the config names it, without arm and seed; or an ablation's file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of data.… and evaluate.…, for every run")
    parser.add_argument("--arms", nargs="+", help="of a study by default all")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default 0 1 2, or the study's")
    parser.add_argument("--name", default="attacked", help="of the folder in each run's best/ (attacked)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    options = parser.parse_intermixed_args()
    if options.run.endswith((".yaml", ".yml")):
        places = of_study(options.run, options.arms, options.seeds)
    elif options.arms:
        places = {(arm, n): Path(f"{options.run}-{arm}-{n}") for n in options.seeds or [0, 1, 2] for arm in options.arms}
    else:
        parser.error("--arms: which of RUN-ARM-SEED? Only a study (a YAML file) says it by itself")
    with ThreadPoolExecutor(options.jobs) as pool:
        files = dict(zip(places, pool.map(lambda run: attack(run, options.overrides, options.name), places.values())))
    found = {key: conditions(file) for key, file in files.items()}
    warned = [
        f"{places[key]}: {row.condition}" for key, file in files.items() for row in report.read(file) if row.metric == BROKEN
    ]
    sheets = [table("Robust accuracy, means over seeds", found, warned, differences=False)]
    first = next(arm for arm, _ in found)
    others = {
        (arm, seed): {name: x - found[first, seed][name] for name, x in own.items() if name in found[first, seed]}
        for (arm, seed), own in found.items()
        if arm != first
    }
    if others:
        sheets.append(table(f"Differences to {first}, paired by seed", others, [], differences=True))
    report.show(sheets, Console())
    for sheet in sheets:
        print(*report.markdown(sheet), sep="\n")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
