"""A fusion in its place, between a shared space and heads, and random rows for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from mmkt.heads.classify import Classify
from mmkt.parts import Parts, settings, strip
from mmkt.space import SharedSpace
from mmkt.types import Encoded, Fused, Fusion

DIM = 16
NAMES = ("a", "b", "c")
WIDTHS, LENGTHS = dict(zip(NAMES, (12, 20, 9))), dict(zip(NAMES, (5, 3, 4)))
CLASSES = {"y": 3, "z": 2}


class Broken(Exception):
    """A fusion breaks a point; the words say how."""


@dataclass(frozen=True)
class Case:
    """A fusion and its settings."""

    name: str
    cls: type[Fusion]
    spec: Mapping[str, Any]  # name and every setting
    about: str = ""  # which setting is not the usual one
    parts: Parts = field(default_factory=Parts, compare=False)

    def fact(self, name: str) -> Any:
        """What its class declares; raises Broken where it doesn't."""
        if not hasattr(self.cls, name):
            raise Broken(f"its class declares no {name}: see mmkt.types.Fusion for what it may be")
        return getattr(self.cls, name)

    def number(self) -> int:
        """How many modalities it is tried on."""
        return 2 if self.cls.arity == "two" else 3

    def build(self, number: int | None = None, dim: int = DIM, seed: int = 0, reverse: bool = False) -> Whole:
        """A whole with random weights: those of the fusion are moved off their start, which may be zeros."""
        torch.manual_seed(seed)
        names = NAMES[: number or self.number()]
        names = names[::-1] if reverse else names
        fusion = self.fusion(names, dim)
        with torch.no_grad():
            for parameter in fusion.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return Whole(fusion, {m: WIDTHS[m] for m in names}, dim, CLASSES)

    def fusion(self, names: Sequence[str], dim: int = DIM, classes: Mapping[str, int] = CLASSES) -> Fusion:
        """The fusion alone, as it starts."""
        return self.parts.build("fusion", self.spec, dim, tuple(names), classes)

    def variants(self) -> Iterator[Case]:
        """The case, and one for every other value of a setting that is one of a few words."""
        yield self
        for name, (hint, _) in settings(self.cls).items():
            hint, _ = strip(hint)
            for value in get_args(hint) if get_origin(hint) is Literal else ():
                if value != self.spec[name]:
                    yield replace(self, spec=dict(self.spec) | {name: value}, about=f"{name}={value}")


class Whole(nn.Module):
    """Shared space, fusion and linear classifiers.

    Args:
        fusion: of ``dim`` and the modalities of ``widths``.
        widths: by modality, the width of its encoded rows.
        dim: the shared width.
        classes: how many, by task.
    """

    def __init__(self, fusion: Fusion, widths: Mapping[str, int], dim: int, classes: Mapping[str, int]):
        super().__init__()
        self.space, self.fusion = SharedSpace(dim, widths), fusion
        self.heads = nn.ModuleDict({task: _head(number, dim) for task, number in classes.items()})
        for head in self.heads.values():
            if fusion.answers(head):  # type: ignore[arg-type]
                head.shed()  # type: ignore[operator]

    def fuse(self, encoded: Mapping[str, Encoded], rows: int) -> tuple[Fused, dict[str, Tensor]]:
        """Fused, and the logits by task, (B, classes)."""
        return self.answer(self.space(encoded, rows))

    def answer(self, parts: dict[str, Encoded]) -> tuple[Fused, dict[str, Tensor]]:
        """The same from what is in the shared space already."""
        fused = self.fusion(parts)
        return fused, {t: fused.logits[t] if t in fused.logits else head(fused.encoded) for t, head in self.heads.items()}

    def forward(self, encoded: Mapping[str, Encoded], rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits and terms, as DDP would have them."""
        fused, logits = self.fuse(encoded, rows)
        return logits, fused.terms


def _head(number: int, dim: int) -> Classify:
    return Classify(dim, {"classes": list(range(number)), "counts": [1] * number})


def rows(names: tuple[str, ...], number: int = 8, seed: int = 0) -> dict[str, Encoded]:
    """Random encoded rows, in the encoders' widths: row k has the modalities that the bits of k name, row 0 all of them.

    So 2^M rows have every pattern of presence but the last of them none; ragged lengths, zeros in padding.
    """
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.arange(number) % 2 ** len(names)
    found = {}
    for place, m in enumerate(names):
        length = LENGTHS[m]
        mask = torch.arange(length)[None] < torch.randint(1, length, (number, 1), generator=generator)
        tokens = torch.randn(number, length, WIDTHS[m], generator=generator).masked_fill(~mask[..., None], 0.0)
        present = (pattern >> place & 1 == 1) | (pattern == 0)
        present &= pattern != 2 ** len(names) - 1  # the last pattern is that of nothing; row 0 stands in for it
        found[m] = Encoded(tokens, mask, torch.randn(number, WIDTHS[m], generator=generator), present)
    return found


def pick(parts: Mapping[str, Encoded], which: Any) -> dict[str, Encoded]:
    """Some rows."""
    return {m: Encoded(*(x[which] for x in e)) for m, e in parts.items()}


def together(fused: Fused, logits: Mapping[str, Tensor]) -> Tensor:
    """All that a fusion answers, (B, D + classes)."""
    return torch.cat([fused.encoded.pooled.float(), *(x.float() for x in logits.values())], 1)


def same(one: Tensor, two: Tensor, words: str, tolerance: float = 1e-5) -> None:
    """Raise Broken where two answers differ by more than a share of their size."""
    if one.shape != two.shape:
        raise Broken(f"{words}: the answer is {tuple(two.shape)} in place of {tuple(one.shape)}")
    gap = (one - two).abs().max().item()
    if not gap <= tolerance * max(1.0, one.abs().max().item()):  # NaN is a gap too
        raise Broken(f"{words}: the answer changes by {gap:.3g}")
