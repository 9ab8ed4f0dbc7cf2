"""An ablation from its file to its report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmkt import distributed, launch
from mmkt.checkpoint import write_json
from mmkt.data.splits import rows_of
from mmkt.parts import ConfigError
from mmkt.preparation import open_manifest
from mmkt.resting import awake, data_key, encoders_key
from mmkt.studies.ablation import MATCHED, Ablation
from mmkt.studies.ablation_cells import Cell, Key
from mmkt.studies.costs import NOTE, Cost, measure, noted
from mmkt.studies.encoders import encoders_of, origin, prepare
from mmkt.studies.runs import WORKSHOP, Crew, Training
from mmkt.study import Ablation as File

CLOSE = 0.02  # of the baseline's parameters


def carry_out(study: File, jobs: int = 1, part: tuple[int, int] = (1, 1)) -> Ablation:
    """Everything that is missing: encoders, features, trainings, tests, costs.

    Args:
        study: checked.
        jobs: trainings at once.
        part: (i, n): only every n-th cell, from the i-th.

    Raises:
        ConfigError: before the first training, for cells that cannot be built or compared.
    """
    found, start = Ablation(study), time.monotonic()
    found.begin()
    _inspect(found)
    origins(study, jobs, part)
    if study.encoders != "trained":
        warm(found)
    cells = found.cells[part[0] - 1 :: part[1]]
    missing = sum(not found.ended(key) for cell in cells for key in found.sweep(cell))
    found.carry_out(jobs, part)
    if part == (1, 1):
        costs(found)
    note = {"seconds": time.monotonic() - start, "trainings": missing, "jobs": jobs, "part": part}
    with (Path(study.run) / "time.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")
    return found


def _inspect(found: Ablation) -> None:
    """Build every cell once, so that what does not go together is said before anything trains; match parameters."""
    for data in dict.fromkeys(task.data for task in found.tasks):
        _refuse_other_splits(found, next(cell for cell in found.cells if cell.task.data == data))
    for task in found.tasks:
        wanted = _trained(found, Cell(task, found.baseline))
        for label in found.labels:
            cell = Cell(task, label)
            number = _trained(found, cell) if label != found.baseline else wanted
            if found.study.match and abs(number - wanted) > CLOSE * wanted:
                _match(found, cell, wanted)


def _refuse_other_splits(found: Ablation, cell: Cell) -> None:
    """Refuse splits that seeds draw: their test rows would differ, and some would be rows that encoders were trained on."""
    splits = []
    for seed in found.study.seeds[:2]:
        config = found.config(Key(cell, 1.0, seed))
        make = partial(open_manifest, config.data, config.seed, found.parts)
        manifest = WORKSHOP.get("manifest", data_key(config), make)
        ids = manifest.table["id"].to_pylist()
        splits.append([[ids[row] for row in rows_of(manifest, name)] for name in (found.validation, found.test)])
    if any(other != splits[0] for other in splits[1:]):
        words = "are drawn anew by every seed, and a study compares runs on the same rows: give the manifest a column split"
        raise ConfigError([("data", f"({cell}) the splits {words}")])


def _trained(found: Ablation, cell: Cell, value: int | None = None) -> int:
    """How many numbers a cell trains, with the matched setting at a value."""
    if value is not None:
        found.fitted[str(cell)] = [f"{found.study.match}={value}"]
    config = found.config(Key(cell, 1.0, found.study.seeds[0]))
    bare = config.model.model_copy(update={"start": None})  # whatever encoders it will have: their size is the same
    try:
        setup = launch.build(config.model_copy(update={"model": bare}), WORKSHOP)
        plan = launch.plan_of(setup, config)
    except ConfigError as error:
        raise ConfigError([(f"({cell}) {path}", text) for path, text in error.problems]) from None
    if found.study.encoders != "trained":
        for phase in plan:
            setup.learner.begin(phase)  # whether its patterns name anything
        running = awake(setup.learner, setup.feed, plan)
        encoders = dict(setup.learner.model.encoders.items())
        WORKSHOP.get("encoders", encoders_key(config.model_copy(update={"model": bare})), lambda: encoders)
        if running:
            words = "; ".join(f"{m}: {why}" for m, why in running.items())
            raise ConfigError([("encoders", f"({cell}) every encoder rests in this study, but {words}; or say encoders=trained")])
    named = setup.learner.named()
    return sum(named[name].numel() for name in set().union(*(setup.learner.trained_in(phase) for phase in plan)))


def _match(found: Ablation, cell: Cell, wanted: int) -> None:
    """The value of ``match`` with which a cell trains as many numbers as the baseline, within 2 %.

    Raises:
        ConfigError: there is none.
    """
    low, high, best = 1, 1, (float("inf"), 0, 0)
    tried: dict[int, int] = {}
    why = ""

    def size(value: int) -> int | None:
        nonlocal best, why
        if value not in tried:
            try:
                tried[value] = _trained(found, cell, value)
            except ConfigError as error:
                tried[value], why = -1, f" ({error})"  # heads that don't divide it, and the like
            if tried[value] > 0:
                best = min(best, (abs(tried[value] - wanted) / wanted, value, tried[value]))
        return tried[value] if tried[value] > 0 else None

    def near(value: int) -> int | None:
        return next((x for step in range(16) for x in (size(value + step),) if x is not None), None)

    while (x := near(high)) is not None and x < wanted and high < 65536:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        x = near(middle)
        low, high = (middle, high) if x is not None and x < wanted else (low, middle)
    for value in range(max(1, low - 16), high + 17):
        if best[0] > CLOSE:
            size(value)
    if best[0] > CLOSE:
        words = f"({cell}) trains {best[2]:,} numbers at the nearest, {found.study.match}={best[1]}; {found.baseline} {wanted:,}"
        raise ConfigError([("match", f"{words}: over 2 % apart{why}. Leave the cell out, or match another setting")])
    found.fitted[str(cell)] = [f"{found.study.match}={best[1]}"]
    write_json(Path(found.study.run) / MATCHED, found.fitted)


def origins(study: File, jobs: int, part: tuple[int, int]) -> dict[str, dict[str, str]]:
    """By data set, where its encoders come from; what has to be trained for it is, by the first part alone.

    Raises:
        ConfigError: another part is to begin before the first one has made them.
    """
    missing = [data for data in study.data or {"": []} if not origin(study, data)]
    if missing and part[0] > 1:
        words = f"start it first, and this one once {encoders_of(study, missing[-1])} is there"
        raise ConfigError([("encoders", f"are made by --part 1/{part[1]}: {words}")])
    with Crew(jobs) as crew:

        def run(trainings: Sequence[tuple[Any, Training]]) -> None:
            for m, _ in trainings:
                distributed.say(f"training the encoder of {m} by itself")
            crew.run(trainings, lambda _: [])

        return {data: prepare(study, data, run) for data in study.data or {"": []}}


def warm(found: Ablation) -> None:
    """Put the features of every row that the study will read into the cache, and of each task one model into the workshop."""
    for task in found.tasks:
        config = found.config(Key(Cell(task, found.baseline), 1.0, found.study.seeds[0]))
        streams = [stream.split for stream in config.data.streams.values()]
        launch.built_to_rest(config, WORKSHOP, [config.data.train, *streams, found.validation, found.test])


def costs(found: Ablation) -> dict[str, Cost]:
    """By cell, what it takes; measured once, when its trainings have ended."""
    known = noted(Path(found.study.run))
    missing = {str(cell): keys[0] for cell in found.cells if str(cell) not in known and (keys := found.finals(cell))}
    if missing:
        known |= measure({name: found.training(key).config() for name, key in missing.items()}, WORKSHOP)
        write_json(Path(found.study.run) / NOTE, {name: cost._asdict() for name, cost in known.items()})
    return known
