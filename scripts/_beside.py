"""Two runners of the same training side by side: each in a process of its own, in turns, the ratio taken within a pair."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mmkt.telemetry import peak_memory

EVERY = 10  # steps: each side logs so often; the clock starts after the first line, so that logging counts as training has it


class Clock:
    """Told after every step; the first ``EVERY`` are not counted.

    Args:
        own: of a CPU, count this process's own time on it: on a machine that others use, the wall's says what they do.
    """

    def __init__(self, own: bool = False) -> None:
        self.now = time.process_time if own else time.perf_counter
        self.marks: list[float] = []
        self.beforehand = 0.0  # seconds a step of what was done before the first

    def tick(self) -> None:
        """A step is over."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(self.now())

    def seconds(self) -> float:
        """The mean step."""
        counted = self.marks[EVERY - 1 :]
        return self.beforehand + (counted[-1] - counted[0]) / (len(counted) - 1)


def say(clock: Clock, rows: int, losses: Sequence[float]) -> None:
    """Print what one side found, as the last line of its output.

    Args:
        clock: its steps.
        rows: of a step.
        losses: the mean of every ``EVERY`` steps.
    """
    seconds = clock.seconds()
    print(json.dumps({"ms": 1e3 * seconds, "rows/s": rows / seconds, "GB": peak_memory() / 1e9, "losses": list(losses)}))


def heard(command: Sequence[str]) -> dict[str, Any]:
    """What one side says.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(ours: Sequence[str], theirs: Sequence[str], name: str, pairs: int, hear: Callable[..., Any] = heard) -> None:
    """Run both sides in turns and print a line a pair, then the medians and both loss curves.

    Args:
        ours: the command of mmkt's side.
        theirs: that of the other.
        name: of the other.
        pairs: how many.
        hear: runs a command.
    """
    found: list[tuple[dict, dict]] = []
    for k in range(pairs):
        # who goes first changes, so that a machine that gets warm or busy favours neither
        one, two = (hear(ours), hear(theirs)) if k % 2 == 0 else reversed((hear(theirs), hear(ours)))
        found.append((one, two))
        print(line(f"pair {k}", one, two, name), flush=True)
    ratio = statistics.median(one["rows/s"] / two["rows/s"] for one, two in found)
    memory = statistics.median(one["GB"] / two["GB"] for one, two in found)
    print(f"mmkt over {name}: {ratio:.3f} times the rows a second, {memory:.3f} times the peak memory (medians of {pairs} pairs)")
    one, two = (side["losses"] for side in found[-1])
    for k, (own, other) in enumerate(zip(one, two, strict=True)):
        print(f"mean loss of steps {k * EVERY + 1} to {(k + 1) * EVERY}: mmkt {own:.4f}, {name} {other:.4f}")


def line(what: str, one: dict, two: dict, name: str) -> str:
    """Both sides of a pair."""
    sides = [
        f"{who} {x['ms']:.1f} ms a step, {x['rows/s']:.1f} rows/s, {x['GB']:.2f} GB" for who, x in (("mmkt", one), (name, two))
    ]
    return f"{what}: {'; '.join(sides)}; {one['rows/s'] / two['rows/s']:.3f} times the rows/s"


def drop_nothing(module: torch.nn.Module) -> None:
    """Set every dropout of a module to zero: the two sides would draw differently."""
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0


def ticking(batches: Iterator[Any], clock: Clock) -> Iterator[Any]:
    """The same batches; a step is over when the next one is asked for."""
    for batch in batches:
        yield batch
        clock.tick()


def main(script: str, words: str | None, sides: Sequence[Callable[..., None]], name: str, manifest: str, **counts: int) -> None:
    """Run one side, or both in turns, as the command line says.

    Args:
        script: its file.
        words: its docstring.
        sides: mmkt's and the other's, each given the options.
        name: of the other.
        manifest: the rows, where none are named.
        counts: further options, with what they are by default; ``pairs`` is one.
    """
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=["ours", "theirs"], help="one side alone (what each process is given)")
    parser.add_argument("--python", default=sys.executable, help="of the environment that has both; both sides run in it")
    parser.add_argument("--manifest", default=manifest)
    for option, value in counts.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--own-time", action="store_true", help="the process's own time on the CPU, on a machine that others use")
    options = parser.parse_args()
    if options.steps < 2 * EVERY or options.steps % EVERY:
        parser.error(
            f"--steps: {options.steps} is not a multiple of {EVERY} from {2 * EVERY} on: both sides log every {EVERY} steps"
        )
    if options.side:
        sides[options.side == "theirs"](options)
        return
    common = ["--manifest", options.manifest, *(f"--{n}={getattr(options, n)}" for n in counts if n != "pairs")]
    common += ["--own-time"] if options.own_time else []
    one, two = ([options.python, script, "--side", side, *common] for side in ("ours", "theirs"))
    compare(one, two, name, options.pairs)
