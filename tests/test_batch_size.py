"""The largest batch that fits, with a memory that is made up."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import worker
from accelerate import Accelerator
from conftest import experiment, refused
from forked import together

from mmkt import batch_size, launch
from mmkt.objectives.classify import Classify
from mmkt.parts import ConfigError


def test_it_is_the_largest_to_an_eighth():
    random.seed(0)
    for _ in range(500):
        unit, limit, most = random.choice([1, 2, 3, 4]), random.randint(1, 5000), random.randint(1, 5000)
        tried = []
        fits = lambda size: (tried.append(size), size <= limit)[1]  # noqa: E731, B023
        if limit < unit:
            with pytest.raises(ConfigError, match=r"not even . rows fit"):
                batch_size.largest(fits, most, unit)
            continue
        found, best = batch_size.largest(fits, most, unit), max(unit, min(limit, most) // unit * unit)
        assert found <= best
        assert found % unit == 0
        assert best - found <= max(unit, found // 8)
        assert max(tried) <= max(unit, most)
        assert len(tried) == len(set(tried)) <= 2 * 13 + 4


def test_powers_of_two_stay_multiples_of_eight():
    assert batch_size.largest(lambda size: size <= 100, 10_000) == 96
    assert batch_size.largest(lambda size: size <= 64, 10_000) == 64
    assert 264 <= batch_size.largest(lambda _: True, 300) <= 300


def full(monkeypatch, limit: int, seen: list[int]) -> None:
    """A device that has memory for so many rows."""
    plain = Classify.forward

    def forward(self, model, batch, outputs):
        seen.append(batch.size)
        if batch.size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return plain(self, model, batch, outputs)

    monkeypatch.setattr(Classify, "forward", forward)


def found(tiny_settings, *more: str) -> int:
    config = experiment(tiny_settings, "data.batch_size=1", *more)
    setup = launch.build(config)
    return batch_size.find(setup.learner, setup.feed, launch.plan_of(setup, config), config.train, Accelerator())


def test_steps_are_tried_until_memory_is_out(tiny_settings, monkeypatch):
    seen: list[int] = []
    full(monkeypatch, 21, seen)
    assert found(tiny_settings, "transfer=lp_ft", "data.dropout={text: 0.9}") == 20
    assert seen[:5] == [1] * 4 + [2], "two steps of each of two phases"
    assert set(seen) == {1, 2, 4, 8, 16, 32, 24, 20, 22}


def test_processes_agree_on_what_fits_all_of_them(tiny_settings, tmp_path):
    tiny_settings["data"]["batch_size"] = 2
    (tmp_path / "experiment.json").write_text(json.dumps(tiny_settings))
    together(2, worker.sized, tmp_path, 2, said=tmp_path)
    assert [(tmp_path / f"{rank}.size").read_text() for rank in range(2)] == ["10", "10"]


def test_another_error_is_not_taken_for_one_of_memory(tiny_settings, monkeypatch):
    monkeypatch.setattr(Classify, "forward", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        found(tiny_settings)


def test_no_more_rows_are_tried_than_there_are(tiny_settings):
    assert 64 <= found(tiny_settings) <= 72  # of 72 rows, to an eighth


def test_the_longest_rows_of_each_modality_come_first(tiny_settings):
    feed = launch.build(experiment(tiny_settings)).feed
    rows = batch_size.longest(feed)
    assert sorted(rows) == sorted(feed.rows("train"))
    lengths = [len(text.as_py()) for text in feed.manifest.table["text"]]
    sounds = [len(sound.as_py()) for sound in feed.manifest.table["audio"]]
    train = feed.rows("train")
    assert max(lengths[k] for k in rows[:3]) == max(lengths[k] for k in train)
    assert max(sounds[k] for k in rows[:3]) == max(sounds[k] for k in train)
    padded, usual = feed.batch_of(rows[:6]), feed.batch_of(np.setdiff1d(train, rows[:12])[:6])
    for m, key in (("text", "input_ids"), ("audio", "waveform")):
        assert padded.inputs[m][key].shape[1] >= usual.inputs[m][key].shape[1]


def test_the_run_has_the_number_and_resumes_with_it(tiny_settings, monkeypatch, capsys):
    full(monkeypatch, 10, [])
    monkeypatch.setattr(batch_size, "refuse", lambda *_: None)
    whole = experiment(tiny_settings, "data.batch_size=auto", "train.steps=4", "train.save_every=2", "train.evaluate_every=2")
    launch.train(whole)
    assert "data.batch_size: 10 rows fit (auto)" in capsys.readouterr().err
    run = Path(tiny_settings["run"])
    assert json.loads((run / "config.json").read_text())["data"]["batch_size"] == 10
    assert json.loads((run / "best/config.json").read_text())["data"]["batch_size"] == 10
    plain = experiment(tiny_settings, "data.batch_size=10", f"run={run}-plain", "train.steps=4", "train.evaluate_every=2")
    launch.train(plain)
    lines = [(x / "metrics.jsonl").read_text().splitlines() for x in (run, Path(f"{run}-plain"))]
    losses = [[json.loads(line).get("loss") for line in each] for each in lines]
    assert losses[0] == losses[1], "trying leaves no trace"
    monkeypatch.setattr(batch_size, "find", lambda *_: pytest.fail("a resumed run has its number"))
    launch.train(whole, resume=True)


def test_a_cpu_streams_and_other_commands_refuse_it(tiny_settings, config_file, capfd, monkeypatch):
    assert "Give a number" in refused(capfd, "train", config_file(tiny_settings), "data.batch_size=auto")
    with pytest.raises(ConfigError, match="give a number here"):
        launch.build(experiment(tiny_settings, "data.batch_size=auto")).feed.streams()
    tiny_settings["data"]["streams"] = {"a": {"quota": 2}}
    assert "data.streams" in refused(capfd, "train", config_file(tiny_settings), "data.batch_size=auto")
    assert "data.batch_size" in refused(capfd, "train", config_file(tiny_settings), "data.batch_size=most")
