"""What an experiment file may say: its sections, their settings and defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mmkt.config import FORMAT, Section
from mmkt.parts import ConfigError, PartOf
from mmkt.threat import Threat

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Tracker = Literal["tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class StreamOf(Section):
    """Rows that a batch mixes in at a fixed quota."""

    quota: Count
    """Rows of it in every (global) batch."""
    split: str = "train"
    domain: str | None = None
    """Only rows of this domain."""


class FoldOf(Section):
    """One fold of a cross-validation as the test split; the others train, but for a share that validates."""

    by: str = "group"
    """A column whose values are the folds; with ``k``, rows that share its value stay in one fold."""
    k: Annotated[int, Field(ge=2)] | None = None
    """How many folds to make, named 1 to k; by default every value of the column is one."""
    test: str
    """The fold that is the test split."""
    validation: Share = 0.15
    """Share of the other rows that validates; rows of one group stay together."""


class SubsetOf(Section):
    """Less to train on: how much do few labels cost?"""

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the training split's rows; drawn by ``seed``, a smaller share is part of a larger one."""
    by: str | None = None
    """A column (of classes) of which every value keeps this share."""


class Data(Section):
    """Where rows come from and how they are read."""

    source: Annotated[dict, PartOf("data/sources")] | None = None
    """A data set that mmkt can make; used where the manifest does not exist yet."""
    origin: str | None = None
    """The folder that ``source`` reads, as ``mmkt data prepare --from`` names it."""
    manifest: str
    """JSONL, CSV, Parquet or Arrow: id, split, domain, group, media columns, label columns."""
    columns: dict[Name, str | list[str]] = {}
    """Modality → column, or several for a table; by default a modality's column has its name."""
    labels: dict[Name, str] = {}
    """Task → column; by default a task's column has its name."""
    fractions: dict[str, Annotated[float, Field(gt=0, lt=1)]] = {"train": 0.8, "validation": 0.1, "test": 0.1}
    """Sizes of the splits, where the manifest names none; rows of one group stay together."""
    fold: FoldOf | None = None
    """Splits by fold, in place of those that the manifest names; ``mmkt folds`` sets it."""
    subset: SubsetOf | None = None
    """A share of the training split; the other rows of it are not used."""
    train: str = "train"
    validation: str | None = "validation"
    """Null for none: then nothing is selected on, and the last step is the best."""
    test: str = "test"
    batch_size: Count | Literal["auto"] = 32
    """Rows a batch over all processes, in training and in evaluation; ``auto``: as many as the GPUs have memory for, to an
    eighth, which ``mmkt train`` finds out and writes into the run's config."""
    streams: dict[Name, StreamOf] = {}
    """Quotas that a training batch is mixed from, instead of batch_size rows of the training split."""
    balance: str | None = None
    """A task whose classes are drawn equally often in training."""
    group_by_length: str | None = None
    """A modality by whose length training rows are batched together."""
    pad_to: dict[Name, Count] = {}
    """Modality → what lengths of a batch are rounded up to a multiple of (tokens, samples, vectors): fewer shapes, for
    ``train.compile`` and for kernels that like them even."""
    tokens: Count | None = None
    """Training batches by size: as many rows (a multiple of 8 where so many fit) as make no more than this, times the longest of
    them in the modality of ``group_by_length``, over all processes; ``batch_size`` at the most. Texts count in tokens that the
    encoder reads, features in vectors, all else in bytes; a cell of several items in their sum. Null: ``batch_size`` rows."""
    dropout: dict[Name, Share] = {}
    """Modality → probability that a training row loses it; the last one a row has is never lost."""
    one_of: list[Name] = []
    """Modalities whose lists are alternatives (several captions of a picture): training draws one of them each time a row
    comes by, evaluation takes the first. In other modalities all items of a list enter."""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    """What a row whose media cannot be decoded does: end the command, or leave every split, counted and listed."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read ahead, for each process that trains."""
    cache: Annotated[float, Field(ge=0)] = 1.0
    """GB of decoded items that each training process keeps between epochs; 0 keeps none."""
    features: str | None = None
    """A folder for what encoders that no phase trains make of rows that nothing augments: computed once, read by every run
    that names it (``mmkt cache``). Null: encoders run in every step."""
    max_pixels: Count = 64_000_000
    max_seconds: Annotated[float, Field(gt=0)] = 60.0
    max_characters: Count = 100_000

    @property
    def rows(self) -> int:
        """The batch size as a number.

        Raises:
            ConfigError: it has not been found yet.
        """
        if self.batch_size == "auto":
            raise ConfigError([("data.batch_size", "auto is what mmkt train alone finds out: give a number here")])
        return self.batch_size


class Space(Section):
    """The shared space: a projection and a learned missing vector a modality."""

    projection: Literal["linear", "none"] = "linear"
    """None takes encoders' vectors as they are: both sides of a CLIP share a space already. All are then ``dim`` wide."""
    norm: bool = True
    """LayerNorm after the projection."""
    dropout: Share = 0.0


class ModelOf(Section):
    """Encoders, shared space, fusion, heads."""

    dim: Annotated[int, Field(ge=2)] = 256
    encoders: dict[Name, Annotated[dict, PartOf("encoders")]]
    space: Space = Space()
    fusion: Annotated[dict, PartOf("fusion")] = {"name": "concat"}
    heads: dict[Name, Annotated[dict, PartOf("heads")]] = {}
    adapters: dict[Name, Annotated[dict, PartOf("adapters")]] = {}
    """Modality → what trains in its body's place: of the body, all else stays as it is."""
    start: str | None = None
    """A checkpoint of mmkt whose tensors are taken over where name and shape fit; the rest starts anew."""


class Weighted(Section):
    """What stands beside an objective's own settings."""

    weight: Annotated[float, Field(ge=0)] = 1.0


class Window(Section):
    """Steps that are looked at closely."""

    start: Count = 20
    """Steps that a process makes before."""
    steps: Count = 5


class Train(Section):
    """The loop."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows; give this or ``steps``."""
    steps: Count | None = None
    lr: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt", "step", "exponential"] = "cosine"
    """How the rate goes after its warm-up, in every phase. ``wsd`` stays high and falls at the end (``decay``); ``step`` falls
    to a tenth after half of the steps and to a hundredth after three quarters."""
    warmup: Share = 0.06
    """Share of the steps over which the rate climbs from zero."""
    lr_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    """What the schedule falls towards, as a share of ``lr``; by default zero, and a hundredth for ``exponential``."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the steps over which ``wsd`` falls."""
    optimizer: Literal["adamw", "sgd", "adafactor", "muon", "adamw8bit"] = "adamw"
    """``muon`` moves matrices of encoders, space and fusion, AdamW all else. ``adamw8bit`` needs the extra 8bit."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled (but of ``sgd``), off for biases, norms and vectors."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share | None = None
    """Of ``sgd`` (0.9 by default) and of ``muon`` (0.95)."""
    fused: bool | None = None
    """One kernel for all of AdamW or SGD: several times as fast, other last digits; by default wherever there is one."""
    average: Annotated[dict, PartOf("averages")] | None = None
    """An average of the weights, which is evaluated, chosen and saved in place of those that train (``ema``, ``swa``)."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient."""
    accumulate: Count = 1
    """Batches a step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    checkpointing: bool = False
    """Encoders that train compute activations again in backward: less memory, more time, the same gradients."""
    chunk: Count | None = None
    """Items that an encoder is given at a time, its activations computed again in backward: batches of any size, for contrast;
    the same gradients (GradCache, Gao et al., 2021)."""
    compile: bool = False
    """Compile the training forward (torch.compile): minutes at the start, faster steps; needs a C++ compiler."""
    evaluate_every: Count | None = None
    """Steps between evaluations; by default once an epoch."""
    save_every: Count | None = None
    """Steps between saves to resume from; by default with every evaluation."""
    keep: Count = 1
    """States to resume from that are kept: the newest is ``RUN/last``, older ones are ``RUN/kept/step-…``."""
    log_every: Count = 10
    patience: Count | None = None
    """Evaluations without a better one after which training stops."""
    select: str | None = None
    """What the best checkpoint is chosen by on validation: ``task/metric``, ``loss``, or a figure that an objective watches
    (``robust/NAME`` of an adversarial one); by default the first head's first metric."""
    probes: bool = True
    """A linear classifier on each modality's vectors, at every evaluation on validation by a metric: which modality is ahead?
    It costs the memory of validation's vectors and changes nothing in training."""
    profile: Window | None = None
    """Steps whose operations are written to the run's ``profile/``: where does the time go?"""


class Attacked(Section):
    """How answers hold against attacks."""

    task: Name | None = None
    """Whose classifier is attacked; by default the first."""
    rows: Count | None = 500
    """Of the split's labelled rows, drawn by ``seed``; null for all."""
    threats: dict[Name, Threat] = {}
    """Modality → how far it may be moved; by default every modality that has raw numbers, as is usual for its kind."""
    joint: bool = True
    """All of them at once too, where there are several."""
    attacks: dict[Name, Annotated[dict, PartOf("attacks")]] | None = None
    """By the name that the report gives them; the worst case by row is over those that keep to the threat's ε. By default
    ``fgsm``, ``pgd`` of 20 steps, ``apgd`` of 30 on two losses, ``square`` of 100 queries, ``hotflip``, ``characters`` and
    ``absent``, where they fit."""
    target: str | int | float | bool | None = None
    """A class that the attacker wants to be said, of rows that are of another; by default any but the label will do."""
    source: str | None = None
    """Another checkpoint, a folder or a Hub id: what attacks find on it with its gradients (or of texts, its answers) is given
    to this model, whose own stay hidden. It counts for the warnings, not for the worst case."""
    curve: list[float] = [0.5, 1.0, 2.0]
    """Factors on ε that accuracy is drawn along, with nearly everything allowed at the end; [] for none."""
    along: Name | None = None
    """The attack that it is drawn with, one that keeps to ε; by default ``pgd``, or the first that does."""
    examples: Annotated[int, Field(ge=0)] = 4
    """Rows that an attack turned, of each modality, that the page shows."""


class Smoothed(Section):
    """Radii within which answers under Gaussian noise provably stay."""

    sigma: dict[Name, float]
    """Modality → the noise's standard deviation, in its raw numbers' units (pixels in [0, 1], samples in [−1, 1], a text's token
    embeddings); all at once. Radii are in units of it."""
    task: Name | None = None
    """Whose classifier is smoothed; by default the first."""
    rows: Count | None = 100
    """Of the split's labelled rows, drawn by ``seed``; null for all."""
    selection: Count = 100
    """Noisy copies of a row that choose its class."""
    samples: Count = 1000
    """Further copies that certify it: the more, the larger the radii that can be shown."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """How likely a row's radius may be too large, by bad luck in the draws."""
    radii: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    """Where accuracy is told."""


class Evaluate(Section):
    """Figures."""

    split: str = "test"
    metrics: dict[Name, Annotated[dict, PartOf("metrics")]] = {}
    """Beside each head's own, or one of those with other settings."""
    resamples: Annotated[int, Field(ge=0)] = 1000
    """Bootstrap draws for the 95 % intervals."""
    subsets: bool | None = None
    """Every subset of the modalities too, by ``mmkt evaluate``; by default where there are 2 to 6 modalities."""
    retrieval: bool | None = None
    """Retrieval between modalities too, by ``mmkt evaluate``; by default where the objective ``align`` was trained."""
    item: str | None = None
    """A column that says which rows are of one item: several captions of a picture. By default each row is its own."""
    missing: list[Annotated[float, Field(ge=0, le=1)]] = [0.0, 0.25, 0.5, 0.75]
    """Rates at which each modality goes missing at random, where every subset is evaluated; [] for none."""
    corruptions: bool | list[str] = False
    """Inputs made worse by these (``mmkt list corruptions``), one modality at a time and jointly; true: by all that fit."""
    severities: Annotated[list[Literal[1, 2, 3, 4, 5]], Field(min_length=1)] = [1, 2, 3, 4, 5]
    prompts: str | None = None
    """A file (YAML or JSON) of class names by language, {en: {templates: ["a photo of {}"], classes: {cat: cat}}}: zero-shot."""
    shots: list[Count] = []
    """Labelled rows a class that few-shot classifiers are given, such as [1, 2, 4, 8, 16]; drawn from ``data.train``."""
    episodes: Annotated[int, Field(ge=2)] = 100
    """Draws of few shots."""
    robustness: Attacked | None = None
    """Attacks, by ``mmkt evaluate``; ``--robustness`` asks for the usual ones."""
    smoothing: Smoothed | None = None
    """Certified robustness, by ``mmkt evaluate``: {sigma: {image: 0.25}}."""
    page: bool = True
    """A report to look at beside the files (report.html), by ``mmkt evaluate``."""
    label: str | None = None
    """The column of the classes that zero- and few-shot tell apart; by default that of the first head ``classify``."""


class Card(Section):
    """What the model card says to the Hub beside what a run knows itself."""

    license: str | None = None
    """As the Hub spells it: ``mit``, ``apache-2.0``, ``cc-by-4.0`` …"""
    language: list[str] = []
    """ISO 639 codes of the texts: ``en``."""
    tags: list[str] = []
    datasets: list[str] = []
    """Hub ids of the data, where it is there."""


class Experiment(Section):
    """A whole experiment file."""

    format: int = FORMAT
    plugins: list[str] = []
    """Folders or packages with rooms of their own (my_lab/fusion/…)."""
    seed: int = 0
    run: str = "checkpoints/run"
    """The run's folder."""
    data: Data
    model: ModelOf
    objectives: dict[Name, Annotated[dict, PartOf("objectives", Weighted)]]
    terms: dict[Name, Annotated[float, Field(ge=0)]] = {}
    """Weights of the terms that a fusion brings; its own where not named (see ``mmkt list fusion``)."""
    transfer: Annotated[dict, PartOf("transfer")] = {"name": "full"}
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    card: Card = Card()
    trackers: list[Tracker] = ["tensorboard"]
    """Where figures go beside metrics.jsonl; each but tensorboard needs its package."""
    threads: Count | None = None
    """Of a process that is alone on a CPU; by default all cores (``accelerate launch`` would leave it one)."""

    def settings(self) -> dict[str, Any]:
        """Plain nested data, every default written out."""
        return self.model_dump(mode="json")


class FusionOf(Section):
    """A fusion by itself, for ``mmkt check-part``."""

    fusion: Annotated[dict, PartOf("fusion")]


class SourceOf(Section):
    """A source by itself, for ``mmkt data prepare``."""

    source: Annotated[dict, PartOf("data/sources")]
