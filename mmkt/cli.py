"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmkt.arguments import parser
from mmkt.study_commands import ablate, folds, search, transfer, transferability, verify_resume  # noqa: F401 - main finds them by name
from mmkt.tuning_commands import average, find_lr  # noqa: F401

JSON = {"table": '{"age": 61}', "features": "[0.1, 0.2]"}  # kinds of cells that are typed as JSON, each with an example


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, 2 for a mistake in what was typed or read, 75 for a training to resume, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.append(str(Path.cwd()))  # where plugins may lie
    options, rest = parser().parse_known_args(arguments)
    settings = [word for word in rest if not word.startswith("-") and "=" in word]
    if options.command != "predict" and len(settings) < len(rest):
        strange = next(word for word in rest if word not in settings)
        parser().error(f"unrecognised {strange!r}; settings look like train.lr=3e-4")
    options.rest = rest
    options.overrides = getattr(options, "overrides", []) + settings
    try:
        globals()[options.command](options)  # a command's function is one of this module
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:  # ValueError is for people, by the rule of the house; OSError is the machine's
        if os.environ.get("MMKT_TRACEBACK"):
            raise
        words = str(error)
        if "Original Traceback" in words:  # a data worker's error carries its traceback as text
            words = words.strip().splitlines()[-1].partition(": ")[2]
        print("error: " + words.replace("\n", "\n       "), file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        stop = sys.modules.get("mmkt.stop")  # it imports torch: not there, nothing was stopped
        if stop is None or not isinstance(error, stop.Stopped):
            raise
        print(f"{error}: to continue, type the same command again (exit status {stop.RESUME_ME})", file=sys.stderr)
        sys.exit(stop.RESUME_ME)


def train(options: argparse.Namespace) -> None:
    """Train and evaluate."""
    from mmkt.config import read
    from mmkt.experiment import Experiment

    config = read(Experiment, options.config, options.overrides)
    from mmkt import distributed, launch
    from mmkt.stop import RESUME_ME, Stopped, seconds

    limit = seconds(options.max_time) if options.max_time else None
    try:
        found = launch.train(config, resume=options.resume, dry=options.dry_run, max_time=limit)
    except Stopped as stopped:
        distributed.say(f"{stopped} in {config.run}: to continue, type the same command with --resume (exit status {RESUME_ME})")
        if options.json and distributed.rank() == 0:
            print(json.dumps({"stopped": {"step": stopped.step, "steps": stopped.steps, "run": config.run}}))
        sys.exit(RESUME_ME)
    if not options.dry_run:
        _figures(found, options)
    elif options.json:
        print(json.dumps(found))


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a checkpoint."""
    from mmkt import distributed
    from mmkt.evaluate import PAGE
    from mmkt.evaluate import evaluate as evaluated

    asked = [text for text in options.overrides if text.startswith("evaluate.robustness")]
    usual = ["evaluate.robustness={}"] if options.robustness and not asked else []
    found, folder = evaluated(options.checkpoint, [*options.overrides, *usual], plugins=options.plugins, out=options.out)
    _figures(found.rows, options, found.across)
    distributed.say(f"written: {folder / PAGE if found.page else folder}")


def calibrate(options: argparse.Namespace) -> None:
    """Fit a temperature and prediction sets."""
    from rich.console import Console

    from mmkt import calibrate as calibrating
    from mmkt import distributed

    found = calibrating.calibrate(options.checkpoint, options.overrides, coverage=options.coverage, plugins=options.plugins)
    if distributed.rank() == 0:
        if options.json:
            print(json.dumps({"tasks": [one._asdict() for one in found]}))
        else:
            calibrating.show(found, Console())


def compare(options: argparse.Namespace) -> None:
    """Compare evaluations on the same rows."""
    from rich.console import Console

    from mmkt import compare as comparing

    how: Any = {"split": options.split, "metrics": options.metric, "resamples": options.resamples, "plugins": options.plugins}
    lines, robust = comparing.compare(options.paths, **how), comparing.robustness(options.paths, **how)
    if options.json:
        print(json.dumps(comparing.as_json(lines, options.paths[0], robust)))
    else:
        comparing.show(lines, options.paths[0], Console(), robust)


def ensemble(options: argparse.Namespace) -> None:
    """Evaluate models that answer together."""
    from mmkt import distributed
    from mmkt.ensemble import ensemble as together

    paths = [word for word in options.checkpoints if "=" not in word]
    settings = [word for word in options.checkpoints if "=" in word]
    rows, folder = together(paths, [*options.overrides, *settings], plugins=options.plugins, out=options.out)
    _figures(rows, options)
    distributed.say(f"written: {folder}")


def embed(options: argparse.Namespace) -> None:
    """Vectors of a manifest's rows."""
    from mmkt import distributed
    from mmkt.embed import embed as vectors

    file = vectors(
        options.checkpoint,
        options.manifest,
        options.overrides,
        plugins=options.plugins,
        out=options.out,
        normalize=options.normalize,
    )
    if distributed.rank() == 0:
        print(json.dumps({"embeddings": str(file)}) if options.json else file)


def tokenizer(options: argparse.Namespace) -> None:
    """Learn a tokenizer."""
    from mmkt.tokenizer import learn

    found = learn(
        options.manifest,
        Path(options.out),
        column=options.column,
        of=options.splits,
        vocabulary=options.vocabulary,
        layers=options.layers,
        width=options.width,
        heads=options.heads,
        max_tokens=options.max_tokens,
    )
    if options.json:
        print(json.dumps(found._asdict() | {"folder": str(found.folder)}))
    else:
        rows = (
            f"the split{'s' * (len(found.splits) > 1)} {', '.join(found.splits)}"
            if found.splits
            else "all rows: none has a split"
        )
        print(f"{found.folder}: {found.vocabulary:,} tokens from {found.texts:,} texts ({rows})")


def cache(options: argparse.Namespace) -> None:
    """List or clear cached features."""
    from mmkt import feature_store

    folder = Path(options.folder)
    found = feature_store.entries(folder) if options.clear is None else feature_store.clear(folder, options.clear)
    if options.json:
        print(json.dumps({"removed" if options.clear is not None else "features": [entry._asdict() for entry in found]}))
    else:
        from rich.console import Console

        from mmkt import report

        report.show([feature_store.sheet(found, "removed" if options.clear is not None else str(folder))], Console())


def _figures(rows: Any, options: argparse.Namespace, across: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Rows, and those across modalities, as tables on standard output, or with --json as one object."""
    from rich.console import Console

    from mmkt import distributed, report
    from mmkt.across import SHEETS

    if distributed.rank() == 0:
        if options.json:
            print(
                json.dumps(report.as_json(rows) | {name: report.as_json(some)["rows"] for name, some in across.items() if some})
            )
        else:
            console = Console()
            report.show(report.sheets(rows, width=console.width), console)
            for name, tables in SHEETS.items():
                report.show(tables(across.get(name, ())), console)


def predict(options: argparse.Namespace) -> None:
    """Answer for one row; the options that are left over are its modalities."""
    cells: dict[str, Any] = {}
    words = list(options.rest)
    while words:
        flag = words.pop(0)
        if not flag.startswith("--") or not words:
            raise ValueError(f"give each modality as --NAME VALUE, found {flag!r}")
        name, value = flag.removeprefix("--"), words.pop(0)
        cells[name] = (
            [cells[name], value] if isinstance(cells.get(name), str) else [*cells[name], value] if name in cells else value
        )
    from mmkt.model import Model

    model = Model.from_pretrained(options.checkpoint, options.plugins)
    if not cells:
        raise ValueError(f"give one modality or more: {' '.join(f'--{m} …' for m in model.modalities)}")
    typed = {m: JSON[encoder.kind] for m, encoder in model.encoders.items() if encoder.kind in JSON and m in cells}
    answer = model.predict([cells | {m: _parsed(m, cells[m], example) for m, example in typed.items()}])[0]
    if options.json:
        print(json.dumps(answer))
    else:
        for task, found in answer.items():
            print(f"{task}: {found['prediction']}" + (f" ({found['confidence']:.1%})" if "confidence" in found else ""))


def _parsed(name: str, words: str | list[str], example: str) -> Any:
    """What is typed as JSON, or several of it."""
    try:
        return [json.loads(word) for word in words] if isinstance(words, list) else json.loads(words)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{name} takes JSON, such as '{example}', found {words!r}: {error}") from None


def convert(options: argparse.Namespace) -> None:
    """Write a checkpoint as another."""
    out = Path(options.out)
    if out.exists():
        raise ValueError(f"{out} is there already: name a folder that is not, or remove it")
    from mmkt.model import Model, locate

    source = locate(options.checkpoint)
    model = Model.from_pretrained(source, options.plugins)
    if options.merge:
        model.merge()
    card = source / "README.md"
    model.save_pretrained(out, card.read_text(encoding="utf-8") if card.is_file() else None, delta=options.delta)
    before, after = ((folder / "model.safetensors").stat().st_size for folder in (source, out))
    if options.json:
        print(json.dumps({"checkpoint": str(out), "bytes": {"before": before, "after": after}}))
    else:
        print(f"{out}: tensors of {after:,} bytes, before {before:,}")


def list_parts(options: argparse.Namespace) -> None:
    """Show parts."""
    from mmkt.catalogue import catalogue, one, show, show_one

    if options.part:
        part = one(options.room, options.part)
        print(json.dumps({options.part: part})) if options.json else show_one(options.part, part)
    else:
        found = catalogue(options.room)
        print(json.dumps(found)) if options.json else show(found)


def check_part(options: argparse.Namespace) -> None:
    """Hold a part to its room's points; exit 1 where it breaks one."""
    from rich.console import Console

    from mmkt.conformance import examine, find, show

    case = find(options.room, options.name, options.overrides, options.plugins)
    with Console(stderr=True).status("checking …"):
        findings = examine(case)
    print(json.dumps({"findings": [f._asdict() for f in findings]})) if options.json else show(case, findings)
    if any(finding.status == "broken" for finding in findings):
        sys.exit(1)


def schema(_: argparse.Namespace) -> None:
    """Print the JSON schema."""
    from mmkt.experiment import Experiment
    from mmkt.parts import Parts
    from mmkt.schema import schema as of

    print(json.dumps(of(Experiment, Parts()), indent=2))


def push(options: argparse.Namespace) -> None:
    """Upload a checkpoint."""
    from mmkt.push import push as upload

    address = upload(Path(options.checkpoint), options.name, private=options.private)
    print(json.dumps({"address": address}) if options.json else address)


def runs(options: argparse.Namespace) -> None:
    """Show the runs of a folder."""
    from rich.console import Console

    from mmkt.runs import index, show

    found = index(Path(options.folder))
    print(json.dumps({"runs": found})) if options.json else show(found, Console())


def doctor(options: argparse.Namespace) -> None:
    """Examine this machine."""
    from mmkt.doctor import examine, show

    found = examine(Path(options.folder))
    print(json.dumps({"findings": [finding._asdict() for finding in found]})) if options.json else show(found)
    if any(finding.status == "problem" for finding in found):
        sys.exit(1)


def prepare(options: argparse.Namespace) -> None:
    """Make a source's manifest."""
    from mmkt.config import check, override
    from mmkt.experiment import SourceOf
    from mmkt.parts import Parts
    from mmkt.preparation import prepare as make

    parts = Parts()
    spec = check(SourceOf, {"source": override({"name": options.source}, options.overrides)}, parts).source
    out = Path(options.out or f"data/{options.source}")
    path = make(spec, out, Path(options.origin) if options.origin else None, parts)
    print(json.dumps({"manifest": str(path)}) if options.json else path)


def check_data(options: argparse.Namespace) -> None:
    """Check a manifest; exit 1 where it has problems."""
    from rich.console import Console

    from mmkt.data import check, manifest
    from mmkt.data.kinds import kinds

    table = manifest.read(options.manifest)
    columns = {name: kind for name, kind in kinds(table).items() if name not in options.labels}
    report = check.check(table, columns, options.labels, content=not options.no_content)
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        check.render(report, Console())
    if report.problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
