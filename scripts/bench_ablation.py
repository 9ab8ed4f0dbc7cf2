"""python scripts/bench_ablation.py [STUDY] [key=value …] [--labels A B C] [--rates 2] [--jobs 2] [--measured RUN]

An ablation against the plain way, on the same machine, rows and settings: some labels × some rates × one seed, each in full.
Plain is ``mmkt train`` for every run, in a process of its own with all threads, its encoders frozen and in the loop. Then
the study, with one training at a time (what caching brings) and with several (what running at once brings), the building
of the cache included. ``--measured`` is the folder of a study that was carried out here: its time is compared with what
the plain way would have taken for as many trainings.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmkt.config import read
from mmkt.studies.ablation import Ablation
from mmkt.studies.ablation_cells import Cell, Key
from mmkt.study import Ablation as File


def run(*words: str) -> None:
    """A command in a process of its own; what it says is shown where it fails."""
    done = subprocess.run([sys.executable, "-m", "mmkt.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")


def plain(study: Ablation, keys: list[Key], folder: Path) -> list[float]:
    """Seconds of every run by itself."""
    found = []
    for place, key in enumerate(keys):
        settings = [text for text in study.settings(key) if not text.startswith(("data.features=", "run=", "train.save_every="))]
        start = time.perf_counter()
        run("train", study.study.experiment, *settings, f"run={folder / str(place)}")
        found.append(time.perf_counter() - start)
        print(f"plain: {key.cell.label}, rate {key.lr:g}: {found[-1]:.1f} s", flush=True)
    return found


def together(path: str, overrides: list[str], labels: dict, jobs: int, folder: Path) -> float:
    """Seconds of the study, in a process of its own, from nothing."""
    note = folder / "study.yaml"
    settings = read(File, path, overrides).model_dump(mode="json") | {"factors": {"label": labels}, "ensembles": {}, "rates": {}}
    note.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    start = time.perf_counter()
    run("ablate", str(note), "--jobs", str(jobs))
    return time.perf_counter() - start


def main() -> None:
    """Print a line a run, the ratios, and the speed-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="configs/study/fusion_numerals.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--labels", nargs="+", default=["concat", "gated", "mag"])
    parser.add_argument("--rates", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--measured", metavar="RUN")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        # encoders as the experiment builds them: of the same size and speed as any others
        more = ["seeds=[0]", "intervals=false", "encoders=as-is", f"baseline={options.labels[0]}"]
        overrides = [*options.overrides, *more]
        study = Ablation(read(File, options.study, [*overrides, f"run={home / 'none'}"]))
        rates = study.study.lr[: options.rates]
        keys = [Key(Cell(study.tasks[0], label), lr, 0) for label in options.labels for lr in rates]
        labels = {label: study.labels[label] for label in options.labels}
        times = {}
        for jobs in dict.fromkeys([1, options.jobs]):
            folder = home / f"jobs{jobs}"
            folder.mkdir()
            own = [f"run={folder / 'run'}", f"features={folder / 'features'}", f"lr={rates}"]
            times[jobs] = together(options.study, [*overrides, *own], labels, jobs, folder)
            print(f"study, {jobs} at once: {len(keys)} trainings in {times[jobs]:.1f} s, cache and report included", flush=True)
        alone = plain(study, keys, home / "plain")
    caching, at_once = sum(alone) / times[1], times[1] / times[options.jobs]
    brought = f"caching {caching:.1f} times, {options.jobs} at once {at_once:.2f} times more"
    print(f"{len(keys)} trainings: plain {sum(alone):.0f} s; {brought}")
    ratio = caching * at_once
    if options.measured:
        notes = [json.loads(line) for line in (Path(options.measured) / "time.jsonl").read_text(encoding="utf-8").splitlines()]
        seconds, trainings = (sum(note[name] for note in notes) for name in ("seconds", "trainings"))
        mean = sum(alone) / len(alone)
        hours = mean * trainings / 3600
        print(f"{trainings} trainings: plain {hours:.1f} h ({mean:.0f} s each), the study {seconds / 60:.1f} min")
        ratio = mean * trainings / seconds
    print(f"speed-up: {ratio:.1f}")


if __name__ == "__main__":
    main()
