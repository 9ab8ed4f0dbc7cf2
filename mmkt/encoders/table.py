"""Numbers and categories of a table's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmkt.encoders._columns import learned, name_of
from mmkt.layers.transformer import Block
from mmkt.parts import nearest
from mmkt.types import Encoded, Encoder, Processor

MISSING, UNKNOWN = -1, 0  # codes of a category


class Table(Encoder):
    """Numbers and categories, a token a column, through an FT-Transformer (Gorishniy et al., 2021); its class token sums up.

    Inputs are ``numbers`` (N, A), raw and NaN where missing, and ``categories`` (N, C) long: −1 where missing, 0 where the
    training split does not have the value, which a run counts and says. The 1 + A + C tokens are all present: the class
    token, the numbers, the categories. With standardised x, a number's token is b + x·w, a category's b + e(value), a
    missing value's b + m. What training never saw starts, and so stays, at zero: the column's mean, or no value at all.
    """

    kind = "table"
    learns = True
    mean: Tensor
    std: Tensor
    first: Tensor

    def __init__(
        self,
        house: Mapping[str, Encoder],
        assets: Path | None,
        vocabulary: dict[str, Any],
        *,
        width: Annotated[int, Field(ge=8)] = 192,
        layers: Annotated[int, Field(ge=1)] = 3,
        heads: Annotated[int, Field(ge=1)] = 8,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        categories: list[str] = [],  # noqa: B006 - never changed
        max_categories: Annotated[int, Field(ge=1)] = 1000,
    ):
        """Build tokens and blocks.

        Args:
            house: unused.
            assets: unused; all is in settings and vocabulary.
            vocabulary: what ``learn`` gave.
            width: of a token.
            layers: blocks.
            heads: a block.
            dropout: in the blocks.
            categories: columns of numbers that are read as categories; strings and booleans always are.
            max_categories: different values of a column that are accepted; more are taken for a mistake.
        """
        super().__init__()
        self.width, self.vocabulary, self.checkpointing = width, vocabulary, False
        names = self.rows_by_name(vocabulary)
        numbers = [vocabulary[name] for name in names["weight"]]
        sizes = [1 + len(column["values"]) for column in vocabulary.values() if "values" in column]  # the first: unknown
        self.register_buffer("mean", torch.tensor([column["mean"] for column in numbers]), persistent=False)
        self.register_buffer("std", torch.tensor([column["std"] or 1.0 for column in numbers]), persistent=False)
        first = torch.tensor([sum(sizes[:k]) for k in range(len(sizes))], dtype=torch.long)  # a column's rows in ``values``
        self.register_buffer("first", first, persistent=False)
        self.token = nn.Parameter(torch.empty(1, width))
        self.weight = nn.Parameter(torch.empty(len(numbers), width))
        self.bias = nn.Parameter(torch.empty(len(names["bias"]), width))
        self.missing = nn.Parameter(torch.zeros(len(names["bias"]), width))
        self.values = nn.Parameter(torch.empty(sum(sizes), width))
        for parameter in (self.token, self.weight, self.bias, self.values):
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
        with torch.no_grad():
            self.values[first] = 0.0
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.blocks[0].norm1 = nn.Identity()  # as in the paper: a norm here would take a number's size away
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode N records."""
        numbers, categories = inputs["numbers"], inputs["categories"]
        gone = torch.cat([numbers.isnan(), categories == MISSING], 1)  # (N, A + C)
        x = (torch.where(numbers.isnan(), self.mean, numbers) - self.mean) / self.std  # no NaN, so none in gradients
        values = self.values[categories.clamp(min=UNKNOWN) + self.first]  # (N, C, W)
        columns = torch.cat([x[..., None] * self.weight, values], 1)
        columns = self.bias + torch.where(gone[..., None], self.missing, columns)  # (N, A + C, W)
        x = torch.cat([self.token.expand(len(columns), 1, -1), columns], 1)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        for block in self.blocks:
            again = self.checkpointing and self.training
            x = checkpoint(block, x, mask, use_reentrant=False) if again else block(x, mask)
        tokens = self.norm(x)
        return Encoded(tokens, mask, tokens[:, 0], mask[:, 0])

    def stages(self) -> list[list[str]]:
        """Tokens of columns, blocks, last norm."""
        parts = [*(f"blocks.{k}." for k in range(len(self.blocks))), "norm."]
        stages = [[n for n, _ in self.named_parameters() if n.startswith(part)] for part in parts]
        return [["token", "weight", "bias", "missing", "values"], *stages]

    def processor(self) -> Processor:
        """Numbers as they are, values of categories by their codes."""
        return _Codes(self.vocabulary)

    def blank(self) -> dict[str, Tensor]:
        """A record that lacks every value."""
        processor = self.processor()
        return processor.pad([processor({})])

    def checkpoint_gradients(self) -> None:
        """Every block."""
        self.checkpointing = True

    @classmethod
    def learn(cls, cells: pa.ChunkedArray, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Each column's mean and standard deviation, or its values, the most frequent first; in the columns' order."""
        if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
            cells = pc.list_flatten(cells)  # several records a cell
        if not pa.types.is_struct(cells.type):
            raise ValueError(
                f"a table takes several columns, data.columns: {{NAME: [age, weight]}}, or one of objects {{column: value}}; "
                f"this one holds {cells.type}"
            )
        chosen, columns = settings["categories"], dict(zip((field.name for field in cells.type), cells.flatten()))
        for name in chosen:
            if name not in columns:
                raise ValueError(f"categories names no column {name!r}{nearest(name, columns)}; there are {', '.join(columns)}")
        found = {}
        for name, column in columns.items():
            try:
                found[name] = learned(column, name in chosen, settings["max_categories"])
            except ValueError as error:
                raise ValueError(f"the column {name!r} {error}") from None
        return found

    @staticmethod
    def rows_by_name(vocabulary: Mapping[str, Any]) -> dict[str, list[str]]:
        """Columns, and of ``values`` COLUMN=VALUE (COLUMN alone for what is unknown)."""
        numbers = [name for name, column in vocabulary.items() if "mean" in column]
        categories = {name: column["values"] for name, column in vocabulary.items() if "values" in column}
        values = [f"{name}={value}" if value else name for name, known in categories.items() for value in ("", *known)]
        every = [*numbers, *categories]
        return {"weight": numbers, "bias": every, "missing": every, "values": values}


class _Codes(Processor):
    kind = "table"
    draws = False

    def __init__(self, vocabulary: Mapping[str, Any]):
        self.columns = {name: "category" if "values" in column else "number" for name, column in vocabulary.items()}
        self.codes = {
            name: {value: code for code, value in enumerate(column["values"], UNKNOWN + 1)}
            for name, column in vocabulary.items()
            if "values" in column
        }

    def __call__(self, item: Mapping[str, Any], view: str | None = None) -> dict[str, Tensor]:
        """``numbers`` (A,), ``categories`` (C,), and whether one of them is ``unknown``."""
        numbers = [item.get(name) for name, kind in self.columns.items() if kind == "number"]
        codes = [MISSING if item.get(c) is None else known.get(name_of(item[c]), UNKNOWN) for c, known in self.codes.items()]
        return {
            "numbers": torch.tensor([float("nan") if x is None else float(x) for x in numbers], dtype=torch.float32),
            "categories": torch.tensor(codes, dtype=torch.long),
            "unknown": torch.tensor(UNKNOWN in codes),
        }

    def pad(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}
