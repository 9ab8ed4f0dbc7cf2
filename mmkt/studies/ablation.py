"""Ablations: data sets × modalities × factors, each cell with its own learning rate, over seeds; every encoder frozen or none."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mmkt.checkpoint import read_json, write_json
from mmkt.config import check, read, written
from mmkt.experiment import Experiment
from mmkt.parts import ConfigError, Parts
from mmkt.run import stage
from mmkt.studies.ablation_cells import Cell, Key, Task, labels_of, refuse_budget, refuse_names
from mmkt.studies.encoders import encoders_of, without
from mmkt.studies.runs import Crew, Training, figure, judged
from mmkt.study import Ablation as File

NEVER = 1_000_000_000
MATCHED = "matched.json"


class Ablation:
    """A study, its trainings and where they stand.

    Args:
        study: checked.

    Raises:
        ConfigError: names that the study or the experiment does not have, settings that don't go together.
    """

    def __init__(self, study: File):
        self.study, self.parts = study, Parts(read(Experiment, study.experiment, study.settings).plugins)
        self.labels = labels_of(study)
        self.baseline = study.baseline or next(iter(self.labels))
        refuse_names(study, self.labels, self.baseline)
        self.task, self.metric, self.higher = judged(study)
        self.tasks = [Task(d, tuple(m)) for d in (study.data or {"": []}) for m in (study.modalities or [[]])]
        self.cells = [Cell(task, label) for task in self.tasks for label in self.labels]
        folders = [self.folder(Key(cell, 1.0, 0)) for cell in self.cells]
        twice = [cell for cell, folder in zip(self.cells, folders) if folders.count(folder) > 1]
        if twice:
            words = "have folders of one name: give labels that differ in letters or digits"
            raise ConfigError([("factors", f"({twice[0]}) and ({twice[1]}) {words}")])
        note = Path(study.run) / MATCHED
        # cell → settings that match its parameters with the baseline's
        self.fitted: dict[str, list[str]] = read_json(note) if study.match and note.is_file() else {}
        configs = {cell: self.config(Key(cell, 1.0, study.seeds[0])) for cell in self.cells}  # a mistake in any is reported
        for cell, config in configs.items():
            if config.data.validation is None:
                raise ConfigError([("data.validation", f"({cell}) is null: learning rates are chosen on it, name a split")])
            refuse_budget(cell, config, self.baseline, configs[Cell(cell.task, self.baseline)])
        one = configs[self.cells[0]]
        for cell, config in configs.items():
            for name in ("validation", "test"):
                if getattr(config.data, name) != getattr(one.data, name):
                    pair = f"({cell}) has {getattr(config.data, name)}, ({self.cells[0]}) {getattr(one.data, name)}"
                    words = f"{pair}: call splits alike"
                    raise ConfigError([(f"data.{name}", words)])
        self.validation, self.test, self.first = one.data.validation or "", one.data.test, one

    # ------------------------------------------------------------ trainings

    def settings(self, key: Key) -> tuple[str, ...]:
        """``key=value`` of a training."""
        study, cell = self.study, key.cell
        frozen = study.encoders != "trained"
        rest = [
            f"data.features={written(study.features)}",
            'transfer={name: full, frozen: ["encoders.*"]}',
            f"train.save_every={NEVER}",
        ]
        began = encoders_of(study, cell.task.data)
        chosen = [
            *study.settings,
            *(study.data.get(cell.task.data, [])),
            *(rest if frozen else []),
            *([f"model.start={written(str(began))}"] if frozen and (began / "model.safetensors").is_file() else []),
            *self.labels[cell.label],
            *self.fitted.get(str(cell), []),
        ]
        chosen += without(study.experiment, chosen, cell.task.modalities)
        quiet = ["trackers=[]", "evaluate.resamples=0", "evaluate.page=false"]
        own = [
            f"train.select={self.task}/{self.metric}",
            f"train.lr={key.lr!r}",
            f"seed={key.seed}",
            f"run={written(str(self.folder(key)))}",
        ]
        return (*chosen, *quiet, *own)

    def config(self, key: Key) -> Experiment:
        """Checked."""
        try:
            return read(Experiment, self.study.experiment, self.settings(key))
        except ConfigError as error:
            raise ConfigError([(f"({key.cell}) {path}", text) for path, text in error.problems]) from None

    def training(self, key: Key, test: bool = False) -> Training:
        """Of a cell."""
        return Training(self.study.experiment, self.settings(key), test, test and self.study.subsets)

    def folder(self, key: Key) -> Path:
        """A training's folder."""
        cell = key.cell
        words = [cell.task.data, "+".join(cell.task.modalities), cell.label]
        name = "-".join(re.sub(r"[^A-Za-z0-9.+=_-]+", "_", word).strip("_") for word in words if word)
        return Path(self.study.run) / f"{name}-lr{key.lr:g}-seed{key.seed}"

    def rates(self, cell: Cell) -> list[float]:
        """A cell's grid, ascending."""
        return sorted(self.study.rates.get(cell.label, self.study.lr))

    def sweep(self, cell: Cell) -> list[Key]:
        """Every rate with every seed."""
        return [Key(cell, lr, seed) for lr in self.rates(cell) for seed in self.study.seeds]

    def scores(self, cell: Cell) -> dict[float, list[float]]:
        """By rate, the value on validation of each seed; NaN where the training failed."""
        return {lr: [self.value(Key(cell, lr, seed), self.validation) for seed in self.study.seeds] for lr in self.rates(cell)}

    def chosen(self, cell: Cell) -> float | None:
        """The rate with the best mean on validation, the smaller one of equals.

        None while the sweep is unfinished, and where with every rate the loss of some seed is not finite.
        """
        if not all(self.ended(key) for key in self.sweep(cell)):
            return None
        means = {lr: sum(values) / len(values) * (1 if self.higher else -1) for lr, values in self.scores(cell).items()}
        known = {lr: mean for lr, mean in means.items() if not math.isnan(mean)}
        return max(sorted(known), key=lambda lr: known[lr]) if known else None

    def ended(self, key: Key) -> bool:
        """Whether a training has its figures on validation, or has failed."""
        run = self.folder(key)
        return (run / "failed.json").is_file() or stage(run, self.validation) == "ended"

    def tested(self, key: Key) -> bool:
        """Whether it has figures on test."""
        return stage(self.folder(key), self.test) == "ended"

    def value(self, key: Key, split: str) -> float:
        """The study's metric."""
        return figure(self.folder(key), split, self.task, self.metric)

    def finals(self, cell: Cell) -> list[Key]:
        """Every seed with the chosen rate."""
        lr = self.chosen(cell)
        return [] if lr is None else [Key(cell, lr, seed) for seed in self.study.seeds]

    # ------------------------------------------------------------ carrying out

    def carry_out(self, jobs: int = 1, part: tuple[int, int] = (1, 1)) -> None:
        """Train what is missing, and evaluate what was chosen.

        Args:
            jobs: at once.
            part: (i, n): only every n-th cell, from the i-th: for n machines that share the folder.
        """
        cells = self.cells[part[0] - 1 :: part[1]]
        # seeds last: what a process keeps for one seed serves all cells
        sweeps = sorted((key for cell in cells for key in self.sweep(cell)), key=lambda key: self.study.seeds.index(key.seed))
        todo = [key for key in sweeps if not self.ended(key)]
        columns: list[Any] = [BarColumn(None), MofNCompleteColumn(), "trainings and tests", TimeRemainingColumn()]
        total = len(todo) + len(cells) * len(self.study.seeds)
        begun: set[Cell] = set()

        def tests(cell: Cell) -> list[tuple[tuple[Key, bool], Training]]:
            if cell in begun or self.chosen(cell) is None:
                return []
            begun.add(cell)
            return [((key, True), self.training(key, True)) for key in self.finals(cell)]

        def done(ended: tuple[Key, bool]) -> list[tuple[tuple[Key, bool], Training]]:
            (cell, lr, seed), test = ended
            bar.advance(task)
            if not test:
                words = f"{self.metric} {self.value(ended[0], self.validation):.4f} on {self.validation}"
                bar.console.print(f"{cell}, rate {lr:g}, seed {seed}: {words}", highlight=False)
            return [] if test else tests(cell)

        with Progress(*columns, console=Console(stderr=True)) as bar, Crew(jobs) as crew:
            task = bar.add_task("study", total=total)
            crew.run([((key, False), self.training(key)) for key in todo] + [x for cell in cells for x in tests(cell)], done)

    def refuse_other(self) -> None:
        """Refuse a folder of a study that is not this one, perhaps extended.

        Raises:
            ConfigError: so it is.
        """
        note = Path(self.study.run) / "study.json"
        if not note.is_file():
            return
        before, now = read_json(note), self.study.model_dump(mode="json")
        labels = labels_of(check(File, before, self.parts))
        names = [
            name for name in ("experiment", "settings", "encoders", "alone", "data", "match") if before.get(name) != now[name]
        ]
        problems = [
            (name, f"the study in {note.parent} was begun with {json.dumps(before.get(name))}: give run=OTHER") for name in names
        ]
        for label, texts in self.labels.items():
            if labels.get(label, texts) != texts:
                problems.append((f"factors ({label})", f"was {labels[label]} in {note.parent}: give another label, or run=OTHER"))
        if problems:
            raise ConfigError(problems)

    def begin(self) -> None:
        """Note what this folder is the study of."""
        self.refuse_other()
        Path(self.study.run).mkdir(parents=True, exist_ok=True)
        write_json(Path(self.study.run) / "study.json", self.study.model_dump(mode="json"))
