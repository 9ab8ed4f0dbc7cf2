"""One process and several: the same curves, the same gradients."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import worker
from conftest import rows_of_three, settings, write
from forked import together

from mmkt.checkpoint import read_tensors
from mmkt.config import check
from mmkt.experiment import Experiment
from mmkt.feed import Feed
from mmkt.learner import Learner
from mmkt.model import Model
from mmkt.parts import Parts
from mmkt.predictions import mean_loss, predict
from mmkt.preparation import open_manifest


def variants(tmp_path: Path, manifest: Path, bert: Path) -> dict[str, dict]:
    """The same experiment plainly, and with everything that makes ranks differ."""
    rows = rows_of_three(60, seed=1)
    random = np.random.default_rng(0)
    unlabelled = [row | {"kind": None if k > 8 and random.random() < 0.35 else row["kind"]} for k, row in enumerate(rows)]
    deaf = [row | {"audio": None if row["domain"] == "outdoor" else row["audio"]} for row in rows]
    plain = settings(manifest, bert, tmp_path / "unused")
    plain["data"]["batch_size"] = 8
    plain["train"] |= {"steps": 50, "lr": 3e-4, "evaluate_every": 50, "save_every": 50}
    plain["model"]["encoders"]["image"]["size"] = 16
    found = {name: copy.deepcopy(plain) for name in ("plain", "accumulated", "unlabelled", "deaf_rank", "dropped")}
    found["accumulated"]["train"]["accumulate"] = 2
    found["accumulated"]["data"]["batch_size"] = 4
    found["unlabelled"]["data"]["manifest"] = str(write(unlabelled, tmp_path / "unlabelled.parquet"))
    found["deaf_rank"]["data"]["manifest"] = str(write(deaf, tmp_path / "deaf.parquet"))
    # a rank takes every second draw: of one indoor and one outdoor row, rank 1 never hears anything
    found["deaf_rank"]["data"]["streams"] = {"a": {"quota": 1, "domain": "indoor"}, "b": {"quota": 1, "domain": "outdoor"}}
    # pictures through the text encoder's blocks: one body, two modalities, each missing on a rank at times
    shared = {"name": "borrow", "reads": "image", "body": "text", "size": 16, "channels": 1, "patch": 8}
    found["deaf_rank"]["model"]["encoders"]["image"] = shared
    found["deaf_rank"]["model"]["adapters"] = {"text": {"name": "lora", "r": 4}}
    found["measured"] = measured(copy.deepcopy(found["deaf_rank"]), tmp_path)
    found["dropped"]["data"]["dropout"] = {"text": 0.3, "image": 0.3, "audio": 0.3}
    return found


def measured(plain: dict, tmp_path: Path) -> dict:
    """A table beside the text, with values missing; rank 1 never sees it."""
    rows, random = rows_of_three(60, seed=1), np.random.default_rng(0)
    for row in rows:
        bright, high = int(row["kind"][1]) >> 2 & 1, int(row["kind"][1]) >> 1 & 1
        there = row["domain"] == "indoor"
        row["light"] = 5.0 * bright + float(random.normal()) if there and random.random() < 0.8 else None
        row["pitch"] = ["low", "high"][high] if there else None
        del row["image"], row["audio"]
    plain["data"] |= {"manifest": str(write(rows, tmp_path / "measured.parquet")), "columns": {"table": ["light", "pitch"]}}
    table = {"name": "table", "width": 32, "layers": 1, "heads": 2, "dropout": 0.0}
    plain["model"]["encoders"] = {"text": plain["model"]["encoders"]["text"], "table": table}
    return plain


NAMES = ("plain", "accumulated", "unlabelled", "deaf_rank", "measured", "dropped")
# of those that four processes can share evenly, the two in which their rows differ most
FOUR = ("unlabelled", "dropped")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def curves(tmp_path_factory, tiny_manifest, tiny_bert) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    for name, data in variants(folder, tiny_manifest, tiny_bert).items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    for world, names in ((1, NAMES), (2, NAMES), (4, FOUR)):
        together(world, worker.curves, folder, world, names, said=folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_give_the_curve_of_one(curves, name):
    one, two = losses(curves / f"{name}-1"), losses(curves / f"{name}-2")
    assert len(one) == len(two) == 50
    assert np.mean(one[-5:]) < np.mean(one[:5]) - 0.05  # it learns
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FOUR)
def test_four_processes_give_the_curve_of_one(curves, name):
    one, four = losses(curves / f"{name}-1"), losses(curves / f"{name}-4")
    assert len(one) == len(four) == 50
    np.testing.assert_allclose(four, one, atol=1e-5, rtol=0)


def test_variants_differ(curves):
    """The comparison above would pass on curves that ignore what sets the variants apart."""
    firsts = {name: losses(curves / f"{name}-1") for name in ("plain", "unlabelled", "deaf_rank", "dropped")}
    assert len({tuple(curve) for curve in firsts.values()}) == 4


def test_accumulation_gives_the_curve_of_the_big_batch(curves):
    np.testing.assert_allclose(losses(curves / "accumulated-1"), losses(curves / "plain-1"), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tiny_manifest, tiny_bert) -> Path:
    """FSDP2 on two processes, then one process: a rank without sound, two phases, batch norm."""
    folder = tmp_path_factory.mktemp("sharded")
    found = variants(folder, tiny_manifest, tiny_bert)
    deaf, thawed, normed = (copy.deepcopy(found[name]) for name in ("deaf_rank", "deaf_rank", "plain"))
    deaf["objectives"]["align"] = {"name": "align"}
    thawed["train"] |= {"accumulate": 2, "checkpointing": True, "select": "loss", "clip": 0.05}
    normed["model"]["encoders"]["image"]["model"] = "test_efficientnet"
    normed["train"]["select"] = "loss"
    for name, data, steps in (("deaf_rank", deaf, 6), ("thawed", thawed, 4), ("normed", normed, 4)):
        data["train"] |= {"steps": steps, "lr": 1e-4, "evaluate_every": steps // 2, "save_every": steps // 2}
        data["train"]["average"] = {"name": "swa", "start": 0.4} if name == "thawed" else "ema"
        (folder / f"{name}.json").write_text(json.dumps(data))
    found["deaf_rank"]["train"] |= {"steps": 20, "evaluate_every": 20, "save_every": 20}
    (folder / "long.json").write_text(json.dumps(found["deaf_rank"]))
    for world in (2, 1):
        together(world, worker.sharded, folder, world, said=folder)
    return folder


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in read_tensors(file).items()}


def assert_close(one: dict[str, np.ndarray], two: dict[str, np.ndarray], **tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("name", ["deaf_rank", "thawed"])
def test_fsdp2_gives_the_run_of_one_process(sharded, name):
    one, two = sharded / f"{name}-1", sharded / f"{name}-2"
    assert len(losses(one)) == {"deaf_rank": 6, "thawed": 4}[name]
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5, rtol=0)
    for file in ("best/model", "last/learner", "last/optimizer", "last/average"):
        assert_close(tensors(one / f"{file}.safetensors"), tensors(two / f"{file}.safetensors"), atol=1e-5, rtol=0)


def test_fsdp2_gives_the_curve_of_one_process(sharded):
    """With offloaded shards."""
    one, two = losses(sharded / "long-1"), losses(sharded / "long-2")
    assert len(one) == 20
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)


def reloaded(folder: Path, name: str) -> tuple[Learner, Feed]:
    """What one process makes of a sharded run's best checkpoint."""
    model = Model.from_pretrained(folder / f"{name}-2/best")
    config = check(Experiment, json.loads((folder / f"{name}.json").read_text()), Parts())
    feed = Feed(open_manifest(config.data, config.seed, Parts()), model, config.data, config.seed)
    return Learner.from_config(config, model, feed.domains), feed


@pytest.mark.parametrize("name", ["deaf_rank", "thawed"])
def test_one_process_loads_what_fsdp2_has_saved(sharded, name):
    learner, feed = reloaded(sharded, name)
    found = predict(learner.model, feed, feed.rows("test")).table["kind.logits"].to_pylist()
    np.testing.assert_allclose(json.loads((sharded / f"{name}-2/logits.json").read_text()), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["thawed", "normed"])
def test_what_chose_the_best_checkpoint_is_its_own_figure(sharded, name):
    """Batch norm's statistics are each process's own, until all evaluate with those that are saved."""
    learner, feed = reloaded(sharded, name)
    lines = [json.loads(line) for line in (sharded / f"{name}-2/metrics.jsonl").read_text().splitlines()]
    chosen = min(line["validation/loss"] for line in lines if "validation/loss" in line)
    assert mean_loss(learner, feed, feed.rows("validation"), "cpu", nullcontext) == pytest.approx(chosen, abs=1e-5)


def test_a_run_under_fsdp2_resumes_exactly(sharded):
    whole, resumed = sharded / "deaf_rank-2", sharded / "deaf_rank-resumed"
    assert len(losses(sharded / "deaf_rank-stopped")) == 4
    assert losses(resumed) == losses(whole)
    for file in ("best/model", "last/learner", "last/optimizer", "last/average"):
        assert_close(tensors(whole / f"{file}.safetensors"), tensors(resumed / f"{file}.safetensors"), atol=0, rtol=0)


def test_one_process_resumes_what_fsdp2_began(sharded):
    assert len(losses(sharded / "deaf_rank-crossed")) == 6
    np.testing.assert_allclose(losses(sharded / "deaf_rank-crossed"), losses(sharded / "deaf_rank-1"), atol=1e-5, rtol=0)
