"""What a pretrained body is worth on a target: sources × methods × labels, each with its own learning rate, over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mmkt.checkpoint import write_json
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.parts import ConfigError, nearest
from mmkt.run import stage
from mmkt.studies.runs import Crew, Training, figure, judged
from mmkt.study import GridOf, Study


class Cell(NamedTuple):
    """One line of the table."""

    source: str
    method: str
    fraction: float  # of the training rows

    def __str__(self) -> str:
        return f"{self.source}, {self.method}" + ("" if self.fraction == 1 else f", {self.fraction:.3g} of the labels")


class Key(NamedTuple):
    """One training."""

    cell: Cell
    lr: float
    seed: int


class Transfer:
    """A study, its trainings and where they stand.

    Args:
        study: checked.

    Raises:
        ConfigError: names that the study does not have, an experiment without validation, settings that don't go together.
    """

    def __init__(self, study: Study):
        self.study = study
        self.grids: dict[Cell, GridOf] = {}
        for k, grid in enumerate(study.grids):
            for cell in _cells(study, grid, f"grids.{k}"):
                if cell in self.grids:
                    raise ConfigError([(f"grids.{k}", f"the cell ({cell}) is in an earlier grid already")])
                self.grids[cell] = grid
        rates = {rate for grid in study.grids for rate in grid.lr}
        if study.lr is not None and study.lr not in rates:
            raise ConfigError([("lr", f"{study.lr:g} is in no grid; it is one of {', '.join(f'{x:g}' for x in sorted(rates))}")])
        self.task, self.metric, self.higher = judged(study)
        configs = [self._read(Key(cell, 1.0, 0)) for cell in self.grids]  # a mistake in any cell is reported before the first run
        self.config = configs[0]
        if any(config.data.validation is None for config in configs):
            raise ConfigError([("data.validation", "is null: learning rates are chosen on it, name a split")])
        self.validation = self.config.data.validation or ""

    # ------------------------------------------------------------ trainings

    def _settings(self, key: Key) -> tuple[str, ...]:
        study, cell = self.study, key.cell
        settings = [*study.settings, *study.sources[cell.source], *study.methods[cell.method]]
        if cell.fraction < 1:
            settings += [f"data.subset.share={cell.fraction!r}", *([f"data.subset.by={study.by}"] if study.by else [])]
        select = f"train.select={self.task}/{self.metric}"
        return (*settings, f"train.lr={key.lr!r}", select, f"seed={key.seed}", f"run={self.folder(key)}")

    def _read(self, key: Key) -> Experiment:
        try:
            return read(Experiment, self.study.experiment, self._settings(key))
        except ConfigError as error:
            raise ConfigError([(f"({key.cell}) {path}", text) for path, text in error.problems]) from None

    def training(self, key: Key, test: bool = False) -> Training:
        """Of a cell."""
        return Training(self.study.experiment, self._settings(key), test)

    def folder(self, key: Key) -> Path:
        """A training's folder."""
        cell = key.cell
        share = "" if cell.fraction == 1 else f"-{cell.fraction:g}"
        return Path(self.study.run) / f"{cell.source}-{cell.method}{share}-lr{key.lr:g}-seed{key.seed}"

    def sweep(self, cell: Cell) -> list[Key]:
        """Every rate with the first seed."""
        grid = self.grids[cell]
        return [Key(cell, lr, grid.seeds[0]) for lr in grid.lr]

    def chosen(self, cell: Cell) -> float | None:
        """The rate that is best on validation, the smaller one of equals; None while the sweep is unfinished.

        Raises:
            ConfigError: every rate failed.
        """
        found = {}
        for key in self.sweep(cell):
            if not self.ended(key):
                return None
            found[key.lr] = self.value(key, self.validation)
        known = {lr: x if self.higher else -x for lr, x in found.items() if not math.isnan(x)}
        if not known:
            raise ConfigError(f"every learning rate of ({cell}) ended in a loss that is not finite: give lower ones")
        return max(sorted(known), key=lambda lr: known[lr])

    def ended(self, key: Key) -> bool:
        """Whether a training has its figures on validation, or has failed."""
        run = self.folder(key)
        return (run / "failed.json").is_file() or stage(run, self.validation) == "ended"

    def value(self, key: Key, split: str) -> float:
        """The study's metric."""
        return figure(self.folder(key), split, self.task, self.metric)

    def finals(self, cell: Cell, fixed: bool = False) -> list[Key]:
        """Every seed with the chosen rate, or with the study's one rate for all."""
        lr = self.study.lr if fixed else self.chosen(cell)
        return [] if lr is None or lr not in self.grids[cell].lr else [Key(cell, lr, seed) for seed in self.grids[cell].seeds]

    # ------------------------------------------------------------ carrying out

    def carry_out(self, jobs: int = 1, part: tuple[int, int] = (1, 1)) -> None:
        """Train what is missing.

        Args:
            jobs: at once.
            part: (i, n): only every n-th cell, from the i-th: for n machines that share the folder.
        """
        cells = list(self.grids)[part[0] - 1 :: part[1]]
        Path(self.study.run).mkdir(parents=True, exist_ok=True)
        write_json(Path(self.study.run) / "study.json", self.study.model_dump(mode="json"))
        sweeps = [key for cell in cells for key in self.sweep(cell)]
        total = len(sweeps) + sum(len(self.grids[cell].seeds) * (1 + (self.study.lr in self.grids[cell].lr)) for cell in cells)
        begun: set[tuple[Key, bool]] = set()

        def start(keys: Sequence[Key], test: bool) -> Iterator[tuple[tuple[Key, bool], Training]]:
            for key in keys:
                if (key, test) not in begun:
                    begun.add((key, test))
                    yield (key, test), self.training(key, test)

        def done(ended: tuple[Key, bool]) -> list[tuple[tuple[Key, bool], Training]]:
            (cell, lr, seed), test = ended
            bar.advance(task)
            words = f"{self.metric} {self.value(ended[0], self.validation):.4f} on {self.validation}"
            bar.console.print(f"{cell}, rate {lr:g}, seed {seed}: {words}", highlight=False)
            if test or self.chosen(cell) is None:
                return []
            return list(start([*self.finals(cell), *self.finals(cell, fixed=True)], True))

        columns: list[Any] = [BarColumn(None), MofNCompleteColumn(), "trainings at the most", TimeRemainingColumn()]
        with Progress(*columns, console=Console(stderr=True)) as bar, Crew(jobs) as crew:
            task = bar.add_task("study", total=total)
            crew.run(list(start(sweeps, False)), done)


def _cells(study: Study, grid: GridOf, path: str) -> Iterator[Cell]:
    for room, names, known in (("sources", grid.sources, study.sources), ("methods", grid.methods, study.methods)):
        for name in names:
            if name not in known:
                raise ConfigError(
                    [(f"{path}.{room}", f"there is no {name!r}{nearest(name, known)}; allowed: {', '.join(known)}")]
                )
    if len(set(grid.seeds)) < len(grid.seeds):
        raise ConfigError([(f"{path}.seeds", f"{grid.seeds} has a seed twice")])
    for fraction in grid.fractions:
        for method in grid.methods or study.methods:
            yield from (Cell(source, method, fraction) for source in grid.sources or study.sources)


def of_method(cells: Iterable[Cell], method: str, fraction: float) -> dict[str, Cell]:
    """By source, the cells of a method and a share of the labels."""
    return {cell.source: cell for cell in cells if (cell.method, cell.fraction) == (method, fraction)}
