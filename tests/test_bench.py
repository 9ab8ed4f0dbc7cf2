"""The benchmark of large manifests, on a small one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmkt.data.manifest import fingerprint, read

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import bench_manifest


def test_the_same_rows_in_every_format(tmp_path):
    bench_manifest.make(tmp_path, ["parquet", "csv", "jsonl", "arrow"], 3000)
    found = [read(tmp_path / f"manifest.{name}") for name in ("parquet", "csv", "jsonl", "arrow")]
    assert [len(manifest.table) for manifest in found] == [3000] * 4
    assert len({fingerprint(manifest) for manifest in found}) == 1
    command = bench_manifest.commands("parquet")["data check --no-content"]
    seconds, peak = bench_manifest.cost(command, tmp_path)
    assert seconds > 0.1
    assert 20e6 < peak < 400e6, "without torch"


def test_a_command_that_fails_is_no_figure(tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: no"):
        bench_manifest.cost([sys.executable, "-c", "raise ValueError('no')"], tmp_path)


def test_memory_is_of_the_whole_tree(tmp_path):
    child = "import time; x = b'a' * 50_000_000; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert bench_manifest.cost([sys.executable, "-c", parent], tmp_path).peak > 55e6
