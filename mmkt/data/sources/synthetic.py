"""Synthetic tasks whose best reachable accuracy is known for every subset of the modalities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmkt.checkpoint import write_json
from mmkt.data import parquet
from mmkt.generators import seed_of
from mmkt.parts import nearest
from mmkt.types import Source

Share = Annotated[float, Field(ge=0, lt=1)]
Strength = Annotated[float, Field(ge=0)]
Split = Literal["train", "validation", "test"]
NAMES = "abcdefgh"


class State(NamedTuple):
    """How a modality may be found, and how often, by its sign."""

    plus: float  # P(state | sign +1)
    minus: float  # P(state | sign −1)
    strength: float  # 0 where it is lost


class Synthetic(Source):
    """Signs in noise: redundant, unique or parity labels, with a noisy or missing modality, and their exact ceilings.

    Modality m has a hidden fair sign s_m ∈ {−1, +1} and shows x_m = a_m · s_m · u_m + N(0, I), u_m a unit vector drawn once
    from the seed. All that x_m says of s_m is z_m = u_m·x_m ~ N(a_m · s_m, 1). T tokens of strength a_m / √T each, whose
    sum over √T is that z_m, say the same. The label is "yes" for +1:

    - ``redundant``: all signs are the label's; A = √Σ a_m² over the subset decides it, and Φ(A) is reached;
    - ``unique``: the label is the owner's sign and the other signs are independent of it: Φ(a), and 1/2 without the owner;
    - ``xor``: the label is the product of all M independent signs. Its posterior mean is the product of theirs, so
      accuracy is ½(1 + Π(2·q_m − 1)), q_m the best accuracy for the sign m; one that is not seen, q = 1/2, takes all away.

    Two things make a modality differ from row to row. In a share of rows the noise of ``noisy`` has the deviation σ, and one
    number more a token says so (0 or 1): its strength is then a/σ. And a modality is lost with probability r(1 + γ·s_m),
    independently of the others: for γ ≠ 0 that it is there, or not, is evidence too. A state of what is seen (which are there,
    which are noisy) is known to the reader, so accuracy is a sum over states: with p± = ½ P(state | ±1), and λ = log(p+/p−)
    the evidence of the state itself, the best decision is the sign of 2·A·z + λ, right with p+·Φ(A + λ/2A) + p−·Φ(A − λ/2A).
    """

    def __init__(
        self,
        *,
        task: Literal["redundant", "unique", "xor"] = "redundant",
        modalities: Annotated[int, Field(ge=1, le=len(NAMES))] = 2,
        strength: Strength | list[Strength] = 3.0,
        dim: Annotated[int, Field(ge=1)] = 8,
        tokens: Annotated[int, Field(ge=0)] = 0,
        owner: str = "a",
        noisy: str | None = None,
        noisy_rate: Annotated[float, Field(ge=0, le=1)] = 0.5,
        noise: Annotated[float, Field(gt=1)] = 3.0,
        missing: Share = 0.0,
        missing_of: list[str] | None = None,
        missing_bias: Annotated[float, Field(ge=-1, le=1)] = 0.0,
        missing_in: list[Split] = ["train", "validation", "test"],  # noqa: B006 - never changed
        rows: Annotated[int, Field(ge=4)] = 20_000,
        validation: Annotated[int, Field(ge=1)] = 2_000,
        test: Annotated[int, Field(ge=1)] = 10_000,
        seed: int = 0,
    ):
        """Remember the settings.

        Args:
            task: what the label takes.
            modalities: how many; they are named a, b, c …
            strength: of each modality's sign against noise of deviation 1, or of all.
            dim: numbers a vector.
            tokens: vectors a modality, which share its strength; 0 for one that is no list of vectors.
            owner: of the label, in the task ``unique``.
            noisy: the modality that is noisier in some rows; it says so in one number more.
            noisy_rate: share of these rows.
            noise: σ, the deviation of its noise there.
            missing: r, the share of rows that lose a modality.
            missing_of: which may be lost; null for all. A row may lose all it has.
            missing_bias: γ; 0 loses at random, above 0 more of the signs +1, below 0 of the signs −1.
            missing_in: the splits that lose any.
            rows: of the training split.
            validation: rows.
            test: rows.
            seed: the same seed makes the same bytes.
        """
        self.names = tuple(NAMES[:modalities])
        self.strength = dict(zip(self.names, self._strengths(strength)))
        for setting, named in (("owner", [owner]), ("noisy", [noisy] if noisy else []), ("missing_of", missing_of or [])):
            self._known(setting, named)
        if missing * (1 + abs(missing_bias)) > 1:
            raise ValueError(
                f"missing={missing:g} with missing_bias={missing_bias:g} loses a sign with probability "
                f"{missing * (1 + abs(missing_bias)):g}: with this bias missing is at most {1 / (1 + abs(missing_bias)):g}"
            )
        self.task, self.dim, self.tokens, self.owner, self.seed = task, dim, tokens, owner, seed
        self.noisy, self.noisy_rate, self.noise = noisy, noisy_rate, noise
        self.missing = dict.fromkeys(self.names if missing_of is None else missing_of, missing)
        self.bias, self.missing_in = missing_bias, tuple(missing_in)
        self.sizes: dict[str, int] = {"train": rows, "validation": validation, "test": test}

    def prepare(self, out: Path, source: Path | None) -> Path:
        """One Parquet file, and ``ceilings.json`` beside it; ``source`` is not read.

        Columns: id, split, a list of numbers (or of such lists) a modality, label.
        """
        out.mkdir(parents=True, exist_ok=True)
        parquet.write(((split, self.table(split)) for split in self.sizes), out / "manifest.parquet")
        write_json(out / "ceilings.json", self.ceilings())
        return out / "manifest.parquet"

    # ------------------------------------------------------------ ceilings

    def ceilings(self) -> dict[str, float]:
        """``ceiling`` of every subset but the empty one, by its names: a, b, a+b."""
        sizes = range(1, len(self.names) + 1)
        subsets = (subset for size in sizes for subset in itertools.combinations(self.names, size))
        return {"+".join(subset): self.ceiling(subset) for subset in subsets}

    def ceiling(self, subset: str | Iterable[str]) -> float:
        """Best accuracy on the test split of any predictor that sees these modalities where a row has them, and no other.

        Args:
            subset: names, or "a+b"; of none at all the best is 1/2.
        """
        seen = tuple(filter(None, subset.split("+"))) if isinstance(subset, str) else tuple(subset)
        self._known("a subset", seen)
        if self.task == "redundant":
            return sum(_right(states) for states in itertools.product(*(self._states(m) for m in self.names if m in seen)))
        if self.task == "unique":
            return self._sign(self.owner) if self.owner in seen else 0.5
        return 0.5 * (1 + math.prod(2 * self._sign(m) - 1 if m in seen else 0.0 for m in self.names))

    def _sign(self, name: str) -> float:
        """Best accuracy for a modality's own sign."""
        return sum(_right([state]) for state in self._states(name))

    def _states(self, name: str) -> list[State]:
        """How a modality is found in the test split: there, there and noisy, lost; those that happen."""
        plus, minus = (self._lost(name, "test", sign) for sign in (1, -1))
        noisy, a = self.noisy_rate if name == self.noisy else 0.0, self.strength[name]
        shares = [(1 - noisy, a), (noisy, a / self.noise)]
        found = [State(share * (1 - plus), share * (1 - minus), strength) for share, strength in shares]
        return [state for state in (*found, State(plus, minus, 0.0)) if state.plus or state.minus]

    def _lost(self, name: str, split: str, sign: Any) -> Any:
        """P(lost | sign)."""
        return self.missing.get(name, 0.0) * (1 + self.bias * sign) if split in self.missing_in else 0.0 * sign

    # ------------------------------------------------------------ rows

    def table(self, split: str) -> pa.Table:
        """A split's rows: id, split, a list of numbers (or of such lists) a modality, null where lost, label.

        Each modality has its own random numbers: other settings of loss or noise leave signs and the rest as they are.
        """
        n, signs = self.sizes[split], self._signs(split)
        label = signs[self.owner] if self.task == "unique" else np.prod(list(signs.values()), axis=0)
        if self.task == "redundant":
            label = signs[self.names[0]]
        columns = {m: self._column(m, split, signs[m]) for m in self.names}
        ids = pa.array([f"{split}-{k}" for k in range(n)])
        answers = pa.array(["no", "yes"]).take(pa.array((label > 0).astype(np.int64)))
        return pa.table({"id": ids, "split": pa.array([split] * n), **columns, "label": answers})

    def _signs(self, split: str) -> dict[str, np.ndarray]:
        """(n,) −1 or +1 by modality."""
        fair = {m: self._random(split, m, "sign").integers(2, size=self.sizes[split]) * 2 - 1 for m in self.names}
        return dict.fromkeys(self.names, fair[self.names[0]]) if self.task == "redundant" else fair

    def _column(self, name: str, split: str, signs: np.ndarray) -> pa.Array:
        """(n,) lists of float32, or lists of ``tokens`` lists; null where lost."""
        n, count = len(signs), max(1, self.tokens)
        is_noisy = self._random(split, name, "noisy").random(n) < (self.noisy_rate if name == self.noisy else 0.0)
        x = self._random(split, name, "noise").standard_normal((n, count, self.dim))
        x *= np.where(is_noisy, self.noise, 1.0)[:, None, None]
        x += signs[:, None, None] * (self.strength[name] / np.sqrt(count) * self.direction(name))
        if name == self.noisy:
            x = np.concatenate([x, np.broadcast_to(is_noisy[:, None, None], (n, count, 1))], 2)
        lost = self._random(split, name, "lost").random(n) < self._lost(name, split, signs)
        return _lists(x.astype(np.float32), lost, self.tokens > 0)

    def direction(self, name: str) -> np.ndarray:
        """u, the unit vector (dim,) along which a modality shows its sign."""
        u = self._random(name, "direction").standard_normal(self.dim)
        return u / np.linalg.norm(u)

    def _random(self, *parts: str) -> np.random.Generator:
        return np.random.default_rng(seed_of(self.seed, *parts))

    # ------------------------------------------------------------ settings

    def _strengths(self, strength: float | Sequence[float]) -> list[float]:
        given = [strength] * len(self.names) if isinstance(strength, int | float) else list(strength)
        if len(given) != len(self.names):
            raise ValueError(
                f"strength has {len(given)} numbers, and there are {len(self.names)} modalities ({', '.join(self.names)}): "
                f"give one number for all, or one for each"
            )
        return [float(a) for a in given]

    def _known(self, where: str, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.names:
                raise ValueError(
                    f"{where} names no modality {name!r}{nearest(name, self.names)}; there are {', '.join(self.names)}"
                )


def _right(states: Sequence[State]) -> float:
    """P(these states, and the best decision on their common sign is right)."""
    plus, minus = (0.5 * math.prod(ways) for ways in ([s.plus for s in states], [s.minus for s in states]))
    strength = math.hypot(*(s.strength for s in states))
    if not strength or not min(plus, minus):  # nothing is seen beside the state, or the state says all
        return max(plus, minus)
    shift = math.log(plus / minus) / (2 * strength)
    return plus * _normal(strength + shift) + minus * _normal(strength - shift)


def _normal(x: float) -> float:
    """Φ."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _lists(x: np.ndarray, lost: np.ndarray, nested: bool) -> pa.Array:
    """(n, T, W) as a list a row: of T lists of W numbers, or without ``nested`` of the numbers; null where lost."""
    kept = x[~lost]
    inner: pa.Array = pa.array(kept.reshape(-1))
    if nested:
        inner = pa.ListArray.from_arrays(pa.array(np.arange(0, kept.size + 1, x.shape[2]), pa.int32()), inner)
    ends = np.cumsum(np.where(lost, 0, x.shape[1] if nested else x[0].size))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), inner, mask=pa.array(lost))
