"""Stopping in good order: a time limit, SIGTERM, Ctrl-C, or whoever listens to a training's figures."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from mmkt import distributed

RESUME_ME = 75  # the exit status EX_TEMPFAIL of sysexits.h: nothing is wrong, do it again (with --resume)
ECHO = 2.0  # seconds: a launcher passes on the Ctrl-C that the terminal has already sent to every process
Listener = Callable[[int, int, Mapping[str, float]], bool]
"""Is told the step, how many there are and what was logged, on rank 0; True stops the training."""


class Stopped(Exception):
    """Training stopped when asked to; its state is saved."""

    def __init__(self, step: int, steps: int):
        super().__init__(f"stopped at step {step} of {steps}, and saved")
        self.step, self.steps = step, steps
        self.asked = True  # by a signal or the time limit; False: by a listener alone


def seconds(text: str) -> float:
    """A duration such as ``3h30m``, ``90m``, ``45s`` or ``1:30:00``, in seconds.

    Raises:
        ValueError: for anything else, and for zero.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text) or re.fullmatch(r"(\d+):([0-5]?\d):([0-5]?\d)", text)
    total = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1))) if found else 0
    if not total:
        raise ValueError(f"--max-time takes 3h30m, 90m, 45s or 1:30:00, found {text!r}")
    return float(total)


class Stop:
    """While it is entered, SIGTERM, a first Ctrl-C and a time limit set the accelerator's trigger instead of ending the process.

    The loop asks ``accelerator.check_trigger()``, which all processes answer alike. A second Ctrl-C ends the process.
    ``asked`` says whether any of them came, to this process.

    Args:
        accelerator: whose trigger is set; None where there is no training yet: then ``asked`` is all there is.
        limit: seconds from now, or None.
    """

    def __init__(self, accelerator: Accelerator | None, limit: float | None = None):
        self.accelerator, self.interrupted, self.asked = accelerator, 0.0, False
        self.timer = threading.Timer(limit, self.ask) if limit else None
        if self.timer:
            self.timer.daemon = True
            self.timer.start()

    def __enter__(self) -> Stop:
        here = threading.current_thread() is threading.main_thread()  # Python takes signals nowhere else
        self.before = {number: signal.signal(number, self._asked) for number in (signal.SIGTERM, signal.SIGINT) if here}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.timer:
            self.timer.cancel()

    def _asked(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.interrupted and now - self.interrupted > ECHO:
            raise KeyboardInterrupt
        if number == signal.SIGINT and not self.interrupted:
            self.interrupted = now
            distributed.say("stopping at the next logged step; Ctrl-C again, after two seconds, ends it at once")
        self.ask()

    def ask(self) -> None:
        """Have training stop at the next logged step."""
        self.asked = True
        if self.accelerator is not None:
            self.accelerator.set_trigger()


class Ear(GeneralTracker):
    """Hands what is logged to a listener, and stops the training where that says so (rank 0, where trackers are told).

    Args:
        accelerator: whose trigger is set.
        listener: asked at every logged step and every evaluation.
        steps: of the whole training.
    """

    name, requires_logging_directory, tracker = "listener", False, None

    def __init__(self, accelerator: Accelerator, listener: Listener, steps: int):
        super().__init__()
        self.accelerator, self.listener, self.steps = accelerator, listener, steps

    def log(self, values: Mapping[str, float], step: int | None = None, **_: Any) -> None:
        """As Accelerate tells every tracker."""
        if step is not None and self.listener(step, self.steps, values):
            self.accelerator.set_trigger()
