"""The learning-rate range test: the loss while the rate grows, and the rate that it speaks for."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from accelerate import Accelerator
from matplotlib.figure import Figure

from mmkt import checkpoint, distributed, optim
from mmkt.experiment import Experiment, Train
from mmkt.launch import Setup, built_to_rest
from mmkt.launcher import refuse_apart, refuse_sharding, say_if_whole
from mmkt.parts import ConfigError, nearest
from mmkt.planning import spare_memory
from mmkt.plots import COLOURS, STYLE
from mmkt.report import Sheet, number
from mmkt.run import Run
from mmkt.stop import Ear, Stopped
from mmkt.telemetry import NotFinite
from mmkt.train import fit
from mmkt.types import Phase
from mmkt.workshop import Workshop

KEPT = 0.9  # of the smoothed loss at a step
WORSE = 3.0  # times its lowest value above that: it diverges (four times as high, as in fastai)
CAREFUL = 0.1  # of the rate at which the loss was lowest
SETTLED = 5  # steps after which the smoothed loss says something
FEWEST = 20  # steps of a curve


class Range(NamedTuple):
    """What a range test found."""

    phase: str
    rates: list[float]  # by step
    losses: list[float]
    smoothed: list[float]
    diverged: bool
    careful: float  # a tenth of the lowest loss's rate
    suggested: float  # the rate at which the smoothed loss fell most with the logarithm of the rate
    lowest: float  # … at which it was lowest


def find_lr(
    config: Experiment,
    out: Path | str = "checkpoints/find-lr",
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    phase: str | None = None,
) -> Range:
    """Train on the batches that training would see, at a rate that grows exponentially, until the loss diverges (Smith, 2017).

    Rows that validate or test are not read, nor is anything left in the run's folder.

    Args:
        config: the experiment.
        out: a folder; ``lr.json`` and ``lr.png`` go there.
        low: the first rate.
        high: the last rate.
        steps: how many.
        phase: of the transfer strategy; by default its last one, in which most trains.

    Raises:
        ConfigError: rates or steps that can't be, no such phase, or what training would refuse.
    """
    if not 0 < low < high:
        raise ConfigError([("--from", f"has to be above zero and below --to, found --from {low:g} --to {high:g}")])
    if steps < FEWEST:
        raise ConfigError([("--steps", f"a curve takes {FEWEST} or more, found {steps}")])
    refuse_sharding()
    config = _growing(config, low, high, steps)
    names = [stream.split for stream in config.data.streams.values()] or [config.data.train]
    setup, plan, accelerator = built_to_rest(config, Workshop(), sorted(set(names)))
    refuse_apart(accelerator)
    say_if_whole(accelerator)
    chosen = _chosen(plan, phase)._replace(steps=steps, until=None)
    spare_memory(setup.learner, [chosen], config, accelerator)
    losses = distributed.from_first(_losses(setup, config, chosen, accelerator, Path(out)))
    rates = [config.train.lr * optim.share(step, steps, config.train) for step in range(steps)]
    found = judged(chosen.name, rates, losses)
    if distributed.rank() == 0:
        write(found, Path(out))
    distributed.wait()
    return found


def _growing(config: Experiment, low: float, high: float, steps: int) -> Experiment:
    """The experiment with that schedule, which evaluates nothing."""
    train = {
        "epochs": None,
        "steps": steps,
        "lr": low,
        "schedule": "exponential",
        "lr_end": (high / low) ** (steps / (steps - 1)),  # so that the last step has the rate ``high``
        "warmup": 0.0,
        "log_every": 1,
        "average": None,
        "decay": Train().decay,
        "save_every": steps,
        "profile": None,
    }
    data = config.data.model_copy(update={"validation": None})
    evaluate = config.evaluate.model_copy(update={"split": config.data.train})  # none is evaluated, and no other read
    return config.model_copy(update={"train": config.train.model_copy(update=train), "data": data, "evaluate": evaluate})


def _chosen(plan: Sequence[Phase], name: str | None) -> Phase:
    names = {phase.name: phase for phase in plan}
    if name is not None and name not in names:
        raise ConfigError([("--phase", f"there is no phase {name!r}{nearest(name, names)}; allowed: {', '.join(names)}")])
    return plan[-1] if name is None else names[name]


def _losses(setup: Setup, config: Experiment, phase: Phase, accelerator: Accelerator, out: Path) -> list[float]:
    """The loss of each step up to divergence, on rank 0."""
    losses: list[float] = []

    def listen(_: int, __: int, values: Mapping[str, float]) -> bool:
        losses.append(values["loss"])
        return diverges(smooth(losses))

    folder = out / "run"  # what the loop leaves is of no use to anyone
    if distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    distributed.wait()
    accelerator.trackers.append(Ear(accelerator, listen, config.train.steps or 0))
    try:
        run = Run(folder, config, "")
        fit(setup.learner, setup.feed, [phase], run, accelerator, config.train, seed=config.seed)
    except (Stopped, NotFinite):  # it diverged: that is what was looked for
        pass
    finally:
        accelerator.trackers.pop()
        distributed.wait()
        if distributed.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    return losses


def smooth(losses: Sequence[float]) -> list[float]:
    """An exponential moving average without the bias towards zero that it would begin with."""
    found, mean = [], 0.0
    for k, loss in enumerate(losses, 1):
        mean = KEPT * mean + (1 - KEPT) * loss
        found.append(mean / (1 - KEPT**k))
    return found


def diverges(smoothed: Sequence[float]) -> bool:
    """Whether the last of some smoothed losses is far above their lowest."""
    lowest = min(smoothed)
    return not math.isfinite(smoothed[-1]) or (len(smoothed) > SETTLED and smoothed[-1] > lowest + WORSE * abs(lowest))


def judged(phase: str, rates: Sequence[float], losses: Sequence[float]) -> Range:
    """The rates that a curve speaks for; a loss for every rate, or for the first ones where it diverged.

    Suggested is where the loss falls most steeply, before it is lowest. The other usual choice, a tenth of the lowest loss's
    rate, lay nearly a decade below the best rates of a sweep (RESULTS.md); it is given as the careful one.

    Raises:
        ConfigError: the loss was no lower at any rate than at the first ones.
    """
    smoothed = smooth(losses)
    lowest = SETTLED + int(np.argmin(smoothed[SETTLED:])) if len(smoothed) > SETTLED else 0
    if lowest <= SETTLED:
        span = f"{rates[0]:g} to {rates[max(0, len(losses) - 1)]:g} ({len(losses)} steps)"
        words = f"the loss was lowest at the first rates of {span}: give a lower --from, or where it just stays a higher --to"
        raise ConfigError([("--from", words)])
    diverged, rates = len(losses) < len(rates) or diverges(smoothed), list(rates[: len(losses)])
    slopes = np.gradient(np.array(smoothed), np.log(rates))[SETTLED : lowest + 1]
    steepest = SETTLED + int(np.argmin(slopes))
    careful, suggested = (float(f"{rate:.1e}") for rate in (CAREFUL * rates[lowest], rates[steepest]))  # as they are typed
    return Range(phase, rates, list(losses), smoothed, diverged, careful, suggested, rates[lowest])


def write(found: Range, folder: Path) -> None:
    """``lr.json`` with everything, and ``lr.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(folder / "lr.json", as_json(found))
    with mpl.rc_context(STYLE):
        plot(found).savefig(folder / "lr.png", dpi=150, bbox_inches="tight")


def as_json(found: Range) -> dict[str, Any]:
    """Plain data; what is not a finite number is null, which JSON requires."""
    curves = {n: [x if math.isfinite(x) else None for x in getattr(found, n)] for n in ("losses", "smoothed")}
    return found._asdict() | curves


def plot(found: Range) -> Figure:
    """The loss over the rate, with the three rates marked."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color=COLOURS[5], linewidth=0.8, label="loss")
    axes.plot(found.rates, found.smoothed, color=COLOURS[0], label="smoothed")
    for name, colour in (("careful", COLOURS[2]), ("suggested", COLOURS[1]), ("lowest", COLOURS[3])):
        axes.axvline(getattr(found, name), color=colour, linestyle="--", linewidth=1, label=f"{name}: {getattr(found, name):.1e}")
    low, begun = min(found.losses), max(found.losses[: SETTLED + 1])
    axes.set_ylim(low - 0.1 * (begun - low), begun + 0.5 * (begun - low))  # what diverges leaves the picture
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=f"range test, phase {found.phase}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def sheet(found: Range, words: str) -> Sheet:
    """What is printed; ``words`` is what to type before the rate."""
    at = {
        "careful": "a tenth of the lowest loss's rate",
        "suggested": "the loss falls most here",
        "lowest": "the loss is lowest here",
    }
    rows = [[name, why, f"{getattr(found, name):.1e}", number(_at(found, getattr(found, name)))] for name, why in at.items()]
    end = "the loss diverged" if found.diverged else "it did not diverge: --to may be higher"
    notes = [f"phase {found.phase}, {len(found.rates)} steps from {found.rates[0]:.1e} to {found.rates[-1]:.1e}; {end}"]
    return Sheet("range test", ["rate", "", "train.lr", "loss"], rows, [*notes, f"{words} train.lr={found.suggested:.1e}"], 2)


def _at(found: Range, rate: float) -> float:
    """The smoothed loss at the step whose rate is nearest."""
    return found.smoothed[int(np.argmin(np.abs(np.log(found.rates) - math.log(rate))))]
