"""Checkpoints averaged into one: soups, and what lies between a model's start and its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from mmkt import checkpoint, distributed
from mmkt.card import model_card
from mmkt.evaluate import feed_of, revived
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.model import Model, locate
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import predict
from mmkt.report import Sheet, number
from mmkt.run import environment, flat
from mmkt.selection import Judge, judge_of, judged
from mmkt.start import start

GRID = tuple(k / 10 for k in range(11))
Weights = dict[str, Tensor]


class Tried(NamedTuple):
    """A candidate and its figure on validation."""

    name: str
    value: float
    kept: bool


class Soup(NamedTuple):
    """What was averaged."""

    members: list[str]
    alpha: float | None  # share of the members' average; the rest is the model at its start
    measure: str
    value: float  # on validation
    tried: list[Tried]


class _Bench(NamedTuple):
    """A model that weights are tried in."""

    model: Model
    feed: Feed
    accelerator: Accelerator
    judge: Judge
    split: str

    def value(self, weights: Weights) -> float:
        """The figure on validation; every process has it."""
        checkpoint.load_strict(self.model, weights, Path("average"))
        how: Any = {"device": self.accelerator.device, "autocast": self.accelerator.autocast}
        return distributed.from_first(judged(predict(self.model, self.feed, self.feed.rows(self.split), **how), self.judge))

    def beats(self, one: float, two: float) -> bool:
        """Whether a figure is as good as another, or better."""
        return one >= two if self.judge.metric.higher_is_better else one <= two


def soup(
    paths: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    out: Path | str,
    greedy: bool = False,
    with_start: Sequence[float] | None = None,
    metric: str | None = None,
    plugins: Sequence[str] = (),
) -> Soup:
    """Average checkpoints' weights and write the average as a checkpoint; test is not read.

    All of them together (uniform soup), or each in its turn, the best on validation first, where it makes the average no
    worse (greedy soup; Wortsman et al., 2022, "Model soups"). Then, where asked for, the average between the model at its
    start and that soup (WiSE-FT; Wortsman et al., 2022, "Robust fine-tuning"), the share chosen on validation.

    Args:
        paths: checkpoints, folders or Hub ids, of one model.
        overrides: of ``data``, for validation.
        out: the folder written, which must not be there.
        greedy: a member enters where it does not harm.
        with_start: shares α of the fine-tuned weights that are tried, () for 0, 0.1 … 1; None: no start.
        metric: ``task/metric``; by default what the first one was chosen by (``train.select``).
        plugins: folders or packages that their parts may come from.

    Raises:
        ConfigError: they are not of one model, or there is nothing to choose by.
        CheckpointError: the folder is there already.
    """
    if len(paths) < 2 and with_start is None:
        raise ConfigError(f"an average takes two checkpoints or more, found {len(paths)}; one goes with --with-start")
    if any(not 0 <= alpha <= 1 for alpha in with_start or ()):
        raise ConfigError([("--with-start", f"shares lie between 0 and 1, found {', '.join(map(str, with_start or ()))}")])
    if distributed.from_first(Path(out).exists()):
        raise checkpoint.CheckpointError(f"{out} is there already: name a folder that is not, or remove it")
    accelerator, parts = Accelerator(), Parts(plugins)
    model, config, weights = _read(paths, overrides, parts, accelerator)
    bench = _bench(model, config, metric, parts, accelerator)
    found, mixed = _members(bench, weights, greedy)
    if with_start is not None:
        found, mixed = _with_start(bench, found, mixed, config, with_start or GRID)
    checkpoint.load_strict(model, mixed, Path(out))
    _write(model, config.model_copy(update={"run": str(out)}), Path(out), found)
    return found


def _read(
    paths: Sequence[str], overrides: Sequence[str], parts: Parts, accelerator: Accelerator
) -> tuple[Model, Experiment, dict[str, Weights]]:
    """The first model, and every one's tensors on the CPU, by path."""
    weights: dict[str, Weights] = {}
    for path in paths:
        if path in weights:
            raise ConfigError(f"{path} is named twice")
        model, config = revived(path, overrides, parts, accelerator, ("data",))
        if not weights:
            first, kept = model, config
        _refuse_other(paths[0], first, path, model)
        weights[path] = {name: x.detach().cpu().clone() for name, x in model.state_dict().items()}
    return first, kept, weights


def _refuse_other(one: str, first: Model, other: str, model: Model) -> None:
    """Refuse a checkpoint whose tensors mean something else.

    Raises:
        ConfigError: so it is, or the two did not begin at one point.
    """
    assert first.config is not None
    assert model.config is not None
    before, now = (flat(m.config.model.model_dump()) for m in (first, model) if m.config)
    names = [name for name in before | now if before.get(name) != now.get(name) and name != "start"]
    if names:
        raise ConfigError(f"{one} and {other} are other models: they differ in {', '.join(f'model.{n}' for n in names[:5])}")
    if _meaning(first.vocabularies) != _meaning(model.vocabularies):
        raise ConfigError(f"{one} and {other} have learned other classes or columns: an average is of one and the same question")
    shapes = [{name: x.shape for name, x in m.state_dict().items()} for m in (first, model)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"{one} and {other} have other tensors: were both made by this version of mmkt?")
    origins = [(m.config.model.start, m.config.seed) for m in (first, model) if m.config]
    if origins[0] != origins[1] and not _is_whole(origins, model):
        places = [f"{begun + ' and ' if begun else ''}the seed {seed}" for begun, seed in origins]
        raise ConfigError(
            f"{one} began at {places[0]}, {other} at {places[1]}: weights that were drawn apart have no average worth having. "
            "Train them from one checkpoint of all parts (model.start), or with one seed and other settings; mmkt ensemble lets "
            "them answer together as they are"
        )


def _is_whole(origins: Sequence[tuple[str | None, int]], model: Model) -> bool:
    """Whether two models took every weight from one checkpoint, so that their seeds drew nothing."""
    begun = {path for path, _ in origins}
    if len(begun) > 1 or None in begun:
        return False
    there = checkpoint.read_tensors(locate(str(begun.pop())) / "model.safetensors")
    return all(name in there and there[name].shape == x.shape for name, x in model.state_dict().items())


def _meaning(vocabularies: Mapping[str, Any]) -> str:
    """Without how often classes occurred in training, and without what calibration fitted."""
    left = ("counts", "rows", "calibration")
    kept = {k: {n: x for n, x in v.items() if n not in left} if isinstance(v, dict) else v for k, v in vocabularies.items()}
    return json.dumps(kept, sort_keys=True, default=str)


def _bench(model: Model, config: Experiment, metric: str | None, parts: Parts, accelerator: Accelerator) -> _Bench:
    if config.data.validation is None:
        raise ConfigError([("data.validation", "is null, so there is nothing to choose on: name a split (data.validation=…)")])
    for head in model.heads.values():
        head.vocabulary.pop("calibration", None)  # of one model's probabilities; the average's are others
    judge = judge_of(model, metric or config.train.select, where="--metric")
    if judge is None:
        raise ConfigError([("--metric", "the loss is not measured here: give --metric TASK/METRIC")])
    feed, _ = feed_of(model, config, [config.data.validation], parts)
    return _Bench(model, feed, accelerator, judge, config.data.validation)


def mean(members: Sequence[Weights], shares: Sequence[float] | None = None) -> Weights:
    """The weighted mean, in float64, so that what is equal in all stays as it is to the bit; counters are the first one's."""
    shares = shares or [1 / len(members)] * len(members)

    def of(name: str) -> Tensor:
        xs = [one[name] for one in members]
        if not xs[0].is_floating_point() or all(torch.equal(xs[0], x) for x in xs[1:]):
            return xs[0]
        return sum((share * x.double() for share, x in zip(shares, xs)), torch.zeros((), dtype=torch.float64)).to(xs[0].dtype)

    return {name: of(name) for name in members[0]}


def _members(bench: _Bench, weights: Mapping[str, Weights], greedy: bool) -> tuple[Soup, Weights]:
    """The soup of some checkpoints."""
    measure = f"{bench.judge.task}/{bench.judge.name}"
    alone = {path: bench.value(one) for path, one in weights.items()}
    order = sorted(alone, key=alone.__getitem__, reverse=bench.judge.metric.higher_is_better)
    kept, value = order[:1], alone[order[0]]
    tried = [Tried(path, x, not greedy or path in kept) for path, x in alone.items()]
    if not greedy:
        kept = list(weights)
        value = bench.value(mean([weights[path] for path in kept])) if len(kept) > 1 else value
        if len(kept) > 1:
            tried.append(Tried(f"the average of {len(kept)}", value, True))
    for path in order[1:] if greedy else ():
        now = bench.value(mean([weights[name] for name in (*kept, path)]))
        better = bench.beats(now, value)
        tried.append(Tried(f"the average of {len(kept) + 1}, with {path}", now, better))
        kept, value = ([*kept, path], now) if better else (kept, value)
    return Soup(kept, None, measure, value, tried), mean([weights[path] for path in kept])


def _with_start(bench: _Bench, found: Soup, end: Weights, config: Experiment, grid: Sequence[float]) -> tuple[Soup, Weights]:
    """The best point between a model's start and its end; of equals the one with the larger share of the end."""
    model = bench.model
    began = Model.as_drawn(config, model.vocabularies, model.plugins)
    if config.model.start is not None:
        start(began, config.model.start)
    origin = {name: x.detach() for name, x in began.state_dict().items()}
    values = {alpha: bench.value(mean([end, origin], [alpha, 1 - alpha])) for alpha in sorted(set(grid))}
    best = next(iter(values))
    for alpha, value in values.items():
        best = alpha if bench.beats(value, values[best]) else best
    tried = [Tried(f"α = {alpha:g}", value, alpha == best) for alpha, value in values.items()]
    mixed = mean([end, origin], [best, 1 - best])
    return found._replace(alpha=best, value=values[best], tried=[*found.tried, *tried]), mixed


def _write(model: Model, config: Experiment, out: Path, found: Soup) -> None:
    """The checkpoint, its card, and ``average.json``: what is in it."""
    model.config = config
    model.save_pretrained(out, model_card(model, [], environment()))
    if distributed.rank() == 0:
        checkpoint.write_json(out / "average.json", as_json(found))
    distributed.wait()


def as_json(found: Soup) -> dict[str, Any]:
    """Plain data."""
    return found._asdict() | {"tried": [one._asdict() for one in found.tried]}


def sheet(found: Soup, split: str = "validation") -> Sheet:
    """What is printed."""
    rows = [[one.name, "kept" if one.kept else "", number(one.value)] for one in found.tried]
    share = "" if found.alpha is None else f", {found.alpha:g} of it and {1 - found.alpha:g} of the start"
    notes = [f"written: the average of {len(found.members)}{share}; {found.measure} {number(found.value)} on {split}"]
    return Sheet(f"{found.measure} on {split}", ["weights", "", found.measure], rows, notes, 2)
