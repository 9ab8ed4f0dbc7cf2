"""A manifest's rows as vectors, ready for an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from accelerate import Accelerator

from mmkt import distributed
from mmkt.data import manifest as manifests
from mmkt.evaluate import NO_ROWS, list_bad_rows, revived
from mmkt.feed import Feed
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import predict


def embed(
    path: str,
    manifest: str,
    overrides: Sequence[str] = (),
    *,
    plugins: Sequence[str] = (),
    out: str | None = None,
    normalize: bool = False,
) -> Path:
    """Vectors of a manifest's rows: ``id, split, domain, group``, a column a modality and ``fused``, in row order.

    A modality's column has its pooled vector in the shared space, (D,) float32, null where the row lacks it.

    Args:
        path: a checkpoint's folder, or a Hub id.
        manifest: the rows; label columns are not read.
        overrides: of ``data`` (``data.columns``, ``data.batch_size``).
        plugins: folders or packages that the checkpoint's parts may come from.
        out: the Parquet file; by default ``embeddings-MANIFEST.parquet`` in the checkpoint's folder.
        normalize: scale every vector to length 1.

    Raises:
        ValueError: the manifest can't be used, or a modality's name is that of another column.
    """
    accelerator, parts = Accelerator(), Parts(plugins)
    model, config = revived(path, overrides, parts, accelerator, ("data",))
    taken = [m for m in model.modalities if m in (*manifests.RESERVED, "fused")]
    if taken:
        raise ConfigError(f"the modality {taken[0]!r} has the name of another column of the table; train it under another name")
    feed, bad = Feed(manifests.read(manifest), model, config.data, config.seed, labelled=NO_ROWS), []
    rows = np.arange(len(feed.manifest.table))
    if config.data.bad_rows == "drop":
        bad = feed.unreadable(rows)
        rows = np.flatnonzero(~np.asarray(pc.is_in(feed.manifest.table["id"], pa.array([cell.row for cell in bad], pa.string()))))
    predictions = predict(model, feed, rows, device=accelerator.device, autocast=accelerator.autocast, vectors=True)
    # a Hub id is no folder: its vectors go to the current one
    file = Path(out) if out else (Path(path) if Path(path).is_dir() else Path()) / f"embeddings-{Path(manifest).stem}.parquet"
    if distributed.rank() == 0:
        columns = {name: predictions.table[name] for name in manifests.RESERVED}
        columns |= {name: predictions.table[f"vector.{name}"] for name in (*model.modalities, "fused")}
        table = pa.table({name: _unit(x) if normalize and name not in manifests.RESERVED else x for name, x in columns.items()})
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        pq.write_table(table, new)
        new.replace(file)
        if bad:
            list_bad_rows(bad, file.with_suffix(".bad_rows.jsonl"))
    distributed.wait()
    return file


def _unit(column: pa.ChunkedArray) -> pa.Array:
    """Vectors scaled to length 1; null stays null."""
    (array,) = column.chunks
    if array.null_count == len(array):
        return array
    there = ~array.is_null().to_numpy(zero_copy_only=False)
    vectors = array.flatten().to_numpy().reshape(there.sum(), -1)  # (rows that have one, D)
    unit = iter(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12))
    return pa.array([next(unit) if on else None for on in there], column.type)
