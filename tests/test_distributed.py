"""One process and several: the same curves, the same gradients."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import rows_of_three, settings, write

WORKER = Path(__file__).parent / "worker.py"


def start(world: int, *arguments: object) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), *map(str, arguments), str(world)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


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


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def curves(tmp_path_factory, tiny_manifest, tiny_bert) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    for name, data in variants(folder, tiny_manifest, tiny_bert).items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    for world in (1, 2):
        start(world, "curves", folder)
    return folder


@pytest.mark.parametrize("name", ["plain", "accumulated", "unlabelled", "deaf_rank", "measured", "dropped"])
def test_two_processes_give_the_curve_of_one(curves, name):
    one, two = losses(curves / f"{name}-1"), losses(curves / f"{name}-2")
    assert len(one) == len(two) == 50
    assert np.mean(one[-5:]) < np.mean(one[:5]) - 0.05  # it learns
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)


def test_variants_differ(curves):
    """The comparison above would pass on curves that ignore what sets the variants apart."""
    firsts = {name: losses(curves / f"{name}-1") for name in ("plain", "unlabelled", "deaf_rank", "dropped")}
    assert len({tuple(curve) for curve in firsts.values()}) == 4


def test_accumulation_gives_the_curve_of_the_big_batch(curves):
    np.testing.assert_allclose(losses(curves / "accumulated-1"), losses(curves / "plain-1"), atol=1e-5, rtol=0)


def test_fully_shard_gives_the_curve_of_one_process(tmp_path, tiny_manifest, tiny_bert):
    data = variants(tmp_path, tiny_manifest, tiny_bert)["deaf_rank"]
    (tmp_path / "fsdp.json").write_text(json.dumps(data))
    for world in (1, 2):
        start(world, "sharded", tmp_path)
    one, two = (np.array(json.loads((tmp_path / f"fsdp-{world}.out").read_text())) for world in (1, 2))
    assert one.shape == (20, 1)
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)


def test_gathered_contrast_has_the_gradient_of_one_big_batch(tmp_path):
    found = {}
    for world in (1, 2, 4):
        start(world, "aligned", tmp_path)
        found[world] = json.loads((tmp_path / f"align-{world}.out").read_text())
    one = found[1]
    for world in (2, 4):
        many = found[world]
        assert sum(many["count"]) == one["count"][0]
        np.testing.assert_allclose(sum(many["loss"]), one["loss"][0], atol=1e-10)
        np.testing.assert_allclose(sum(many["scale"]), one["scale"][0], atol=1e-10)
        for m in one["grad"][0]:
            rows = np.concatenate([part[m] for part in many["grad"]])
            np.testing.assert_allclose(rows, one["grad"][0][m], atol=1e-10)
