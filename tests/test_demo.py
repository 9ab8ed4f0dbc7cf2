"""The checkpoint that ships: small, whole beside the original MiniLM, and as good as its page says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import refused

import mmkt
from mmkt.checkpoint import CheckpointError, read_tensors, write_tensors
from mmkt.data.sources.numerals import Numerals
from mmkt.evaluate import evaluate

DEMO = Path(__file__).parent.parent / "checkpoints/numerals-demo"
CEILINGS = {"text": 0.13, "image": 0.383, "audio": 0.383}  # derived in mmkt/data/sources/numerals.py
EVERY = "audio+image+text"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return Numerals(rows=40, validation=40, test=240).prepare(tmp_path_factory.mktemp("numerals"), None)


def test_it_is_small_and_refers_to_the_original():
    assert sum(file.stat().st_size for file in DEMO.iterdir()) < 5_000_000
    assert json.loads((DEMO / "delta.json").read_text())["left out"] > 90
    assert not any(name.startswith("encoders.text.") for name in read_tensors(DEMO / "model.safetensors"))
    config = json.loads((DEMO / "config.json").read_text())
    assert config["model"]["encoders"]["text"]["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "/work" not in (DEMO / "config.json").read_text() + (DEMO / "README.md").read_text()


def test_what_it_can_do(manifest, tmp_path):
    more = [f"data.manifest={manifest}", "evaluate.page=false", "evaluate.resamples=300"]
    found, _ = evaluate(str(DEMO), more, out=str(tmp_path / "out"))
    by = {(row.modalities, row.metric): row for row in found.across["subsets"] if row.group == "all"}
    full = by[EVERY, "accuracy"]
    assert full.low > max(CEILINGS.values()) + 0.3
    for m, ceiling in CEILINGS.items():
        assert by[m, "accuracy"].low < ceiling
    gain = full.value - by["none", "accuracy"].value
    assert sum(by[m, "accuracy.shapley"].value for m in CEILINGS) == pytest.approx(gain, abs=1e-9)


def test_another_original_is_refused(tmp_path, monkeypatch):
    """A tensor that the delta brings is taken away: the original's own would stand there in silence."""
    other = tmp_path / "demo"
    shutil.copytree(DEMO, other)
    tensors = read_tensors(other / "model.safetensors")
    tensors.pop(next(iter(tensors)))
    write_tensors(other / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"is a delta: the .* tensors that it leaves out are not those"):
        mmkt.load(str(other))


def test_a_manifest_without_its_columns(capfd, tmp_path):
    (tmp_path / "m.csv").write_text("id,split,sentence,answer\n1,test,hello,3\n")
    assert "question" in refused(capfd, "evaluate", DEMO, f"data.manifest={tmp_path}/m.csv")
