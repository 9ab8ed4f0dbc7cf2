"""python scripts/same_twice.py [STUDY] [key=value …] [--labels 20] [--jobs 2]

A/A: what an ablation says of differences that are not there. Of a study that has ended, every label is trained once more with as
many other seeds, at the rate that it chose; the two halves, the same fusion under two names, are compared as the study
compares a label with its baseline, one comparison a study and (Holm) all in one.
"""

import argparse
from pathlib import Path

from rich.console import Console

from mmkt import report
from mmkt.config import read
from mmkt.score import resampled_alike
from mmkt.statistics import difference, holm
from mmkt.stored import load
from mmkt.studies.ablation import Ablation
from mmkt.studies.ablation_cells import Key
from mmkt.studies.runs import Crew
from mmkt.study import Ablation as File


def main() -> None:
    """Train what is missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="configs/study/fusion_numerals.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    study = Ablation(read(File, options.study, options.overrides))
    seeds, cells = study.study.seeds, study.cells[: options.labels]
    rates = {cell: study.chosen(cell) for cell in cells}
    if None in rates.values():
        raise SystemExit(f"the study in {study.study.run} has not ended: mmkt ablate {options.study} --jobs {options.jobs}")
    halves = {cell: [[Key(cell, rates[cell], seed + shift) for seed in seeds] for shift in (0, max(seeds) + 1)] for cell in cells}
    missing = [key for _, second in halves.values() for key in second if not study.tested(key)]
    with Crew(options.jobs) as crew:
        crew.run([(key, study.training(key, True)) for key in missing], lambda _: [])
    metric = study.parts.find("metrics", study.metric)()
    found = []
    for first, second in halves.values():
        answers = [load(study.folder(key), study.test) for key in [*first, *second]]
        values = resampled_alike(answers, study.task, metric, study.study.resamples)
        found.append(difference(values[len(first) :] - values[: len(first)]))
    corrected = holm([one.p for one in found])
    words = {"label": [cell.label for cell in cells]}
    figures = {
        "difference": [f"{one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})" for one in found],
        "p": [f"{one.p:.3g}" for one in found],
        "p (Holm)": [f"{p:.3g}" for p in corrected],
        "by itself": [one.verdict() for one in found],
        "among all": [one.verdict(p) for one, p in zip(found, corrected)],
    }
    alone, together = (sum(x in ("gain", "loss") for x in figures[name]) for name in ("by itself", "among all"))
    note = f"Differences claimed: {alone} of {len(found)} by itself, {together} among all."
    report.show([report.sheet(f"The same twice: {Path(study.study.run).name}", words, figures, [note])], Console())


if __name__ == "__main__":
    main()
