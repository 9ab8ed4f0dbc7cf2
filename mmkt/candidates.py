"""The sources of a transfer study before any training: what each one's frozen encoder makes of rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from mmkt import distributed, launch
from mmkt.config import read
from mmkt.data import manifest as manifests
from mmkt.data.columns import codes
from mmkt.evaluate import NO_ROWS
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.layers import text_blocks
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts, nearest
from mmkt.predictions import predict
from mmkt.space import join
from mmkt.study import Study, TextsOf
from mmkt.types import Encoded, Encoder

POOLINGS = {"first": "cls"}  # what borrow and hf_text call the same


class Texts(NamedTuple):
    """Labelled texts, in row order."""

    texts: list[str]
    labels: NDArray[np.int64]


def experiments(study: Study, task: str) -> dict[str, Experiment]:
    """By source, the experiment that its trainings start from.

    Raises:
        ConfigError: settings that can't be, or a task without classes.
    """
    found = {}
    for name, settings in study.sources.items():
        try:
            found[name] = read(Experiment, study.experiment, [*study.settings, *settings])
        except ConfigError as error:
            raise ConfigError([(f"sources.{name}: {path}", text) for path, text in error.problems]) from None
        head = found[name].model.heads[task]["name"]
        if head != "classify":
            kinds = [t for t, spec in found[name].model.heads.items() if spec["name"] == "classify"]
            ask = f"set metric={kinds[0]}" if kinds else "an experiment with a head classify is what can be measured"
            raise ConfigError([("metric", f"measures tell classes apart, but the head of {task} is one to {head}: {ask}")])
    return found


def modality_of(config: Experiment, asked: str | None) -> str:
    """The modality whose encoder is the candidate: the one that is asked for, or the only one.

    Raises:
        ConfigError: there are several, or not the one.
    """
    known = list(config.model.encoders)
    if asked is None and len(known) > 1:
        raise ConfigError(
            f"the experiment has the modalities {', '.join(known)}: say whose encoder is ranked, --modality {known[0]}"
        )
    if asked is not None and asked not in known:
        raise ConfigError(f"there is no modality {asked!r}{nearest(asked, known)}; allowed: {', '.join(known)}")
    return asked or known[0]


def draw(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Places of so many rows at the most, ascending: one of every class, the others as the seed draws them.

    Raises:
        ConfigError: there are more classes.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    _, firsts = np.unique(labels[order], return_index=True)
    if len(firsts) > most:
        raise ConfigError(f"{len(firsts)} classes do not fit into {most} rows: give --rows {len(firsts)} or more")
    rank = np.arange(len(order))
    rank[firsts] -= len(order)  # before all others
    return np.sort(order[np.argsort(rank)][:most])


class Candidate:
    """A source's model as it is before training.

    Args:
        name: of the source.
        config: its experiment.
        task: whose classes the target has.
        modality: whose encoder it is about.
        device: to compute on.
    """

    def __init__(self, name: str, config: Experiment, task: str, modality: str, device: torch.device):
        self.name, self.config, self.task, self.modality, self.device = name, config, task, modality, device
        setup = launch.build(config)
        self.model, self.feed = setup.learner.model.to(device).eval(), setup.feed
        self.parts = Parts(config.plugins)
        self.encoder: Encoder = self.model.encoders[modality]

    def rows(self, most: int) -> NDArray[np.int64]:
        """Numbers of the training split's labelled rows, so many at the most, ascending."""
        values, known = (x.numpy() for x in self.feed.labels[self.task])
        rows = self.feed.rows(self.config.data.train)
        rows = rows[known[rows]]
        return rows[draw(values[rows], most, self.config.seed)]

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The classes' numbers, (n,)."""
        return self.feed.labels[self.task][0].numpy()[rows]

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Of rows."""
        return self.feed.manifest.table["id"].take(rows).to_pylist()

    def encode(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Numbers of those rows that have the modality (n,), and the encoder's own summaries (n, W), before the shared space."""
        found = []
        with torch.inference_mode():
            for batch in self.feed.evaluation(rows):
                inputs = batch.to(self.device).inputs.get(self.modality)
                if inputs is None:
                    pooled = torch.zeros(batch.size, self.encoder.width)
                else:
                    one = inputs if isinstance(inputs, Encoded) else join(self.encoder(inputs), inputs["items"])
                    pooled = one.pooled.float().cpu()
                found.append((batch.row.numpy(), pooled.numpy(), batch.present[self.modality].cpu().numpy()))
        every = [part for parts in distributed.everyone(found) for part in parts]
        place, vectors, present = (np.concatenate(column) for column in zip(*every))
        for line in self.feed.cuts.lines():
            distributed.say(line)
        order = np.argsort(place, kind="stable")
        order = order[present[order]]
        return place[order], vectors[order]

    def source_probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the checkpoint that the source starts from says of the target's rows with its own head, (n, its classes).

        Raises:
            ValueError: there is none, or it can't read them; the message is the reason.
        """
        if self.config.model.start is None:
            raise ValueError("model.start names no checkpoint of mmkt, whose head would be asked")
        source = Model.from_pretrained(self.config.model.start, self.parts.plugins).to(self.device)
        assert source.config is not None
        heads = [task for task, spec in source.config.model.heads.items() if spec["name"] == "classify"]
        if not heads:
            raise ValueError(f"{self.config.model.start} has no head classify")
        if not set(source.modalities) <= set(self.model.modalities):
            own, theirs = (", ".join(model.modalities) for model in (self.model, source))
            raise ValueError(f"{self.config.model.start} reads {theirs}, the target has {own}")
        data = self.config.data
        data = data.model_copy(update={"columns": {m: c for m, c in data.columns.items() if m in source.modalities}})
        data = data.model_copy(update={"dropout": {}, "one_of": []})
        feed = Feed(self.feed.manifest, source, data, self.config.seed, labelled=NO_ROWS)
        head = self.task if self.task in heads else heads[0]
        column = predict(source, feed, rows, device=self.device).table[f"{head}.logits"].combine_chunks()
        logits = np.asarray(column.flatten(), dtype=np.float64).reshape(len(rows), -1)
        return torch.from_numpy(logits).softmax(1).numpy()

    def text_side(self) -> Encoder:
        """The text encoder that has this candidate's body: itself, the one that lends its blocks, or ``hf_text`` of its name.

        Raises:
            ValueError: it has none; the message is the reason.
        """
        spec: dict[str, Any] = self.config.model.encoders[self.modality]
        body = spec.get("body")
        if self.encoder.kind == "text":
            return self.encoder
        if not isinstance(body, str):
            raise ValueError(f"the encoder {spec['name']} names no text model as its body")
        if body in self.model.encoders:
            return self.model.encoders[body]
        blocks = getattr(self.encoder, "body", None)
        if blocks is None:
            raise ValueError("it has no body (layers: 0)")
        torch.manual_seed(self.config.seed)
        hf_text: Any = self.parts.find("encoders", "hf_text")
        pooling = POOLINGS.get(spec["pooling"], spec["pooling"])
        text = hf_text({}, None, model=body, weights=spec["weights"], pooling=pooling)
        # its blocks are the candidate's own: drawn, cut or started from a checkpoint as those are; words are the body's
        of_text, own = (body.get_submodule(text_blocks.layout(body).blocks) for body in (text.body, blocks))
        del of_text[len(own) :]
        strange = text.body.load_state_dict(blocks.state_dict(), strict=False).unexpected_keys
        assert not strange, strange
        return text.to(self.device).eval()

    def read_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Summaries of texts by the text side, (n, W).

        Raises:
            ValueError: there is no text side, or one of another width.
        """
        encoder = self.text_side()
        if encoder.width != self.encoder.width:
            raise ValueError(f"vectors of {self.encoder.width} numbers here, of {encoder.width} on the text side")
        processor, size, found = encoder.processor(), self.config.data.rows, []
        with torch.inference_mode():
            for start in range(0, len(texts), size):
                inputs = processor.pad([processor(text) for text in texts[start : start + size]])
                found.append(encoder({key: x.to(self.device) for key, x in inputs.items()}).pooled.float().cpu())
        return torch.cat(found).numpy()


def read_source(settings: TextsOf, most: int, seed: int) -> Texts:
    """Labelled texts of the source, so many at the most, every class kept.

    Raises:
        ValueError: the manifest can't be used, or has none.
    """
    manifest = manifests.read(settings.manifest)
    texts, labels = (manifests.column_of(manifest, name) for name in (settings.column, settings.label))
    _, place = codes(labels)
    there = np.flatnonzero((place >= 0) & np.asarray(pc.is_valid(texts)))
    if not len(there):
        columns = f"{settings.column!r} and {settings.label!r}"
        raise ConfigError([("source_rows", f"no row of {settings.manifest} has both columns, {columns}: name others")])
    chosen = there[draw(place[there].astype(np.int64), most, seed)]
    return Texts([str(text) for text in texts.take(chosen).to_pylist()], place[chosen].astype(np.int64))
