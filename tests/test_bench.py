"""The scripts that make RESULTS.md, on little."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import experiment

from mmkt.data.manifest import fingerprint, read

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import bench_contrast
import bench_evaluate
import bench_fusion
import bench_manifest
import synthetic


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


def test_fusions_over_concat(monkeypatch, capsys):
    size = ["--rows", "4", "--tokens", "3", "--dim", "64", "--rounds", "1", "--markdown"]
    monkeypatch.setattr(sys, "argv", ["bench_fusion.py", "sum", "tensor", "merged", *size])
    bench_fusion.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {cells[1].strip(): cells[2:] for line in lines if len(cells := line.split("|")) > 3}
    assert float(rows["concat"][4]) == 1.0
    assert rows["sum"][1].strip() == f"{3 * (64**2 + 64) + 64:,}"
    assert any(line.startswith("tensor refuses: the tensor of 3 modalities of 64 features") for line in lines)


def test_fusions_beside_their_ceilings(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(Path(__file__).parent.parent / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "FIXED", ("train.steps=2", "train.evaluate_every=2", "evaluate.resamples=0"))
    monkeypatch.setattr(sys, "argv", ["synthetic.py", "--tasks", "xor", "--fusions", "gated", "--markdown"])
    for _ in range(2):  # the second time it reads what has ended
        synthetic.main()
    head, _, line = capsys.readouterr().out.splitlines()[-3:]
    assert "xor (0.997)" in head
    assert line.split(" | ")[-1].startswith("interacts"), "two steps are too few, and that is said"
    assert len(list((tmp_path / "checkpoints/synthetic").iterdir())) == 2


def test_a_broken_declaration_is_named():
    facts = {"interacts": False, "missing": "exact"}
    assert synthetic.verdict(facts, "xor", 0.9, 0.997) == "no interaction"
    assert synthetic.verdict(facts, "lost", 0.93, 0.958) == "exact (lost)"
    assert synthetic.verdict(facts, "lost", 0.95, 0.958) == synthetic.verdict(facts, "xor", 0.6, 0.997) == ""


def test_all_subsets_over_a_plain_pass(tiny_settings, config_file, monkeypatch, capsys):
    """The table by hand from known seconds; they are those of both, round by round, of so many fusions of all modalities."""
    config = experiment(tiny_settings)
    found = bench_evaluate.seconds(config, 12, 2)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
        ("plain", "subsets", "figures", "all figures"), 2
    )
    assert min(min(values) for values in found.values()) > 0
    known = {"plain": [3.0, 2.0, 9.0], "subsets": [4.0, 3.0, 6.0], "figures": [1.0, 1.0, 1.0], "all figures": [2.0, 2.0, 5.0]}
    monkeypatch.setattr(bench_evaluate, "seconds", lambda *_: known)
    monkeypatch.setattr(
        sys,
        "argv",
        ["bench_evaluate.py", "train.steps=1", "--config", str(config_file(tiny_settings)), "--fusions", "concat", "sum"],
    )
    bench_evaluate.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[0] in ("concat", "sum")]
    assert lines == [[name, "3.00", "4.00", "1.33", "6.00", "1.50"] for name in ("concat", "sum")]


def test_retrieval_among_many(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_evaluate.py", "--retrieval", "300", "--dim", "32"])
    bench_evaluate.main()
    assert "300 queries among as many entries, plain and CSLS: " in capsys.readouterr().out


def test_contrast(monkeypatch, capsys):
    assert bench_contrast.asked("ring", 64, 8, 16)["s"] > 0  # by a process of its own
    assert bench_contrast.measured("plain", 64, 8, 16)["GB"] < 1
    grows = {"plain": 2, "chunked": 1, "ring": 1}
    monkeypatch.setattr(bench_contrast, "asked", lambda form, rows, *_: {"GB": (rows / 1024) ** grows[form], "s": 1.0})
    monkeypatch.setattr(sys, "argv", ["bench_contrast.py", "--rows", "1024", "2048", "4096", "--most", "2048"])
    bench_contrast.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:4]] == ["1024", "2048", "4096"]
    assert lines[2][1:] == ["4.000", "4.00", "1.0", "2.000", "2.00", "1.0", "2.000", "2.00", "1.0"]
    assert lines[3][1:3] == ["16.000*", "4.00"]
