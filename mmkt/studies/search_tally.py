"""What a search says while it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmkt.studies.search_trial import Ended, Outcome, ranked


class Tally:
    """A line a trial, the best one so far, a bar with the time left; on standard error of rank 0.

    Args:
        total: trials asked for.
        words: what the values are of.
        higher: whether higher is better.
        ended: trials that earlier calls of the same command have carried out.
    """

    def __init__(self, total: int, words: str, higher: bool, ended: Sequence[Ended]):
        self.total, self.words, self.higher = total, words, higher
        self.known = {one.number for one in ended}
        self.console, self.since, self.done = Console(stderr=True), time.monotonic(), 0

    def begin(self, number: int, settings: Mapping[str, str], ended: Sequence[Ended]) -> None:
        """A trial's number and settings, after those that need no training."""
        self.twins(ended)
        self._say(f"trial {number}: {' '.join(f'{name}={text}' for name, text in settings.items())}")

    def twins(self, ended: Sequence[Ended]) -> None:
        """Trials that have ended without a training of their own."""
        for one in ended:
            if one.twin is not None and one.number not in self.known:
                self._say(f"trial {one.number}: the settings of trial {one.twin}, so its value too")
        self.known |= {one.number for one in ended}

    def end(self, number: int, outcome: Outcome, ended: Sequence[Ended]) -> None:
        """How a trial ended, the best one so far, how many are left and about how long they take."""
        self.done += 1
        value = f"{outcome.value:.4f} ({self.words})"
        said = {"complete": value, "pruned": "pruned", "failed": f"failed: {outcome.why}"}[outcome.state]
        best = ranked(ended, self.higher)
        so_far = f"; best so far {best[0].outcome.value:.4f}, trial {best[0].number}" if best else ""
        self._say(f"trial {number}: {said}{so_far}")
        left = (time.monotonic() - self.since) / self.done * (self.total - len(ended))
        bar = Progress(BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}"), console=self.console)
        bar.add_task(f"trials, about {_time(left)} left", total=self.total, completed=len(ended))
        self.console.print(bar.get_renderable())  # not live: the training's own bar is

    def _say(self, words: str) -> None:
        self.console.print(words, highlight=False, markup=False)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
