"""The model: encoders, shared space, fusion, heads."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from mmkt import checkpoint, distributed
from mmkt.config import dump, revive
from mmkt.data.collate import Collate, Cuts
from mmkt.data.rows import Rows
from mmkt.experiment import Experiment
from mmkt.generators import seed_of
from mmkt.modes import evaluating
from mmkt.parts import ConfigError, Parts, nearest
from mmkt.space import SharedSpace, join
from mmkt.types import Adapter, Batch, Encoded, Encoder, Fusion, Head, Outputs


class Model(nn.Module):
    """``forward = fuse(encode(batch))``; cached features, subsets and attacks on features use the seam between the two.

    Args:
        encoders: by modality; their order is the model's.
        space: projections and missing vectors.
        fusion: many modalities into one.
        heads: by task.
    """

    encoders: Any  # nn.ModuleDict of Encoder: its values are typed as Module alone
    heads: Any
    plugins: Sequence[str] = ()  # that it was built with
    config: Experiment | None = None  # what ``save_pretrained`` writes; set by ``from_config``
    chunk: int | None = None  # items that an encoder is given at a time: see ``_read``
    whole = True  # tokens enter the shared space; False where fusion and objectives read summaries alone
    referred: tuple[frozenset[str], str] = (frozenset(), "")  # tensors that no save holds, and their hash: see ``refer``

    def __init__(self, encoders: Mapping[str, Encoder], space: SharedSpace, fusion: Fusion, heads: Mapping[str, Head]):
        super().__init__()
        self.modalities = tuple(encoders)
        self.encoders, self.space, self.fusion = nn.ModuleDict(encoders), space, fusion
        self.heads = nn.ModuleDict(heads)
        self.adapters: dict[str, Adapter] = {}  # by modality
        self.held: frozenset[str] = frozenset()  # names of the bodies' parameters that adapters hold still
        self._blank = {m: encoder.blank() for m, encoder in encoders.items()}
        for head in heads.values():
            if fusion.answers(head):
                head.shed()

    @property
    def vocabularies(self) -> dict[str, Any]:
        """What was learned from the training split: by task, and by ``encoders.MODALITY`` (no task's name has a dot)."""
        learned = {f"encoders.{m}": encoder.vocabulary for m, encoder in self.encoders.items() if encoder.learns}
        return {task: head.vocabulary for task, head in self.heads.items()} | learned

    def encode(self, batch: Batch, modalities: Collection[str] | None = None) -> dict[str, Encoded]:
        """Every modality (or some of them), each in its encoder's width; one that no row has comes out with ``present`` False."""
        return {m: self._encode(m, batch) for m in self.modalities if modalities is None or m in modalities}

    def _encode(self, m: str, batch: Batch) -> Encoded:
        inputs = batch.inputs.get(m)
        if isinstance(inputs, Encoded):
            return inputs
        if inputs is not None:
            return join(self._read(m, inputs), inputs["items"])
        device = batch.row.device
        absent = torch.zeros(batch.size, dtype=torch.bool, device=device)
        if self.training or distributed.is_sharded(self):
            # A tower without local rows runs on one blank row, in eval(), with weight zero: its parameters take part
            # in every step on every rank, which both DDP and FSDP2 need (FSDP2 in evaluation too: running gathers them).
            blank = self._run_blank(m, device)
            tokens, pooled = blank.tokens.mean(1, keepdim=True), blank.pooled
        else:
            pooled = torch.zeros(1, self.encoders[m].width, device=device)
            tokens = pooled[:, None]
        rows = batch.size
        return Encoded(tokens.expand(rows, -1, -1), ~absent[:, None], pooled.expand(rows, -1), absent)

    def _read(self, m: str, inputs: Mapping[str, Tensor]) -> Encoded:
        """N encoded items; with ``chunk``, so many at a time, whose activations are computed again in backward."""
        encoder, items = self.encoders[m], {name: x for name, x in inputs.items() if name != "items"}
        n = len(next(iter(items.values())))
        if self.chunk is None or n <= self.chunk:
            return encoder(inputs)
        again = torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters())
        parts = zip(*(x.split(self.chunk) for x in items.values()))
        some = (dict(zip(items, part)) for part in parts)
        found = [recomputed(encoder, part, use_reentrant=False) if again else encoder(part) for part in some]
        return Encoded(*(torch.cat(x) for x in zip(*found)))

    def _run_blank(self, m: str, device: torch.device) -> Encoded:
        encoder = self.encoders[m]
        with evaluating(encoder):
            return encoder({name: x.to(device) for name, x in self._blank[m].items()})

    def fuse(self, encoded: Mapping[str, Encoded], keep: Collection[str] | None = None) -> Outputs:
        """Projection, fusion, heads.

        Args:
            encoded: by modality, in the encoders' widths; one that is left out is missing everywhere.
            keep: the modalities to use; the missing vector replaces the others.
        """
        rows = next(iter(encoded.values())).pooled.shape[0]
        return self.answer(self.space(encoded, rows, keep, self.whole))

    def answer(self, parts: dict[str, Encoded]) -> Outputs:
        """Fusion and heads, of every modality in the shared space."""
        fused = self.fusion(parts)
        logits = {t: fused.logits[t] if t in fused.logits else head(fused.encoded) for t, head in self.heads.items()}
        return Outputs(parts, fused.encoded, logits, fused.terms, fused.notes)

    def forward(self, batch: Batch) -> Outputs:
        """A batch's outputs."""
        return self.fuse(self.encode(batch))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        """Move or cast all that is here, the blank rows too: copied in every step, the host would wait for the device."""
        super()._apply(fn, recurse)
        self._blank = {m: {name: fn(x) for name, x in blank.items()} for m, blank in self._blank.items()}
        return self

    def train(self, mode: bool = True) -> Model:
        """As usual, but a module whose parameters are all frozen stays in eval(): its statistics and dropout rest."""
        super().train(mode)
        if mode:
            _rest(self)
        return self

    def predict(self, rows: Sequence[Mapping[str, Any]], batch_size: int = 32) -> list[dict[str, dict[str, Any]]]:
        """Answers for things in memory.

        Args:
            rows: each a mapping from modality to a text, a picture (PIL image, array, path or bytes), a sound (waveform
                at the encoder's rate, ``(waveform, rate)``, path or bytes), a table's record (a dict by column, any of which
                may be left out), a vector or a sequence of vectors (list, array or tensor), or a list of them; any may be
                left out.
            batch_size: rows at a time.

        Returns:
            For each row, by task, what its head decodes: ``prediction``, and a classifier's ``confidence``.
        """
        columns = {m: m for m in self.modalities}
        processors = {m: encoder.processor() for m, encoder in self.encoders.items()}
        source = Rows(None, columns, processors, seed=0, train=False)
        device, none = next(self.parameters()).device, torch.full((len(rows),), -1)
        collate = Collate(self.modalities, processors, {}, none, none)
        items = [source.item(cells, k) for k, cells in enumerate(rows)]
        training, found, cuts = self.training, [], Cuts()
        self.eval()
        with torch.inference_mode():
            for start in range(0, len(items), batch_size):
                batch = collate(items[start : start + batch_size])
                cuts.note(batch)
                logits = self(batch.to(device)).logits
                scores = {task: head.calibrated(logits[task].float().cpu()) for task, head in self.heads.items()}
                decoded = {t: head.decode(scores[t]) | head.prediction_sets(scores[t]) for t, head in self.heads.items()}
                for k in range(len(items[start : start + batch_size])):
                    answer = {task: {name: column[k] for name, column in columns.items()} for task, columns in decoded.items()}
                    found.append(answer)
        self.train(training)
        for line in cuts.lines():
            distributed.say(line)
        return found

    # ------------------------------------------------------------ building, saving, loading

    @classmethod
    def from_config(
        cls,
        config: Experiment,
        vocabularies: Mapping[str, Any],
        plugins: Sequence[str] = (),
        assets: Path | None = None,
        built: Mapping[str, Encoder] = MappingProxyType({}),
    ) -> Model:
        """Build from a checked config; random weights are drawn from torch's global generator.

        Where features are cached (``data.features``), each encoder and what comes after them is drawn by a seed of its own,
        so that a model which is given encoders is drawn as one that builds them.

        Args:
            config: the experiment.
            vocabularies: by task, what ``Head.learn`` gave, and by ``encoders.MODALITY``, what ``Encoder.learn`` gave.
            plugins: folders or packages that parts may come from.
            assets: a checkpoint's folder, whose own files stand in for the original models.
            built: encoders by modality, adapters included, that are there already.
        """
        parts, settings = Parts(plugins), config.model
        apart = config.data.features is not None
        encoders = _encoders(config, vocabularies, parts, assets, built)
        if apart:
            torch.manual_seed(seed_of(config.seed, "model"))
        try:
            space = SharedSpace(settings.dim, {m: e.width for m, e in encoders.items()}, **settings.space.model_dump())
        except ValueError as error:
            raise ConfigError([("model.space.projection", str(error))]) from error
        heads = {t: parts.build("heads", spec, settings.dim, vocabularies[t]) for t, spec in settings.heads.items()}
        try:
            fusion = build_fusion(parts, settings.fusion, settings.dim, tuple(encoders), heads)
        except ValueError as error:
            raise ConfigError([("model.fusion", str(error))]) from error
        model = cls(encoders, space, fusion, heads)
        model.config, model.plugins = config, tuple(plugins)
        objectives: list[Any] = [parts.find("objectives", spec["name"]) for spec in config.objectives.values()]
        model.whole = fusion.level == "token" or any(objective.tokens for objective in objectives)
        for m, spec in settings.adapters.items():  # last, so that all else is drawn as it is without them
            if m not in built:
                model._adapt(m, spec, parts)
        return model

    def _adapt(self, m: str, spec: Mapping[str, Any], parts: Parts) -> None:
        path = f"model.adapters.{m}"
        if m not in self.encoders:
            problem = f"there is no encoder {m!r}{nearest(m, self.encoders)}; allowed: {', '.join(self.encoders)}"
            raise ConfigError([(path, problem)])
        encoder = self.encoders[m]
        try:
            adapter = parts.build("adapters", spec)
            trains = adapter.apply(encoder)
        except ValueError as error:
            raise ConfigError([(path, str(error))]) from error
        body = [name for name, _ in encoder.named_parameters() if matches(name, encoder.backbone or "*")]
        for name in body:
            encoder.get_parameter(name).requires_grad_(name in trains)
        self.adapters[m] = adapter
        self.held |= {f"encoders.{m}.{name}" for name in body if name not in trains}

    def refer(self, modalities: Collection[str], digest: str | None = None) -> None:
        """From now on leave these encoders out of every save: building them anew, or ``model.start``, gives them to the bit.

        Args:
            modalities: whose encoders no phase trains.
            digest: the hash of their tensors, where it is known.
        """
        own = self.state_dict()
        names = frozenset(name for name in own if any(name.startswith(f"encoders.{m}.") for m in modalities))
        self.referred = names, digest or checkpoint.digest(names, own.__getitem__)

    def refuse_other(self, folder: Path) -> None:
        """Refuse a checkpoint that refers to other tensors than this model's.

        Raises:
            CheckpointError: so it is.
        """
        note = checkpoint.read_json(folder / "delta.json")
        if note["sha256"] != self.referred[1]:
            raise checkpoint.CheckpointError(f"{folder} was trained on features of other encoders than the experiment builds now")

    def merge(self) -> Model:
        """Work all adapters into the bodies' own weights and names, in place; afterwards the config has none.

        Raises:
            ConfigError: there is none, or one that cannot be merged; then nothing has changed.
        """
        if not self.adapters:
            raise ConfigError([("model.adapters", "there is none, so there is nothing to merge")])
        for m, adapter in self.adapters.items():
            if not adapter.merges:
                problem = (
                    f"{type(adapter).__name__} is layers of its own, which no body's weights can stand for: keep it as it is"
                )
                raise ConfigError([(f"model.adapters.{m}", problem)])
        for m, adapter in self.adapters.items():
            adapter.merge(self.encoders[m])
            self.encoders[m].requires_grad_(True)
        self.adapters, self.held = {}, frozenset()
        if self.config is not None:
            settings = self.config.model.model_copy(update={"adapters": {}})
            self.config = self.config.model_copy(update={"model": settings})
        return self

    @classmethod
    def as_drawn(cls, config: Experiment, vocabularies: Mapping[str, Any], plugins: Sequence[str] = ()) -> Model:
        """Build from a checked config as a training does: original weights, the others drawn from the config's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls.from_config(config, vocabularies, plugins)

    def save_pretrained(self, folder: Path | str, card: str | None = None, *, delta: bool = False) -> None:
        """Write a whole checkpoint, which needs no original weights; it takes the folder's place in one step.

        Rank 0 writes; where the model is sharded, every process takes part.

        Args:
            folder: where to.
            card: the model card.
            delta: leave out what building the model anew gives to the bit (pretrained weights that did not change, and random
                ones drawn from the config's seed): loading it builds the model so, and needs the original models again.
        """
        if self.config is None:
            raise ValueError("only a model built by Model.from_config or Model.from_pretrained can be saved")
        referred, sha256 = self.referred
        tensors = distributed.collected({name: x for name, x in self.state_dict().items() if name not in referred})
        if distributed.rank() != 0:
            return
        note = {"left out": len(referred), "sha256": sha256} if referred else None
        if delta and not referred:
            anew = Model.as_drawn(self.config, self.vocabularies, self.plugins).state_dict()
            left = {name: x for name, x in anew.items() if torch.equal(x, tensors[name].cpu())}
            tensors = {name: x for name, x in tensors.items() if name not in left}
            note = {"left out": len(left), "sha256": checkpoint.digest(left, left.__getitem__)}
        with checkpoint.atomic(Path(folder)) as new:
            checkpoint.write_tensors(new / "model.safetensors", tensors)
            if note:
                checkpoint.write_json(new / "delta.json", note)
            (new / "config.json").write_text(dump(self.config), encoding="utf-8")
            checkpoint.write_json(new / "vocabularies.json", self.vocabularies)
            for m, encoder in self.encoders.items() if not note else ():
                (new / "assets" / m).mkdir(parents=True)
                encoder.save_assets(new / "assets" / m)
            if card:
                (new / "README.md").write_text(card, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: Path | str, plugins: Sequence[str] = ()) -> Model:
        """Load a checkpoint: a local folder, or a Hub id.

        Args:
            name: where it is.
            plugins: folders or packages that its parts may come from; a checkpoint turns on none by itself.

        Raises:
            CheckpointError: for a folder that lacks something, has a tensor too many or too few, or is damaged.
            ConfigError: for a config of a newer format, or one that names parts that mmkt and the plugins don't have.
        """
        folder = locate(name)
        config = revive(Experiment, checkpoint.read_json(folder / "config.json"), plugins)
        vocabularies = checkpoint.read_json(folder / "vocabularies.json")
        needed = [*config.model.heads, *(f"encoders.{m}" for m in learners(config, Parts(plugins)))]
        absent = [key for key in needed if key not in vocabularies]
        if absent:
            raise checkpoint.CheckpointError(f"{folder / 'vocabularies.json'} lacks {', '.join(absent)}")
        tensors = checkpoint.read_tensors(folder / "model.safetensors")
        delta = checkpoint.read_json(folder / "delta.json") if (folder / "delta.json").is_file() else None
        if delta is None:
            model, left = cls.from_config(config, vocabularies, plugins, folder / "assets"), frozenset[str]()
        else:
            model = cls.as_drawn(config, vocabularies, plugins)
            own = model.state_dict()
            left = frozenset(own) - frozenset(tensors)
            if config.data.features is not None and config.model.start is not None:
                began = checkpoint.read_tensors(locate(config.model.start) / "model.safetensors")
                with torch.no_grad():
                    for name in left & frozenset(began):
                        own[name].copy_(began[name])
            if checkpoint.digest(left, own.__getitem__) != delta["sha256"]:
                raise checkpoint.CheckpointError(
                    f"{folder} is a delta: the {delta['left out']} tensors that it leaves out are not those that it was made "
                    "from. Give the same original models (and versions, where weights are random), or the whole checkpoint"
                )
        checkpoint.load_strict(model, tensors, folder / "model.safetensors", left)
        return model.eval()


def _encoders(
    config: Experiment, vocabularies: Mapping[str, Any], parts: Parts, assets: Path | None, built: Mapping[str, Encoder]
) -> dict[str, Encoder]:
    """The encoders of a model, in its order; those that are there already as they are (see ``Model.from_config``)."""
    specs, learning, encoders = config.model.encoders, learners(config, parts), dict[str, Encoder]()
    # one that borrows from another is built after it, wherever it stands
    for m in sorted(specs, key=lambda m: specs[m].get("body") in specs):
        if m in built:
            encoders[m] = built[m]
            continue
        if config.data.features is not None:
            torch.manual_seed(seed_of(config.seed, "encoder", m))
        learned = [vocabularies[f"encoders.{m}"]] if m in learning else []
        try:
            encoders[m] = parts.build("encoders", specs[m], encoders, assets / m if assets else None, *learned)
        except ValueError as error:
            raise ConfigError([(f"model.encoders.{m}", str(error))]) from error
    if not encoders:
        raise ConfigError([("model.encoders", "needs one or more")])
    return {m: encoders[m] for m in specs}


def _rest(module: nn.Module) -> tuple[bool, bool]:
    """Put what has parameters, none of which trains, into eval(); says whether a module has any, and whether any trains."""
    own = [p.requires_grad for p in module.parameters(recurse=False)]
    below = [_rest(child) for child in module.children()]
    has, trains = bool(own) or any(h for h, _ in below), any(own) or any(t for _, t in below)
    if has and not trains:
        module.eval()
    return has, trains


def build_fusion(parts: Parts, spec: Mapping[str, Any], dim: int, modalities: Sequence[str], heads: Mapping[str, Head]) -> Fusion:
    """Build a fusion, if it takes so many modalities and, where it fuses logits, has a task to answer."""
    cls: Any = parts.find("fusion", spec["name"])
    wrong = {"two": len(modalities) != 2, "two+": len(modalities) < 2}
    if wrong.get(cls.arity):
        few = "add an encoder" if len(modalities) < 2 else "leave encoders out"
        found = f"{len(modalities)}: {', '.join(modalities)}"
        takes = {"two": "two", "two+": "two or more"}[cls.arity]
        raise ValueError(f"{spec['name']} takes {takes} modalities, found {found}: {few}, or name another (mmkt list fusion)")
    answered = {t: head.outputs(head.vocabulary) for t, head in heads.items() if not cls.heads or cls.answers(head)}
    if cls.heads and not answered:
        kinds = "any head" if "*" in cls.heads else f"a head {' or '.join(cls.heads)}"
        raise ValueError(f"{spec['name']} fuses logits, so it needs {kinds} in model.heads")
    return parts.build("fusion", spec, dim, modalities, answered)


def learners(config: Experiment, parts: Parts) -> dict[str, type[Encoder]]:
    """The encoders that learn from the training split before they are built, by modality."""
    classes = {m: parts.find("encoders", spec["name"]) for m, spec in config.model.encoders.items()}
    return {m: cls for m, cls in classes.items() if issubclass(cls, Encoder) and cls.learns}


def locate(name: Path | str) -> Path:
    """A checkpoint's folder: the local one, or the Hub's, downloaded."""
    folder = checkpoint.settle(Path(name))
    return folder if folder.is_dir() else _download(str(name))


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise checkpoint.CheckpointError(f"there is no checkpoint {name}: give the folder that has config.json, such as RUN/best")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "assets/**"]))
    except Exception as error:  # whatever the network says, the reader needs to know that the name was tried
        raise checkpoint.CheckpointError(f"there is no folder {name}, and the Hub did not give it: {error}") from error


def matches(name: str, pattern: str) -> bool:
    """Whether a shell-style pattern names a parameter or a module that holds it."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def parameter_count(model: nn.Module, trainable: bool = False) -> int:
    """How many numbers a module's parameters hold."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
