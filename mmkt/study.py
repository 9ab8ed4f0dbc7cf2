"""What a transfer study's file may say."""

from __future__ import annotations

from typing import Annotated

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
