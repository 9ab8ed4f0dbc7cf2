"""Stopping in good order: a time limit, SIGTERM, Ctrl-C."""

from __future__ import annotations

import re
import signal
import threading
import time
from typing import Any

from accelerate import Accelerator

from mmkt import distributed

RESUME_ME = 75  # the exit status EX_TEMPFAIL of sysexits.h: nothing is wrong, do it again (with --resume)
ECHO = 2.0  # seconds: a launcher passes on the Ctrl-C that the terminal has already sent to every process


class Stopped(Exception):
    """Training stopped when asked to; its state is saved."""

    def __init__(self, step: int, steps: int):
        super().__init__(f"stopped at step {step} of {steps}, and saved")
        self.step, self.steps = step, steps


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

    Args:
        accelerator: whose trigger is set.
        limit: seconds from now, or None.
    """

    def __init__(self, accelerator: Accelerator, limit: float | None = None):
        self.accelerator, self.interrupted = accelerator, 0.0
        self.timer = threading.Timer(limit, accelerator.set_trigger) if limit else None
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
        self.accelerator.set_trigger()
