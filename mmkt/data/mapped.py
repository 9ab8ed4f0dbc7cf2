"""Tables in files that are mapped into memory: processes share their pages, and those not read take none."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, BinaryIO
from weakref import WeakSet

import pyarrow as pa

_MAPS: WeakSet[mmap.mmap] = WeakSet()


class ManifestError(ValueError):
    """The manifest cannot be used as it is; the message says where and what to do."""


def table_of(file: BinaryIO) -> pa.Table:
    """The table in an Arrow IPC file, without a copy (compressed buffers are decompressed into memory).

    Raises:
        pa.ArrowException: it is damaged.
    """
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _MAPS.add(pages)
    reader = pa.ipc.open_file(pa.py_buffer(pages))
    batches = []
    for number in range(reader.num_record_batches):
        batches.append(reader.get_batch(number))
        batches[-1].validate(full=True)  # an offset that points outside would be a crash later
        release()
    return pa.Table.from_batches(batches, reader.schema)


def spill(batches: Iterable[pa.RecordBatch]) -> list[pa.Table]:
    """Write batches into temporary files without a name and map these: a table for every run of batches of one schema.

    Raises:
        ManifestError: the temporary folder has no room.
    """
    schema: pa.Schema | None = None
    writer: Any = None
    with ExitStack() as stack:  # closes the files, whose pages stay mapped
        files: list[BinaryIO] = []
        for batch in batches:
            if batch.schema != schema:
                if writer is not None:
                    _written(writer.close)
                files.append(stack.enter_context(_written(tempfile.TemporaryFile)))
                schema, writer = batch.schema, pa.ipc.new_file(pa.PythonFile(files[-1], "w"), batch.schema)
            _written(writer.write_batch, batch)
        if writer is not None:
            _written(writer.close)
        for file in files:
            _written(file.flush)
        return [table_of(file) for file in files]


def _written(act: Callable, *values: Any) -> Any:
    try:
        return act(*values)
    except OSError as error:
        raise ManifestError(
            f"cannot write the manifest's rows into {tempfile.gettempdir()} ({error}): let TMPDIR name a folder with more "
            "room, or store the manifest as an .arrow file (Arrow IPC, not compressed), which is used where it lies"
        ) from None


def release() -> None:
    """Give back what is not needed: pages that were read, which come back from the file, and memory that Arrow has kept."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for pages in list(_MAPS):
            pages.madvise(mmap.MADV_DONTNEED)
    pa.default_memory_pool().release_unused()
