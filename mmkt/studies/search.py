"""A search for the settings with which an experiment does best on validation: trials, one after another."""

from __future__ import annotations

import fcntl
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmkt import distributed
from mmkt.checkpoint import read_json, write_json
from mmkt.config import read
from mmkt.experiment import Experiment
from mmkt.launcher import join
from mmkt.parts import ConfigError
from mmkt.run import flat
from mmkt.search_file import Search, space_of
from mmkt.stop import Stop, Stopped
from mmkt.studies.runs import Training, judged
from mmkt.studies.search_tally import Tally
from mmkt.studies.search_trial import Ended, Judge, Outcome, carry_out

if TYPE_CHECKING:
    from mmkt.studies.search_optuna import Trials


class SearchStopped(Stopped):
    """A search stopped when asked to; the same command continues it."""

    def __init__(self, done: int, trials: int, within: str = ""):
        Exception.__init__(self, f"stopped{within}; {done} of {trials} trials have ended")


class HyperSearch:
    """A search and where it stands.

    Args:
        search: checked.

    Raises:
        ConfigError: Optuna is missing, the space is wrong by itself or for the experiment, or there is no validation split.
    """

    def __init__(self, search: Search):
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError('a search needs Optuna, which is not installed: pip install "mmkt[search]"')
        self.search, self.folder = search, Path(search.run)
        self.space = space_of(search)
        self.task, self.metric, self.higher = judged(search)
        self.config = read(Experiment, search.experiment, search.settings)
        if self.config.data.validation is None:
            raise ConfigError([("data.validation", "is null: trials are judged on it, name a split")])
        self.split = self.config.data.validation
        problems: dict[tuple[str, str], None] = {}
        for name, one in self.space.items():
            for text in one.ends():
                try:
                    read(Experiment, search.experiment, [*search.settings, f"{name}={text}"])
                except ConfigError as error:
                    problems |= dict.fromkeys((f"space.{name}={text}", f"{path}: {words}") for path, words in error.problems)
        if problems:
            raise ConfigError(problems)

    def training(self, number: int, settings: Mapping[str, str]) -> Training:
        """A trial as an ordinary run, judged on validation alone."""
        own = [f"{name}={text}" for name, text in settings.items()]
        select = f"train.select={self.task}/{self.metric}"
        return Training(self.search.experiment, (*self.search.settings, *own, select, f"run={self.folder_of(number)}"))

    def folder_of(self, number: int) -> Path:
        """A trial's folder."""
        return self.folder / f"trial-{number:04d}"

    def open(self, reading: bool = False) -> Trials:
        """The trials on disk.

        Args:
            reading: write nothing: another process may be at work.

        Raises:
            ConfigError: the folder has a search of another space or experiment; or none, and it is to be read.
        """
        from mmkt.studies.search_optuna import Trials

        file, now = self.folder / "search.json", self._facts()
        if reading and not file.is_file():
            raise ConfigError(f"there is no search in {self.folder}: leave --report out to begin it, or give its run=FOLDER")
        if file.is_file():
            before = flat(read_json(file))
            differing = sorted(name for name in before | flat(now) if before.get(name) != flat(now).get(name))
            if differing:
                words = f"{self.folder} has a search with another {', '.join(differing[:5])}"
                raise ConfigError(f"{words}: continue it unchanged (trials alone may grow), or give run=OTHER")
        trials = Trials(self.folder, self.search, self.space, self.higher, reading=reading)
        if not file.is_file():
            write_json(file, now)
        return trials

    def _facts(self) -> dict:
        """What has to stay as it is: trials of other settings could not be compared."""
        own = ("seed", "startup", "pruning", "min_evaluations", "storage")
        search = {name: getattr(self.search, name) for name in own} | {"metric": f"{self.task}/{self.metric}"}
        experiment = self.config.settings()
        for name in ("run", "threads", "trackers"):  # of the machine
            del experiment[name]
        return json.loads(json.dumps(search | {"space": self.space, "experiment settings": experiment}))

    # ------------------------------------------------------------ carrying out

    def carry_out(self) -> None:
        """Train trials until there are as many as the search asks for; one that was cut off is continued.

        Raises:
            SearchStopped: by SIGTERM or Ctrl-C; what was trained is kept.
            ConfigError: the folder has another search, or one that is at work; or the first trial cannot be built.
        """
        join()
        with Stop(None) as stop, self._first() as trials:
            tally = Tally(self.search.trials, f"{self.metric} on {self.split}", self.higher, _ended(trials)) if trials else None
            while todo := distributed.from_first(trials.next() if trials else None):
                number, settings = todo
                if tally:
                    tally.begin(number, settings, _ended(trials))
                outcome = self._trial(number, settings, trials, stop)
                if trials and tally:
                    trials.tell(outcome)
                    tally.end(number, outcome, _ended(trials))
                done = distributed.from_first(len(_ended(trials)))
                if any(distributed.everyone(stop.asked)) and done < self.search.trials:
                    raise SearchStopped(done, self.search.trials)
            if tally:
                tally.twins(_ended(trials))

    def _trial(self, number: int, settings: Mapping[str, str], trials: Trials | None, stop: Stop) -> Outcome:
        """Carry out a trial."""
        judge = Judge(self.folder_of(number), f"{self.task}/{self.metric}", trials, stop)
        ended = distributed.from_first([one.outcome.state for one in _ended(trials)])
        try:
            config = self.training(number, settings).config()
            return carry_out(config, f"{self.task}/{self.metric}", judge, trained=bool(set(ended) - {"failed"}))
        except Stopped as stopped:
            within = f" in trial {number} at step {stopped.step} of {stopped.steps}, which is saved"
            raise SearchStopped(len(ended), self.search.trials, within) from None

    @contextmanager
    def _first(self) -> Iterator[Trials | None]:
        """The trials, on rank 0; every process raises what keeps them from being opened."""
        trials, problem, lock = None, None, None
        if distributed.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "search.lock").open("w")  # the system lets go of it however this process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                trials = self.open()
            except BlockingIOError:
                problem = f"another mmkt search is at work in {self.folder}: wait for it, stop it, or give run=OTHER"
            except ConfigError as error:
                problem = str(error)
        problem = distributed.from_first(problem)
        try:
            if problem:
                raise ConfigError(problem)
            yield trials
        finally:
            if lock:
                lock.close()


def _ended(trials: Trials | None) -> list[Ended]:
    """Those that have ended; on rank 0 alone."""
    return trials.ended() if trials else []
