"""An evaluation as one page: tables, plots, examples to look at and to listen to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch

from mmkt import across, evaluation_plots, exhibit, page, report, retrieval
from mmkt.asked import Plan, same_cells
from mmkt.attacked import Example
from mmkt.feed import Feed
from mmkt.parts import Parts
from mmkt.subsets import name_of
from mmkt.types import Predictions, Row
from mmkt.vectors import unit_vectors

QUERIES, ANSWERS, DIRECTIONS = 3, 3, 12  # of retrieval that are shown
MISTAKES = 12  # a task
TITLES = {
    "subsets": "With some of the modalities",
    "missing": "Where modalities go missing",
    "corruptions": "Under corruption",
    "attacks": "Under attack",
    "certificates": "Certified",
    "retrieval": "From one modality to another",
    "zero_shot": "By name: zero-shot",
    "few_shot": "From few labels",
}


class Story(NamedTuple):
    """What the page tells of."""

    title: str
    rows: list[Row]
    measured: dict[str, list[Row]]
    predictions: Predictions  # with vectors where retrieval was measured
    asked: Plan
    turned: Sequence[Example] = ()  # by attacks


def render(story: Story, feed: Feed, parts: Parts) -> str:
    """The page; it holds pictures and sounds of a few rows."""
    sections = {"Figures": "figures"} | {TITLES[name]: name for name in across.SHEETS if story.measured.get(name)}
    if "classify" in story.predictions.tasks.values():
        sections |= {"Confidence": "confidence", "Mistakes": "mistakes"}
    body = [page.links(list(sections.items()))]
    for words, name in sections.items():
        body.append(page.heading(words, name))
        body += _section(name, story, feed, parts)
    return page.whole(story.title, body)


def _section(name: str, story: Story, feed: Feed, parts: Parts) -> Iterator[str]:
    if name == "figures":
        yield from (page.table(sheet, 3) for sheet in report.sheets(story.rows, parts))
    elif name == "confidence":
        yield from (page.figure(*one) for one in evaluation_plots.confidence(story.predictions))
    elif name == "mistakes":
        yield from _mistakes(story.predictions, feed)
    else:
        rows = story.measured[name]
        yield from (page.figure(*one) for one in _plots(name, story, feed.modalities))
        yield from (page.table(sheet, 3) for sheet in across.SHEETS[name](rows))
        if name == "retrieval":
            yield from _examples(story, feed)
        if name == "attacks":
            yield from _turned(story, feed)


def _plots(name: str, story: Story, modalities: Sequence[str]) -> Iterator[tuple[str, evaluation_plots.Figure]]:
    rows = story.measured[name]
    if name == "subsets":
        yield from evaluation_plots.lattices(rows)
    elif name == "missing":
        yield from evaluation_plots.missing(rows)
    elif name == "attacks":
        yield from evaluation_plots.attacks(rows)
    elif name == "certificates":
        yield from evaluation_plots.certificates(rows)
    elif name == "few_shot":
        yield from evaluation_plots.few_shots(rows)
    elif name == "corruptions":
        metrics = {(row.task, row.metric) for row in rows}
        clean = {row.task: row.value for row in story.rows if row.group == "all" and (row.task, row.metric) in metrics}
        whole = [row for row in story.measured.get("subsets", ()) if row.group == "all"]
        smaller = [row for row in whole if (row.task, row.metric) in metrics]
        without = {name_of(x for x in modalities if x != m): m for m in modalities}
        lacking = {(row.task, without[row.modalities]): row.value for row in smaller if row.modalities in without}
        yield from evaluation_plots.corruptions(rows, clean, lacking)


def _mistakes(predictions: Predictions, feed: Feed) -> Iterator[str]:
    """Of every classifier the wrong answers that it was surest of."""
    table = predictions.table
    for task in (task for task, head in predictions.tasks.items() if head == "classify"):
        said, true = table[f"{task}.prediction"].to_pylist(), table[f"{task}.label"].to_pylist()
        sure = table[f"{task}.confidence"].to_numpy()
        wrong = [k for k in np.argsort(-sure, kind="stable").tolist() if true[k] is not None and said[k] != true[k]]
        known = sum(x is not None for x in true)
        yield page.paragraph(f"{task}: the {min(len(wrong), MISTAKES)} surest of {len(wrong)} wrong answers to {known} rows.")
        ids, numbers = table["id"].to_pylist(), table["row"].to_pylist()
        yield page.cards(
            page.card(
                [
                    *exhibit.row(feed, numbers[k], feed.modalities),
                    page.paragraph(f"said {said[k]} ({sure[k]:.0%}), is {true[k]}"),
                    page.paragraph(str(ids[k]), "note"),
                ]
            )
            for k in wrong[:MISTAKES]
        )


def _turned(story: Story, feed: Feed) -> Iterator[str]:
    """Rows that an attack turned, as they came and as they were made."""
    siege = story.asked.siege
    if siege is None or not story.turned:
        return
    classes = story.predictions.vocabularies[siege.task]["classes"]
    ids = feed.manifest.table["id"]
    yield page.paragraph("Rows that were right and are not any more: as they came, and as the attack made them.")
    for surface in dict.fromkeys(example.trial.surface for example in story.turned):
        yield page.heading(surface, f"attacks-{surface}")
        shown = []
        for example in [x for x in story.turned if x.trial.surface == surface][: siege.examples]:
            before, after = (classes[k] for k in example.said)
            threats = siege.surfaces[surface].threats
            keeps = siege.kinds[example.trial.attack].keeps
            moved = [_distance(m, example, f"{threats[m]} allowed" if keeps else "in L2; no ε limits it") for m in example.far]
            for numbers, words, kind in (
                (example.before, [f"said {before}", str(ids[example.row])], ["right"]),
                (example.after, [f"{example.trial.attack}: says {after}", *moved], []),
            ):
                pieces = [piece for m, x in numbers.items() for piece in _pieces(feed, example.row, m, x)]
                shown.append(page.card([*pieces, *(page.paragraph(text, "note") for text in words)], *kind))
        yield page.cards(shown)


def _pieces(feed: Feed, row: int, m: str, x: str | torch.Tensor) -> list[str]:
    """Raw numbers, or a text; of embeddings the text that they are of."""
    if isinstance(x, str):
        return [page.paragraph(x)]
    return exhibit.row(feed, row, [m]) if feed.processors[m].kind == "text" else [exhibit.numbers(m, x, feed.processors[m])]


def _distance(m: str, example: Example, allowed: str) -> str:
    """How far a modality was moved; of numbers also relative to their largest."""
    before, after = example.before[m], example.after[m]
    words = f"{m}: moved by {example.far[m]:.3g}"
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        share = float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
        words += f", {20 * math.log10(max(share, 1e-12)):.0f} dB"
    return f"{words} ({allowed})"


def _examples(story: Story, feed: Feed) -> Iterator[str]:
    """Of every direction a few queries, drawn at random, and what is nearest to them."""
    predictions, items = story.predictions, story.asked.items
    assert items is not None
    numbers = predictions.table["row"].to_numpy()
    cells = same_cells(feed, numbers)
    once = retrieval.entries_of(predictions, feed.modalities, items, cells)
    random = np.random.default_rng(0)
    yield page.paragraph(
        f"{QUERIES} queries a direction, drawn at random, each with its {ANSWERS} nearest; what is right has a frame."
    )
    directions = list(permutations([m for m in feed.modalities if len(once[m])], 2))
    if len(directions) > DIRECTIONS:
        yield page.paragraph(f"{DIRECTIONS} of {len(directions)} directions are shown.", "note")
    for a, b in directions[:DIRECTIONS]:
        queries, entries = once[a][np.isin(items[once[a]], items[once[b]])], once[b]
        if not len(queries):
            continue
        from_a, to_b = unit_vectors(predictions, a), unit_vectors(predictions, b)[entries]
        yield page.paragraph(f"{a}{retrieval.ARROW}{b}")
        for query in np.sort(random.choice(queries, min(QUERIES, len(queries)), replace=False)):
            similar, right = (to_b @ from_a[query]).numpy(), items[entries] == items[query]
            (ranks,) = retrieval.rank(from_a[[query]], to_b, torch.from_numpy(items[[query]]), torch.from_numpy(items[entries]))
            shown = [
                page.card(
                    [*exhibit.row(feed, int(numbers[query]), [a]), page.paragraph(f"right: place {ranks.first[0]}", "note")],
                    "asked",
                )
            ]
            for place in np.argsort(-similar, kind="stable")[:ANSWERS]:
                pieces = exhibit.row(feed, int(numbers[entries[place]]), [b])
                shown.append(
                    page.card([*pieces, page.paragraph(f"{similar[place]:.2f}", "note")], *["right"] * int(right[place]))
                )
            yield page.cards(shown)
