"""Robust accuracy of several trainings, over seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import robust_arms

from mmkt import report
from mmkt.checkpoint import write_json
from mmkt.robust_accuracy import METRIC
from mmkt.score import About


def attacked(folder, clean, image, letters):
    rows = [
        ("none", clean),
        ("image.fgsm", image + 0.1),
        ("image.worst", image),
        ("image.pgd@2", 0.0),
        ("joint.worst", image / 2),
    ]
    rows += [("text edits.characters", letters)]
    (folder / "best/attacked").mkdir(parents=True)
    made = [About()._replace(condition=name).row("t", METRIC, value, 10, 0.0, 1.0) for name, value in rows]
    report.append(made, folder / "best/attacked/attacks.jsonl")
    write_json(folder / "best/attacked/asked.json", {"settings": []})


def test_the_table_is_of_worst_cases_over_seeds(tmp_path, monkeypatch, capsys):
    for arm, shift in (("concat", 0.0), ("gated", 0.1)):
        for seed in (0, 1, 2):
            attacked(tmp_path / f"run-{arm}-{seed}", 0.8 + shift, 0.2 + 0.1 * seed + shift, 0.5)
    monkeypatch.setattr(sys, "argv", ["robust_arms.py", str(tmp_path / "run"), "--arms", "concat", "gated"])
    robust_arms.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0] == "| arm | none | image | joint | text edits.characters | joint − worst of one |"
    # 0.2, 0.3, 0.4: t(0.975, 2) · 0.1 / √3 = 0.248; joint is half of the image's: −0.1, −0.15, −0.2
    image, joint, gap = "0.300 [0.052, 0.548]", "0.150 [0.026, 0.274]", "-0.150 [-0.274, -0.026]"
    assert lines[2] == f"| concat | 0.800 [0.800, 0.800] | {image} | {joint} | 0.500 [0.500, 0.500] | {gap} |"
    assert lines[3].startswith("| gated | 0.900 [0.900, 0.900] | 0.400 [0.152, 0.648] |")
    # paired: each seed's image is 0.1 above, whatever the seeds' spread
    assert lines[6].startswith("| gated | +0.100 [+0.100, +0.100] | +0.100 [+0.100, +0.100] | +0.050 [+0.050, +0.050] |")


def test_an_arm_without_a_modality_has_no_figure_of_it(tmp_path, monkeypatch, capsys):
    attacked(tmp_path / "run-both-0", 0.8, 0.2, 0.5)
    attacked(tmp_path / "run-text-0", 0.7, 0.1, 0.4)
    file = tmp_path / "run-text-0/best/attacked/attacks.jsonl"
    file.write_text(
        "".join(line for line in file.read_text().splitlines(keepends=True) if '"image' not in line and '"joint' not in line)
    )
    monkeypatch.setattr(sys, "argv", ["robust_arms.py", str(tmp_path / "run"), "--arms", "both", "text", "--seeds", "0"])
    robust_arms.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[3] == "| text | 0.700 |  |  | 0.400 |  |"
    assert lines[4] == "| arm | none | text edits.characters |"
    assert lines[6] == "| text | -0.100 | -0.100 |"


def test_other_settings_than_those_it_was_attacked_with_are_refused(tmp_path, monkeypatch):
    attacked(tmp_path / "run-concat-0", 0.8, 0.2, 0.5)
    monkeypatch.setattr(sys, "argv", ["robust_arms.py", str(tmp_path / "run"), "evaluate.robustness.rows=7", "--arms", "concat"])
    with pytest.raises(SystemExit, match=r"attacked was attacked with other settings \(no settings\): give these"):
        robust_arms.main()


def test_a_run_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["robust_arms.py", str(tmp_path / "run"), "--arms", "concat"])
    with pytest.raises(SystemExit, match=r"there is no .*run-concat-0/best: scripts/seeds.py trains"):
        robust_arms.main()
    monkeypatch.setattr(sys, "argv", ["robust_arms.py", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        robust_arms.main()
    assert "--arms: which of RUN-ARM-SEED?" in capsys.readouterr().err
