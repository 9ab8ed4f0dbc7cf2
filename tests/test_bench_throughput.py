"""The scripts that measure throughput, on little."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import _beside
import bench_gpu
import bench_loading


def test_two_sides_by_hand(capsys):
    """Ratios within pairs, the median over them; who is first changes."""
    heard = []

    def hear(command):
        side = command[0]
        heard.append(side)
        k = heard.count(side)
        rate = {"ours": [100.0, 300.0, 90.0], "theirs": [50.0, 100.0, 100.0]}[side][k - 1]
        return {"ms": 1e3 / rate, "rows/s": rate, "GB": 1.0 if side == "ours" else 2.0, "losses": [3.0, 2.0, 1.0, 0.5]}

    _beside.compare(["ours"], ["theirs"], "other", 3, hear)
    assert heard == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("; ")[-1].split()[0] for line in lines[:3]] == ["2.000", "3.000", "0.900"]
    assert lines[3].startswith("mmkt over other: 2.000 times the rows a second, 0.500 times the peak memory")
    assert lines[-1] == "mean loss of steps 31 to 40: mmkt 0.5000, other 0.5000"


def test_a_side_that_fails_is_no_figure():
    with pytest.raises(RuntimeError, match="ValueError: no"):
        _beside.heard([sys.executable, "-c", "raise ValueError('no')"])
    assert _beside.heard([sys.executable, "-c", "print('words'); print('{\"ms\": 2}')"]) == {"ms": 2}


def test_the_mean_step_leaves_out_the_steps_up_to_the_first_line_of_log():
    clock = _beside.Clock()
    clock.marks = [*range(0, 90, 9), 82.0, 85.0, 90.0]  # ten, then steps of 1, 3 and 5
    assert clock.seconds() == 3.0
    clock.beforehand = 0.5
    assert clock.seconds() == 3.5
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    _beside.drop_nothing(module)
    assert module[0].p == 0.0


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.*")
def test_steps_of_usual_size_run_dry(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--dry", "--batch", "2", "4", "--steps", "1", "--peak", "0.001"])
    bench_gpu.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| 2 ", "| 4 "))]
    assert [row[0] for row in rows] == ["| 2", "| 4"]
    two, four = (float(row[5]) for row in rows)
    assert four == pytest.approx(2 * two, rel=1e-3), "twice the rows are twice the work"
    milliseconds, share = float(rows[1][3]), float(rows[1][6].rstrip("%"))
    assert share == pytest.approx(100 * four * 1e12 / (milliseconds / 1e3) / 1e9, rel=0.01)


def test_a_devices_peak_is_the_most_exact_name():
    assert bench_gpu.peak_of("NVIDIA H100 80GB HBM3", None) == 989e12
    assert bench_gpu.peak_of("NVIDIA H100 PCIe", None) == 756e12
    assert bench_gpu.peak_of("NVIDIA L40S", None) == 362e12
    assert bench_gpu.peak_of("NVIDIA L4", None) == 121e12
    assert bench_gpu.peak_of("CPU", None) is None
    assert bench_gpu.peak_of("CPU", 2.0) == 2e12


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_only_a_dry_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py"])
    with pytest.raises(SystemExit, match="--dry"):
        bench_gpu.main()


def test_loading_by_workers_and_epochs(tiny_settings, config_file, monkeypatch, capsys):
    tiny_settings["data"]["validation"] = None
    more = ["--batches", "4", "--steps", "1", "--workers", "0", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_loading.py", str(config_file(tiny_settings)), "data.batch_size=8", *more])
    bench_loading.main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[:2] for row in rows] == [["0", "first"], ["0", "second"], ["2", "first"], ["step", ""]]
    assert all(float(row[2]) > 0 for row in rows)
    shares = [sum(float(cell.rstrip("%")) for cell in row[3:]) for row in rows[:2]]
    assert all(0 < share <= 102 for share in shares)
    assert rows[1][3] == "0%", "all is cached"
