"""What the files of studies may say: a transfer study's, an ablation's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mmkt.config import FORMAT, Section
from mmkt.experiment import Count, Name

Rate = Annotated[float, Field(gt=0)]
Portion = Annotated[float, Field(gt=0, le=1)]


class GridOf(Section):
    """Sources × methods, each with its own learning rate, over seeds and shares of the labels."""

    sources: list[Name] = []
    """By default all of the study's."""
    methods: list[Name] = []
    lr: Annotated[list[Rate], Field(min_length=1)]
    """Rates, of which each cell takes the one that is best on validation with the first seed."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2, 3, 4]
    """Fewer than five make a sighting, not a result."""
    fractions: Annotated[list[Portion], Field(min_length=1)] = [1.0]
    """Of the training rows."""


class TextsOf(Section):
    """What a text-pretrained body knows, as labelled texts: what ``mmkt transferability`` measures the target's distance from."""

    manifest: str
    column: str = "text"
    label: str = "label"


class Study(Section):
    """What a text-pretrained body is worth on a target: the same training from several sources."""

    format: int = FORMAT
    experiment: str
    """The experiment file that every run starts from."""
    settings: list[str] = []
    """``key=value``, of every run."""
    run: str = "checkpoints/transfer"
    """The study's folder."""
    sources: Annotated[dict[Name, list[str]], Field(min_length=1)]
    """What is carried over: name → ``key=value`` of those runs."""
    methods: Annotated[dict[Name, list[str]], Field(min_length=1)] = {"full": []}
    """How: name → ``key=value``."""
    grids: Annotated[list[GridOf], Field(min_length=1)]
    by: str | None = None
    """The column of classes of which fractions keep their share."""
    pretrained: Name = "pretrained"
    """The source whose gain is asked for."""
    baseline: Name = "random"
    """The source that it is compared with."""
    metric: str | None = None
    """``task/metric``; by default the first head's first metric."""
    thresholds: list[float] = []
    """Values on validation: after how many steps is each one reached?"""
    lr: Rate | None = None
    """One rate of the grids at which every seed is run too: the comparison without a sweep."""
    resamples: Count = 10_000
    """Of the hierarchical bootstrap."""
    source_rows: TextsOf | None = None
    """For distances between source and target (``mmkt transferability``); training does not read them."""


class Ablation(Section):
    """The same training with one thing after another exchanged: fusions, or any other settings."""

    format: int = FORMAT
    experiment: str
    """The experiment file that every run starts from."""
    settings: list[str] = []
    """``key=value``, of every run."""
    run: str = "checkpoints/ablation"
    """The study's folder."""
    encoders: str = "as-is"
    """Where they come from, frozen in every run: ``as-is`` (as the experiment builds them), ``alone`` (each modality is first
    trained by itself, so that none favours a fusion), or a checkpoint. ``trained``: they train in every run instead."""
    alone: list[str] = []
    """``key=value`` of the trainings of ``encoders: alone``, laid over ``settings`` (augmentation, a longer training)."""
    features: str = "checkpoints/features"
    """The cache of what frozen encoders make of rows (see ``data.features``)."""
    factors: Annotated[dict[str, list[Any] | dict[str, list[str]]], Field(min_length=1)]
    """What is exchanged, every combination of it: a dotted setting → its values (``model.fusion: [concat, gated]``), or any
    name → labels, each with its ``key=value`` (``fusion: {frozen: [model.fusion=concat, ...]}``)."""
    data: dict[Name, list[str]] = {}
    """Data sets: name → ``key=value`` (``data.manifest=…``); by default the experiment's alone."""
    modalities: list[Annotated[list[Name], Field(min_length=1)]] = []
    """Sets of modalities that every cell is trained with; by default all of the experiment's."""
    lr: Annotated[list[Rate], Field(min_length=1)]
    """Rates, of which each cell takes the one that is best on validation, in the mean over seeds."""
    rates: dict[str, Annotated[list[Rate], Field(min_length=1)]] = {}
    """A label → rates of its own."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2, 3, 4]
    """Fewer than five make a sighting, not a result; fewer than two leave no interval."""
    baseline: str | None = None
    """The label that all others are compared with; by default the first one."""
    ensembles: dict[Name, Annotated[list[str], Field(min_length=2)]] = {}
    """Lines of the table that need no training: a name → labels whose answers are averaged, seed by seed."""
    match: str | None = None
    """A setting, such as ``model.dim``, chosen for each cell so that its trained parameters are as many as the baseline's."""
    metric: str | None = None
    """``task/metric``; by default the first head's first metric."""
    subsets: bool = True
    """Every subset of the modalities in test, with the same weights."""
    intervals: bool = True
    """95 % intervals and verdicts, which take two seeds or more; false shows means alone."""
    resamples: Count = 10_000
    """Of the hierarchical bootstrap."""
