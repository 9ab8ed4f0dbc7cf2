"""The learning-rate range test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import call, experiment, refused
from forked import together

from mmkt import find_lr, launch
from mmkt.feed import Feed
from mmkt.parts import ConfigError


def curve(low: float = 1e-5, high: float = 10.0, best: float = 1e-1, steps: int = 100) -> tuple[list[float], list[float]]:
    """Rates, and a loss that falls up to the best one and rises beyond."""
    rates = np.geomspace(low, high, steps)
    away = np.log10(rates / best)
    return rates.tolist(), (2.0 - np.exp(-(away**2))).tolist()


def test_smoothing_is_the_mean_weighted_by_age():
    losses = np.random.default_rng(0).normal(size=20)
    weights = find_lr.KEPT ** np.arange(20)[::-1]
    assert find_lr.smooth(losses.tolist())[-1] == pytest.approx(float((weights * losses).sum() / weights.sum()))
    assert find_lr.smooth([3.0, 3.0]) == pytest.approx([3.0, 3.0])


def test_what_a_known_curve_speaks_for():
    rates, losses = curve()
    found = find_lr.judged("full", rates, losses)
    assert found.careful == pytest.approx(found.lowest / 10, rel=0.05)
    # smoothing lags by some ten steps, a little over half a decade here
    assert 1e-1 <= found.lowest < 6e-1
    # exp(-x²) falls most at x = -1/√2, 0.02
    assert 1e-2 < found.suggested < found.lowest
    assert found.suggested == pytest.approx(10 ** (-1 - 0.5**0.5 + 0.35), rel=0.6)
    assert found.diverged is False
    noisy = np.array(losses) + np.random.default_rng(0).normal(0, 0.02, len(losses))
    assert find_lr.judged("full", rates, noisy.tolist()).lowest == pytest.approx(found.lowest, rel=1.0)
    assert find_lr.judged("full", rates, losses[:80]).diverged
    with pytest.raises(ConfigError, match="the loss was lowest at the first rates of 1e-05 to 10"):
        find_lr.judged("full", rates, np.linspace(1, 2, 100).tolist())
    assert find_lr.diverges([1.0] * 20 + [4.1])
    assert not find_lr.diverges([1.0] * 20 + [3.9])
    assert find_lr.diverges([-1.0] * 20 + [2.1])
    assert find_lr.diverges([float("nan")])


def test_rates_grow_geometrically_on_the_batches_of_training_and_nothing_is_left(tiny_settings, tmp_path, monkeypatch):
    drawn: dict[str, list] = {"test": [], "train": []}
    read: list[str] = []
    plain, rows = Feed.training, Feed.rows

    def training(self, start, stop, *args, **more):
        for batch in plain(self, start, stop, *args, **more):
            drawn[place[0]].append(batch.row.tolist())
            yield batch

    monkeypatch.setattr(Feed, "training", training)
    monkeypatch.setattr(Feed, "rows", lambda self, split: (read.append(split), rows(self, split))[1])
    place = ["test"]
    tiny_settings["data"]["features"] = str(tmp_path / "features")
    tiny_settings["transfer"] = {"name": "full", "frozen": ["encoders.text"], "lr": {"heads": 0.1}}
    config = experiment(tiny_settings)
    found = find_lr.find_lr(config, tmp_path / "lr", low=1e-4, high=10.0, steps=40)
    assert set(read) == {"train"}
    n = len(found.losses)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-4, 10.0, 40)[:n])
    assert found.losses[0] == pytest.approx(np.log(8), abs=0.4)
    assert not Path(config.run).exists()
    assert {p.name for p in (tmp_path / "lr").iterdir()} == {"lr.json", "lr.png"}
    assert (tmp_path / "lr/lr.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "lr/lr.json").read_text())["suggested"] == found.suggested
    place[0] = "train"
    launch.train(config)
    assert drawn["train"][:6] == drawn["test"][:6]
    monkeypatch.undo()
    again = find_lr.find_lr(config, tmp_path / "lr", low=1e-4, high=10.0, steps=40)
    assert again.losses == found.losses


def test_it_stops_where_the_loss_diverges_or_is_not_finite(tiny_settings, tmp_path):
    config = experiment(tiny_settings, "train.optimizer=sgd", "train.clip=null", "train.average=ema")
    found = find_lr.find_lr(config, tmp_path / "lr", low=1e-4, high=1e8, steps=60)
    assert found.diverged
    assert len(found.losses) == len(found.rates) < 60
    with pytest.raises(ConfigError, match="give a lower --from"):
        find_lr.find_lr(config, tmp_path / "lr", low=1e6, high=1e9, steps=60)
    assert not (tmp_path / "lr/run").exists()


def _found(folder: Path, world: int) -> None:
    config = experiment(json.loads((folder / "settings.json").read_text()))
    find_lr.find_lr(config, folder / f"lr-{world}", low=1e-4, high=1e-1, steps=20)


def test_several_processes_find_what_one_does(tiny_settings, tmp_path):
    tiny_settings["data"]["batch_size"] = 8
    tiny_settings["train"]["optimizer"] = "sgd"
    (tmp_path / "settings.json").write_text(json.dumps(tiny_settings))
    together(2, _found, tmp_path, 2, said=tmp_path)
    _found(tmp_path, 1)
    one, two = (json.loads((tmp_path / f"lr-{world}/lr.json").read_text()) for world in (1, 2))
    np.testing.assert_allclose(one["losses"], two["losses"], atol=1e-5)
    assert one["rates"] == two["rates"]


def test_the_command(tiny_settings, config_file, tmp_path, capfd):
    file = config_file(tiny_settings)
    words = ["find-lr", file, "transfer=lp_ft", "--from", "1e-4", "--to", "1", "--steps", "30", "--out", tmp_path / "lr"]
    status, out, err = call(capfd, *words, "--phase", "probe")
    assert status == 0, err
    assert f"mmkt train {file} transfer=lp_ft train.lr=" in out
    assert "phase probe, " in out
    assert "lr.png" in err
    status, out, _ = call(capfd, *words, "--json")
    assert json.loads(out)["phase"] == "full"
    assert "there is no phase 'prob'; did you mean 'probe'?" in refused(capfd, *words, "--phase", "prob")
    assert "--from 2 --to 1" in refused(capfd, *words, "--from", "2")
    assert "20 or more, found 5" in refused(capfd, *words, "--steps", "5")
