"""The few types everything else is written in, and the abstract class of every room.

Shapes: B rows, L tokens, D the shared width, W an encoder's own width, N items (a cell may hold several), K items a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from mmkt.feed import Feed
    from mmkt.learner import Learner
    from mmkt.model import Model
    from mmkt.victim import Victim

Moves = Literal["numbers", "tokens", "texts", "presence"]


class Encoded(NamedTuple):
    """One modality as its encoder leaves it; also what a fusion makes."""

    tokens: Tensor  # (B, L, D) finite, and zero where mask is False
    mask: Tensor  # (B, L) bool; every row has at least one True
    pooled: Tensor  # (B, D) the encoder's own best summary
    present: Tensor  # (B,) bool; False where the row lacks this modality

    @classmethod
    def of(cls, pooled: Tensor, present: Tensor | None = None) -> Encoded:
        """A summary alone, (B, D): one token that is the summary itself."""
        everywhere = torch.ones(pooled.shape[0], dtype=torch.bool, device=pooled.device)
        return cls(pooled[:, None], everywhere[:, None], pooled, everywhere if present is None else present)


class Fused(NamedTuple):
    """What a fusion returns. A pooled fusion gives ``Fused(Encoded.of(y), {}, {}, {})``."""

    encoded: Encoded
    logits: dict[str, Tensor]  # by task, only from fusions on logits: they replace that task's head
    terms: dict[str, Tensor]  # scalars to minimise (load balance, divergence …), those that the fusion declares
    notes: dict[str, Tensor]  # (B, …) things to read: gates, per-modality logits, uncertainty


class Outputs(NamedTuple):
    """Everything an objective may need, out of one forward (DDP hides attributes)."""

    encoded: dict[str, Encoded]  # in the shared space, by modality
    fused: Encoded
    logits: dict[str, Tensor]  # by task
    terms: dict[str, Tensor]
    notes: dict[str, Tensor]


class Batch(NamedTuple):
    """Some rows, ready for the model.

    ``inputs[m]`` holds an encoder's tensors for the N items that the rows have of modality m, and ``items`` (B, K),
    which item each row has at each of its K places (−1: none). A modality that no row has is left out. Where features
    of a frozen encoder are cached, an ``Encoded`` of all B rows enters instead.
    """

    inputs: dict[str, dict[str, Tensor] | Encoded]
    present: dict[str, Tensor]  # (B,) bool, by modality; every modality is named
    labels: dict[str, Tensor]  # (B, …) by task; a filler where not labelled
    labelled: dict[str, Tensor]  # (B,) bool, by task: a row may lack any label
    views: dict[str, dict[str, dict[str, Tensor] | Encoded]]  # further inputs of the same rows ("weak", "strong")
    row: Tensor  # (B,) long: place in the manifest
    domain: Tensor  # (B,) long: −1 where unnamed
    group: Tensor  # (B,) long: −1 where unnamed
    stream: Tensor  # (B,) long: which of data.streams the row was drawn for

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device. Going to an accelerator nothing waits for the copy; see ``pinned``."""
        if self.row.device == torch.device(device):
            return self
        # towards the CPU it has to wait: whoever reads there would not know that the numbers are still on their way
        free = torch.device(device).type != "cpu"
        return pytree.tree_map(lambda x: x.to(device, non_blocking=free) if isinstance(x, Tensor) else x, self)

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU copies from by itself; what lies there already stays where it is."""
        return pytree.tree_map(lambda x: x.pin_memory() if isinstance(x, Tensor) else x, self)

    @property
    def size(self) -> int:
        """B."""
        return self.row.shape[0]


class Predictions(NamedTuple):
    """A model's answers, one line a row, in row order.

    ``table`` has ``row, id, split, domain, group``, ``has.M`` for each modality, and for each task ``T``: ``T.label``
    (null where unlabelled), the columns of its head's ``decode`` (``T.prediction`` first) and ``T.logits``.
    """

    table: pa.Table
    tasks: dict[str, str]  # task → the name of its head
    vocabularies: dict[str, Any]


class Row(NamedTuple):
    """One figure. Tables and plots are made from such rows alone."""

    run: str
    study: str
    seed: int
    split: str
    task: str
    modalities: str  # "image+text"
    condition: (
        str  # "clean", "image.jpeg@3", "image" (over all of its corruptions), "missing@0.5", "zero-shot en", "few-shot 5 ncm"
    )
    metric: str
    group: str  # "all", "domain=…", "group=…", "class=…"
    value: float
    n: int
    low: float
    high: float


class Answers(NamedTuple):
    """What another model says of n rows, in row order."""

    row: Tensor  # (n,) long: place in the manifest
    logits: dict[str, Tensor]  # (n, outputs) by task
    pooled: Tensor  # (n, D) its fused vectors
    vocabularies: dict[str, Any]


class Resources(NamedTuple):
    """What an objective may ask for before training."""

    answers: Callable[[str], Answers]  # of a checkpoint, for every row that trains or validates
    column: Callable[[str, str], list[Any]]  # of a manifest, by its path and the column's name


class Until(NamedTuple):
    """Ends a phase before its last step: at several logs in a row the loss was not lower than its best by a share of it."""

    patience: int  # logs
    drop: float = 0.01


class Phase(NamedTuple):
    """One stretch of training: what trains, for how long, how fast.

    Patterns are shell-style and anchored on whole names: ``encoders.text`` means it and all below it.
    """

    name: str
    steps: int
    train: Sequence[str] = ("*",)
    frozen: Sequence[str] = ()  # wins over train
    lr: Mapping[str, float] = MappingProxyType({})  # pattern → factor on train.lr; the last that matches wins
    objectives: Sequence[str] | None = None  # None: all of them
    streams: Mapping[str, int] | None = None
    until: Until | None = None  # the steps that it spares are the next phase's


class Processor(ABC):
    """From one raw item to tensors, and from many to a padded batch. Pickles, so that workers can have it."""

    kind: ClassVar[str]  # "text", "image", "audio", "table", "features": which decoder its items come through
    rate: int  # Hz, of a processor of kind "audio"
    columns: Mapping[str, str]  # "number" or "category" by column, of a processor of kind "table"
    width: int  # numbers a vector, of a processor of kind "features"
    pads: bool = False  # items of a batch are padded to one length
    multiple: int = 1  # what items of a batch are padded to, beyond the longest (``data.pad_to``)
    draws: bool = True  # False: a view is the plain item, no random number is drawn for it

    @abstractmethod
    def __call__(self, item: Any, view: str | None = None) -> dict[str, Tensor]:
        """Tensors of one item: a str, a PIL image (RGB), a mono waveform (T,) at ``rate``, vectors (T, ``width``).

        Args:
            item: what the decoder of this kind gives (of a table a dict by column); it may be kept for the next epoch, so
                it is not changed in place.
            view: None gives the plain item; "train" and any other name an augmented one, drawn from torch's and
                Python's global generators, which the caller has seeded by (seed, draw, row, view).
        """

    @abstractmethod
    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """N items stacked and padded.

        Where items can be longer than what the encoder takes, ``cut`` (N,) bool says which were; where they can hold
        values that training did not, ``unknown`` (N,) bool does. A run reports how many.
        """

    def padded(self, length: int, most: int | None = None) -> int:
        """How long items of a batch become, whose longest has this length; ``most`` is what an encoder takes."""
        up = -(-length // self.multiple) * self.multiple
        return up if most is None else max(length, min(up, most))

    def length(self, item: Any) -> int:
        """How long a text or a cell of vectors is in a batch that it is the longest of; by default a text's characters."""
        return len(item) if isinstance(item, str) else sum(map(len, item))

    def whole(self, cell: Any) -> bool:
        """Whether a list in a cell is one item of this processor (a sentence pair, a vector), not several items (two pairs)."""
        return False


class Encoder(nn.Module, ABC):
    """One modality's encoder: tensors of N items in, ``Encoded`` in its own width out.

    A constructor takes ``(self, house, assets, *, settings…)``: the encoders built before it, by modality, and the
    folder of a checkpoint that its own files are in (None when it is built anew). One that ``learns`` takes its
    vocabulary third.
    """

    width: int
    kind: ClassVar[str]
    bounds: ClassVar[tuple[float, float] | None] = None  # of its raw space; None for text
    learns: ClassVar[bool] = False  # from the training split's cells, before it is built
    backbone: str | None = None  # where its body lies in it ("body", "trunk.body", "": all of it); None: it owns none
    vocabulary: dict[str, Any]  # of one that learns

    @classmethod
    def learn(cls, cells: pa.ChunkedArray, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The vocabulary (JSON-able) from the training split's cells, absent ones included; saved with the model."""
        raise NotImplementedError(f"{cls.__name__} learns nothing")

    @staticmethod
    def rows_by_name(vocabulary: Mapping[str, Any]) -> dict[str, list[str]]:
        """Parameters whose rows stand for things of the vocabulary → the name of each row."""
        return {}

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N items; ``present`` is True everywhere."""

    @abstractmethod
    def stages(self) -> list[list[str]]:
        """Names of its parameters from input to output, each once: thawing, layer-wise rates."""

    @abstractmethod
    def processor(self) -> Processor:
        """What turns a raw item into this encoder's inputs."""

    @abstractmethod
    def blank(self) -> dict[str, Tensor]:
        """Inputs of one empty item, on the CPU: what a tower runs on in training when no local row has its modality."""

    def checkpoint_gradients(self) -> None:
        """From now on, in training, compute activations again in backward instead of keeping them.

        Gradients stay the same; memory is traded for about a third more time.

        Raises:
            ValueError: this encoder can't.
        """
        raise ValueError(f"{type(self).__name__} cannot compute activations again in backward; set train.checkpointing: false")

    def save_assets(self, folder: Path) -> None:
        """Write what rebuilding takes beside settings and weights (a tokenizer, an architecture)."""


class Fusion(nn.Module, ABC):
    """Many modalities into one. A constructor takes ``(self, dim, modalities, outputs, *, settings…)``.

    The facts are literals: ``mmkt list fusion`` reads them without importing anything, and ``mmkt check-part fusion NAME``
    holds a fusion to them. Formulas are Python expressions over D (the width), M (modalities), L (tokens a modality),
    C (outputs of all tasks together), T (tasks) and the settings by name.
    """

    arity: ClassVar[str] = "any"  # how many modalities: "any", "two", "two+"
    level: ClassVar[str]  # what is fused: "pooled", "token", "logit", "latent"; only "token" gets tokens of cached features
    symmetric: ClassVar[bool]  # the order in which the modalities are named changes nothing
    missing: ClassVar[str]  # "stand-in": reads the learned missing vector; "exact": ignores it and uses ``present``
    interacts: ClassVar[bool]  # a linear head behind it can answer what no sum over modalities can (XOR)
    cost: ClassVar[str]  # how time grows
    params: ClassVar[str]  # how many numbers it learns
    flops: ClassVar[str]  # of its matrix products, a row, forward (a multiplication and an addition are two)
    identity_at_start: ClassVar[bool] = False  # before training its answer is the first modality, to the bit
    heads: ClassVar[tuple[str, ...]] = ()  # of level "logit": the heads whose tasks it answers itself, or "*"
    terms: ClassVar[Mapping[str, float]] = MappingProxyType({})  # what it adds to the loss → the usual weight
    reads: tuple[str, ...] = ()  # of one built: the modalities that its answer depends on, where not all

    @classmethod
    def answers(cls, head: Head) -> bool:
        """Whether it gives the logits of that head's tasks itself."""
        return "*" in cls.heads or type(head).__name__.lower() in cls.heads

    @abstractmethod
    def forward(self, parts: dict[str, Encoded]) -> Fused:
        """Fuse. ``parts`` holds every modality, in the model's order."""


class Head(nn.Module, ABC):
    """Answers one task. A constructor takes ``(self, dim, vocabulary, *, settings…)``."""

    metrics: ClassVar[tuple[str, ...]]  # of the metrics room, the first is what training selects on
    vocabulary: dict[str, Any]

    def shed(self) -> None:
        """Lose the layers and keep the vocabulary: a fusion on logits answers this task, the head decodes alone."""
        self._modules.clear()
        self._parameters.clear()

    @classmethod
    @abstractmethod
    def learn(cls, values: Sequence[Any]) -> dict[str, Any]:
        """The vocabulary (JSON-able) from the training split's labels; saved with the model."""

    @staticmethod
    @abstractmethod
    def label(value: Any, vocabulary: Mapping[str, Any]) -> Tensor:
        """A cell as a tensor; None gives the filler. Raises ValueError for what the vocabulary does not have."""

    @staticmethod
    @abstractmethod
    def outputs(vocabulary: Mapping[str, Any]) -> int:
        """How many numbers this head gives a row."""

    @abstractmethod
    def forward(self, fused: Encoded, target: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits, (B, outputs)."""

    def average(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Several models' logits (N, B, outputs) as one's, (B, outputs); weights (N, B) sum to one over N."""
        return (weights[..., None] * logits).sum(0)

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits (B, outputs) as answers have them, once a temperature is fitted (``mmkt calibrate``); training sees none."""
        return logits

    @abstractmethod
    def decode(self, logits: Tensor) -> dict[str, list[Any]]:
        """Columns for ``Predictions``: ``prediction`` first, in the label column's own values."""

    def prediction_sets(self, logits: Tensor) -> dict[str, list[Any]]:
        """A column ``set`` by calibrated logits (B, outputs), once a threshold is fitted (``mmkt calibrate``); until then {}."""
        return {}


class Objective(nn.Module, ABC):
    """One training term. A constructor takes ``(self, dim, modalities, outputs, domains, *, settings…)``.

    Its memory is buffers, so it is saved. ``forward`` gives the local SUM and ``count`` how many items it speaks for;
    the learner divides by the count over all ranks and accumulated batches.
    """

    needs: ClassVar[tuple[str, ...]] = ()  # views it asks for
    serves: ClassVar[bool] = True  # False: a penalty, which gives parameters nothing to learn from
    contrasts: ClassVar[bool] = False  # compares rows with one another: accumulation would change what it means
    tokens: ClassVar[bool] = False  # reads modalities' tokens in the shared space; else they may be left out, the summary stays
    raw: ClassVar[bool] = False  # looks at encoders' inputs themselves, so that no features may stand in for them
    selects: tuple[str, ...] = ()  # of the figures that it watches, those to choose checkpoints by, the higher the better

    @abstractmethod
    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """The sum over this rank's items, connected to its inputs even when there are none."""

    @abstractmethod
    def count(self, batch: Batch) -> Tensor:
        """How many items ``forward`` sums over, from the batch alone."""

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """Once, when the learner is built, on the CPU: what it remembers becomes buffers here.

        Args:
            learner: with the weights that training starts from; a resumed run loads its state afterwards.
            resources: other models' answers, other manifests' columns.
        """

    def craft(self, learner: Learner, batch: Batch) -> Batch:
        """Rows made before the forward: adversarial ones, mixup, pseudo-labels."""
        return batch

    def begin(self, learner: Learner, phase: Phase) -> None:
        """Before a phase's first step."""

    def graded(self, learner: Learner) -> None:
        """After backward, before clipping."""

    def stepped(self, learner: Learner, progress: float) -> None:
        """After a step; ``progress`` runs from 0 to 1 over the phase."""

    def watched(self, learner: Learner, feed: Feed, rows: np.ndarray) -> dict[str, float]:
        """Figures of the rows that validate (their numbers), which every evaluation logs as ``FIGURE/NAME``.

        All processes take part, and have the same; what is remembered between evaluations is buffers.
        """
        return {}


class Adapter(ABC):
    """A small change to an encoder's body that trains in its place. A constructor takes ``(self, *, settings…)``.

    It is structure: it is put on before weights are loaded, and saved with the model.
    """

    merges: ClassVar[bool]  # into the body's own weights, after which nothing is left of it

    @abstractmethod
    def apply(self, encoder: Encoder) -> set[str]:
        """Change the encoder in place; at the start its outputs stay as they are, to the bit where nothing is said.

        Returns:
            Names of the encoder's parameters that train. The body's others never do.

        Raises:
            ValueError: the encoder's family has no preset and no targets are given, or a target matches nothing.
        """

    def renew(self, encoder: Encoder) -> None:  # noqa: B027 - most have nothing to make
        """Other weights came into the body after ``apply``, and none into this: make again what is made of them."""

    def merge(self, encoder: Encoder) -> None:
        """Work the change into the body's own weights and names, in place."""
        raise ValueError(f"{type(self).__name__} cannot be merged into the body's own weights")


class Transfer(ABC):
    """What trains, when. A constructor takes ``(self, *, settings…)``."""

    @abstractmethod
    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """Phases whose steps sum to ``steps``: schedules are compared at an equal budget."""


class Average(ABC):
    """How an average of weights follows training. A constructor takes ``(self, *, settings…)``."""

    @abstractmethod
    def move(self, step: int, steps: int) -> float:
        """How far the average moves towards the weights that a step has left, from 0 (it stays) to 1 (it becomes them).

        Args:
            step: of all phases, from 0.
            steps: how many there are.
        """


class Metric(ABC):
    """A pure function of a task's answers, vectorised over row weights so that its bootstrap is one call.

    A constructor takes ``(self, *, settings…)``.
    """

    heads: ClassVar[tuple[str, ...]]  # names of the heads it can judge
    higher_is_better: ClassVar[bool] = True
    resamples: ClassVar[bool] = True  # False for a report without intervals
    overall: ClassVar[bool] = True  # False for figures by class alone

    @abstractmethod
    def __call__(self, predictions: Predictions, task: str, weights: Any) -> dict[str, Any]:
        """Values by metric group.

        Args:
            predictions: the labelled rows alone, n of them.
            task: which task.
            weights: (R, n) float64, a weight a row: ones give the plain value, multinomial draws a bootstrap.

        Returns:
            ``{"all": (R,)}`` and, for reports by class, ``{"class=…": (R,)}``; NaN where it is undefined.
        """


class Corruption(ABC):
    """One way in which items of a kind get worse, at five strengths. A constructor takes ``(self)``."""

    kind: ClassVar[str]  # "text", "image", "audio": as a processor's
    levels: ClassVar[tuple[float, ...]]  # its strength at severity 1 to 5; severity 0 is the item itself

    @abstractmethod
    def __call__(self, item: Any, level: float, rate: int | None) -> Any:
        """A worse item; the one given is not changed in place.

        Args:
            item: a str, a PIL image (RGB), or a mono waveform (T,) in [−1, 1]; never a list.
            level: one of ``levels``.
            rate: Hz, of a sound; else None.

        What is random is drawn from torch's and Python's global generators, which the caller has seeded by row and condition.
        """


class Attack(ABC):
    """A search for inputs on which a model is wrong. A constructor takes ``(self, *, settings…)``.

    What it moves says what its points are, by modality: ``numbers``, a float tensor (N, …), raw numbers within a threat's norm;
    ``tokens``, a long tensor (N, L), ids; ``texts``, a list of N strings; ``presence``, a bool tensor (B,), which rows keep the
    modality. All but numbers are limited by a count in the attack's own settings, a budget of edits that no ε is compared with.
    """

    moves: ClassVar[Moves] = "numbers"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")  # of the threats that it can keep to; none where no numbers move
    bounds: ClassVar[bool] = False  # moves within bounds alone, so that it takes modalities that have some
    gradients: ClassVar[bool] = True  # False: a black box, which sees answers alone
    keeps: ClassVar[bool] = True  # to the threat's ε; False: what it may do is said by its own settings

    @abstractmethod
    def __call__(self, victim: Victim) -> Mapping[str, Tensor | list[str]]:
        """The worst points found, by modality; as they came where nothing worse was found.

        What is random is drawn by the victim's seed and each row's place in the manifest, so that a row's answer does not depend
        on the others of its batch.
        """


class Source(ABC):
    """A data set made into a manifest. A constructor takes ``(self, *, settings…)``."""

    @abstractmethod
    def prepare(self, out: Path, source: Path | None) -> Path:
        """Write manifest and media below ``out`` and return the manifest's path.

        Args:
            out: folder to write, made if need be.
            source: the folder that ``--from`` names; None for sources that need none.
        """


ROOMS: dict[str, type] = {
    "encoders": Encoder,
    "fusion": Fusion,
    "heads": Head,
    "objectives": Objective,
    "adapters": Adapter,
    "transfer": Transfer,
    "averages": Average,
    "metrics": Metric,
    "corruptions": Corruption,
    "attacks": Attack,
    "data/sources": Source,
}
