"""The commands that train many times. As in ``cli``, nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def folds(options: argparse.Namespace) -> None:
    """Cross-validate."""
    from rich.console import Console

    from mmkt import distributed
    from mmkt import folds as study
    from mmkt.config import read
    from mmkt.experiment import Experiment

    # which fold is the test split is said run by run; here any name passes the check
    more = [f"data.fold.by={options.by}", f"data.fold.k={'null' if options.k is None else options.k}", "data.fold.test='?'"]
    found = study.folds(read(Experiment, options.config, [*options.overrides, *more]))
    if distributed.rank() == 0:
        if options.json:
            print(json.dumps(study.as_json(found)))
        else:
            study.table(found, Console())


def transfer(options: argparse.Namespace) -> None:
    """Train what a transfer study lacks, and report."""
    from mmkt.config import read
    from mmkt.study import Study

    study = read(Study, options.study, options.overrides)
    from mmkt.studies import transfer_report
    from mmkt.studies.runs import part
    from mmkt.studies.transfer_gain import Transfer
    from mmkt.studies.transfer_results import gather

    found = Transfer(study)
    if not options.report:
        found.carry_out(options.jobs, part(options.part))
    results = gather(found)
    _reported(transfer_report, results, transfer_report.write(results), options)


def ablate(options: argparse.Namespace) -> None:
    """Train what an ablation lacks, and report."""
    from mmkt.config import read
    from mmkt.study import Ablation as File

    study = read(File, options.study, options.overrides)
    from mmkt.studies import ablate as studying
    from mmkt.studies import ablation_report
    from mmkt.studies.ablation import Ablation
    from mmkt.studies.ablation_results import gather
    from mmkt.studies.runs import part

    if options.report:
        found = Ablation(study)
        found.refuse_other()
    else:
        found = studying.carry_out(study, options.jobs, part(options.part))
    results = gather(found)
    _reported(ablation_report, results, ablation_report.write(results, latex=options.latex), options)


def search(options: argparse.Namespace) -> None:
    """Carry a search's trials out, and report."""
    from mmkt.config import read
    from mmkt.search_file import Search

    file = read(Search, options.search, options.overrides)
    from mmkt import distributed
    from mmkt.studies import search_report
    from mmkt.studies.search import HyperSearch

    study = HyperSearch(file)
    if not options.report:
        study.carry_out()
    if distributed.rank() == 0:
        results = search_report.gather(study)
        _reported(search_report, results, search_report.write(results), options)


def transferability(options: argparse.Namespace) -> None:
    """Rank a study's sources without training."""
    from rich.console import Console

    from mmkt.config import read
    from mmkt.study import Study

    study = read(Study, options.study, options.overrides)
    from mmkt import distributed, ranking
    from mmkt import transferability as sources

    found = sources.rank(study, method=options.method, rows=options.rows, modality=options.modality)
    if distributed.rank() == 0:
        file = sources.write(found, Path(study.run))
        print(json.dumps(ranking.as_json(found))) if options.json else ranking.table(found, Console())
        distributed.say(f"written: {file}")


def verify_resume(options: argparse.Namespace) -> None:
    """Kill and resume a short training; exit 1 where it is not the one that nobody killed."""
    from rich.console import Console

    from mmkt.verify import as_json, show, verify

    asked = {name: getattr(options, name) for name in ("kills", "seed", "processes", "steps", "out")}
    found = verify(options.config, options.overrides, **asked)
    print(json.dumps(as_json(found))) if options.json else show(found, Console())
    if not found.equal:
        sys.exit(1)


def _reported(reports: Any, results: Any, page: Path, options: argparse.Namespace) -> None:
    """What a study found: tables on standard output, or with --json one object; where its page is."""
    from rich.console import Console

    from mmkt import distributed

    print(json.dumps(reports.as_json(results))) if options.json else reports.show(results, Console())
    distributed.say(f"report: {page}")
