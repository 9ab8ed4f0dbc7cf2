"""scripts/simulate_study.py: what it makes up is what it says, and a file that was cut off is continued."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import simulate_study
from simulate_study import AGREE, Cell, answers, study


@pytest.mark.parametrize("agree", AGREE)
def test_accuracies_are_what_the_cell_says(agree):
    random = np.random.default_rng(0)
    right = np.stack([answers(random, Cell(5, 2, 2000, agree, 5)).mean(0) for _ in range(40)])  # (studies, fusions, seeds)
    assert right[:, 2:].mean() == pytest.approx(0.8, abs=0.01)
    assert (right[:, 1] - right[:, 0]).mean() == pytest.approx(0.05, abs=0.01)
    within = right.var(2, ddof=1).mean()  # of seeds: their spread, and chance in the rows of each
    assert 0.02**2 < within < 0.02**2 + 0.16 / 2000


def test_a_study_depends_on_its_cell_and_number_alone():
    cell = Cell(5, 0.2, 300, "by fusion", 5)
    first = study((cell, 3), 100)
    study((cell._replace(rows=200), 0), 100)
    assert study((cell, 3), 100) == first != study((cell, 4), 100)
    assert set(first["claimed"]) == set(first["found"]) == set(simulate_study.RULES)


def test_a_file_that_was_cut_off_is_continued(tmp_path, monkeypatch, capsys):
    def call(jobs, studies):
        words = f"simulate_study --file {tmp_path / 'found.jsonl'} --studies {studies} --power 1 --gains 5 --spreads 0.2 1"
        monkeypatch.setattr(
            sys, "argv", [*words.split(), "--rows", "200", "--agree", "high", "--resamples", "50", "--jobs", jobs]
        )
        simulate_study.main()
        return capsys.readouterr().out, (tmp_path / "found.jsonl").read_text()

    out, whole = call("2", 3)
    assert "8 of 8 studies simulated now" in out
    assert "Studies in which a gain of 5 points is found" in out
    lines = whole.splitlines(keepends=True)
    (tmp_path / "found.jsonl").write_text("".join(lines[:4]) + lines[4][:30])
    out, again = call("1", 3)
    assert "4 of 8 studies simulated now" in out
    assert [json.loads(line) for line in again.splitlines()] == [json.loads(line) for line in lines]
    assert "0 of 6 studies simulated now" in call("1", 2)[0]
