"""The trials of a search: what Optuna proposes, prunes and remembers. The only file that knows Optuna; rank 0 alone opens it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from mmkt.config import written
from mmkt.search_file import Choices, Range, Search
from mmkt.studies.search_trial import Ended, Outcome

FEW = 10  # complete trials below which a forest says nothing of what matters
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
FILES = {"journal": "trials.journal", "sqlite": "trials.db"}


class Trials:
    """A search's trials, on disk in its folder.

    The sampler is made anew for every trial from its seed and the trial's number, and sees the trials before it: so what
    a search proposes does not depend on where it was stopped. It sees all of them; Optuna would show it those of the
    trial's Hyperband bracket alone, of which a search of thirty has too few to learn from.

    Args:
        folder: the search's.
        search: its seed, its startup, its pruning, its storage.
        space: what is searched.
        higher: whether higher is better.
        reading: write nothing: another process may be at work.
    """

    def __init__(
        self, folder: Path, search: Search, space: Mapping[str, Choices | Range], higher: bool, *, reading: bool = False
    ):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.search, self.space = search, space
        file = folder / FILES[search.storage]
        if search.storage == "journal" and file.is_file() and not reading:
            _mend(file)
        storage: BaseStorage = (
            RDBStorage(f"sqlite:///{file.resolve()}")
            if search.storage == "sqlite"
            else JournalStorage(JournalFileBackend(str(file)))
        )
        direction = StudyDirection.MAXIMIZE if higher else StudyDirection.MINIMIZE
        # the name decides which bracket a trial falls into: it is not the folder's, so that a copy gives the same
        make = partial(optuna.create_study, direction=direction, load_if_exists=True)
        self.study = (optuna.load_study if reading else make)(study_name="search", storage=storage)
        self.running: Trial | None = None

    def next(self) -> tuple[int, dict[str, str]] | None:
        """A trial to train: its number and its settings as they are typed; None where all have ended.

        First the one that was cut off. One of the same settings as an earlier one ends as that did.
        """
        while len(self.ended()) < self.search.trials:
            trial = self._ask()
            settings = {name: _suggested(trial, name, one) for name, one in self.space.items()}
            twin = next((t for t in self._finished() if t.params == trial.params and "twin" not in t.user_attrs), None)
            if twin is None:
                self.running = trial
                return trial.number, settings
            self._follow(trial, twin)
        return None

    def _ask(self) -> Trial:
        cut_off = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        number = cut_off[0].number if cut_off else len(self.study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence((self.search.seed, number)).generate_state(1)[0])
        self.study.sampler = TPESampler(seed=seed, n_startup_trials=self.search.startup)
        self.study.pruner = NopPruner()  # under Hyperband's the sampler would be shown one bracket
        return Trial(self.study, cut_off[0]._trial_id) if cut_off else self.study.ask()

    def _follow(self, trial: Trial, twin: FrozenTrial) -> None:
        trial.set_user_attr("twin", twin.number)
        self.running = trial
        for k, value in twin.intermediate_values.items():
            self._report(trial, k, value)
        self.tell(_outcome(twin))

    def hopeless(self, k: int, value: float, every: int) -> bool:
        """Note the value of the running trial's k-th evaluation (from 1); whether it should stop there.

        Args:
            k: which one.
            value: on validation.
            every: how many the trial would have.
        """
        trial = self.running
        assert trial is not None, "a trial was asked for"
        self._report(trial, k, value)
        if not self.search.pruning:
            return False
        if "evaluations" not in self.study.user_attrs:
            self.study.set_user_attr("evaluations", every)
        most = self.evaluations
        if most is None or most <= self.search.min_evaluations:
            return False
        self.study.pruner = HyperbandPruner(min_resource=self.search.min_evaluations, max_resource=most)
        return trial.should_prune()

    def _report(self, trial: Trial, k: int, value: float) -> None:
        if k not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:  # one resumed evaluates some again
            trial.report(value, k)

    def tell(self, outcome: Outcome) -> None:
        """How the running trial ended."""
        assert self.running is not None, "a trial was asked for"
        states = {name: state for state, name in STATES.items()}
        if outcome.why:
            self.running.set_user_attr("why", outcome.why)
        values = outcome.value if outcome.state == "complete" else None
        self.study.tell(self.running, values, states[outcome.state])
        self.running = None

    def _finished(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=tuple(STATES))

    def ended(self) -> list[Ended]:
        """Those that have ended, in their order."""
        return [
            Ended(t.number, _outcome(t), dict(t.params), len(t.intermediate_values), t.user_attrs.get("twin"))
            for t in self._finished()
        ]

    @property
    def evaluations(self) -> int | None:
        """How many a trial has that is not pruned, as the first one told."""
        return self.study.user_attrs.get("evaluations")

    def importance(self) -> dict[str, float] | str:
        """How much of the differences between complete trials each setting accounts for; or why that cannot be said."""
        complete = [one for one in self.ended() if one.outcome.state == "complete" and one.twin is None]
        if len(complete) < FEW:
            return f"{len(complete)} trials trained to the end, and it takes {FEW} to tell which settings matter"
        varied = [name for name in self.space if len({json.dumps(one.settings[name]) for one in complete}) > 1]
        if not varied:
            return "no setting has two values among the trials that trained to the end"
        if len({one.outcome.value for one in complete}) < 2:
            return "all trials that trained to the end have the same value"
        return get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=0), params=varied)


def _outcome(trial: FrozenTrial) -> Outcome:
    value = math.nan if trial.values is None else float(trial.values[0])
    return Outcome(STATES[trial.state], value, trial.user_attrs.get("why", ""))


def _suggested(trial: Trial, name: str, one: Choices | Range) -> str:
    """What is proposed, as it is typed; the same again where that was asked before."""
    if isinstance(one, Choices):
        return trial.suggest_categorical(name, one.labels)
    if one.whole:
        return written(trial.suggest_int(name, int(one.low), int(one.high), step=int(one.step or 1), log=one.log))
    return written(trial.suggest_float(name, one.low, one.high, step=one.step, log=one.log))


def _mend(file: Path) -> None:
    """Cut off a last line that a full disk or a power cut left half written: with more after it, none could be read again."""
    data = file.read_bytes()
    if data and not data.endswith(b"\n"):
        with file.open("r+b") as stream:
            stream.truncate(data.rfind(b"\n") + 1)
    file.with_name(file.name + ".lock").unlink(missing_ok=True)  # of a killed process: the search's own lock is held by now
