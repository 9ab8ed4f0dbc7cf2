"""A few steps of a training, looked at closely: a trace for a browser, a table of the operations that take longest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import profiler

from mmkt import distributed
from mmkt.experiment import Window

OPERATIONS = 30  # lines of the table


class Profile:
    """While it is entered, writes the steps of a window to ``rank-R.json.gz`` (chrome://tracing) and ``rank-R.txt``.

    Args:
        window: which steps, counted from the first that this process makes; None for none.
        folder: where to.
    """

    def __init__(self, window: Window | None, folder: Path):
        self.window, self.folder, self.written = window, folder, False
        self.profiler: Any = None
        if window is not None:
            # the step before is the warm-up: the profiler's own start is not part of what it shows
            turns = profiler.schedule(wait=window.start - 1, warmup=1, active=window.steps, repeat=1)
            self.profiler = profiler.profile(schedule=turns, on_trace_ready=self._write, acc_events=True)

    def __enter__(self) -> Profile:
        if self.profiler is not None:
            self.profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.profiler is None or self.window is None:
            return
        self.profiler.__exit__(*error)
        if not self.written:
            distributed.say(
                f"nothing was profiled: training ended before step {self.window.start + 1}; lower train.profile.start"
            )

    def step(self) -> None:
        """After each step."""
        if self.profiler is not None:
            self.profiler.step()

    def _write(self, found: Any) -> None:
        """The window's end, or the training's, where that comes first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"rank-{distributed.rank()}"
        found.export_chrome_trace(f"{file}.json.gz")
        devices = {"cuda", "cpu"} & {str(activity).rpartition(".")[2].lower() for activity in found.activities}
        by = f"self_{'cuda' if 'cuda' in devices else 'cpu'}_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=OPERATIONS)
        file.with_suffix(".txt").write_text(f"{table}\n", encoding="utf-8")
        self.written = True
        distributed.say(f"profiled: {file}.json.gz (open it in chrome://tracing or ui.perfetto.dev), {file}.txt")
