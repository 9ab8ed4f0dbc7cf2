"""The strings that a batch's texts were made of."""

from __future__ import annotations

from collections.abc import Collection

from mmkt.data.manifest import column_of
from mmkt.data.rows import items_of, load
from mmkt.feed import Feed
from mmkt.parts import ConfigError
from mmkt.types import Batch, Encoded


def texts_of(feed: Feed, batch: Batch, modalities: Collection[str]) -> dict[str, list[str]]:
    """By modality, the texts of a batch's N items, in the batch's order.

    Args:
        feed: that the batch is of.
        batch: of ``feed.evaluation``; a training batch may have drawn other items, or dropped them.
        modalities: of text. One that no row of the batch has is left out, as in the batch.

    Raises:
        ConfigError: a modality is no text, or comes as cached features, or its items are pairs of sentences.
    """
    found = {}
    for m in modalities:
        if m not in feed.processors or feed.processors[m].kind != "text":
            of = f"of {feed.processors[m].kind}" if m in feed.processors else "unknown"
            texts = ", ".join(name for name, processor in feed.processors.items() if processor.kind == "text")
            raise ConfigError([(f"texts.{m}", f"the modality is {of}; those of text: {texts or 'none'}")])
        if m not in batch.inputs:
            continue
        inputs = batch.inputs[m]
        if isinstance(inputs, Encoded):
            raise ConfigError([("data.features", f"{m} comes as cached features, which are no texts: leave out data.features")])
        found[m] = [text for row in batch.row[batch.present[m]].tolist() for text in _texts(feed, m, row)]
        count = int((inputs["items"] >= 0).sum())
        assert len(found[m]) == count, f"{m}: {len(found[m])} texts of {count} items: a batch of evaluation has them all"
    return found


def _texts(feed: Feed, m: str, row: int) -> list[str]:
    """The texts of a row's cell."""
    processor = feed.processors[m]
    items = items_of(column_of(feed.manifest, feed.columns[m])[row].as_py(), processor)
    chosen = items[:1] if m in feed.data.one_of else items  # as in ``Rows``
    texts = [load(item, processor, feed.manifest.root, feed.limits) for item in chosen]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError([(f"texts.{m}", "its items are pairs of sentences, and single texts are attacked: leave it out")])
    return texts
