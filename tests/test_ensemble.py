"""Models of one modality each that answer together."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import call, experiment, refused, rows_of_three, settings, write

from mmkt import launch
from mmkt.calibrate import calibrate
from mmkt.ensemble import ensemble
from mmkt.heads.classify import Classify
from mmkt.heads.regress import Regress
from mmkt.heads.tag import Tag
from mmkt.parts import ConfigError


@pytest.fixture(scope="module")
def members(tmp_path_factory, tiny_bert) -> list[str]:
    """The text alone, as the only encoder, and the picture alone, through the fusion ``unimodal``; some rows lack either."""
    folder = tmp_path_factory.mktemp("members")
    rows = rows_of_three(60)
    for k in range(48, 60):
        rows[k] |= {"text": None if k % 3 == 0 else rows[k]["text"], "image": None if k % 3 == 1 else rows[k]["image"]}
    data = settings(write(rows, folder / "manifest.parquet"), tiny_bert, folder / "run")
    more = {
        "text": ["model.encoders.image=null", "model.encoders.audio=null"],
        "image": ["model.encoders.audio=null", "model.fusion=unimodal", "model.fusion.modality=image"],
    }
    for name, changed in more.items():
        launch.train(experiment(data, f"run={folder / name}", *changed))
    return [str(folder / name / "best") for name in more]


def logits(folder) -> np.ndarray:
    return np.stack(pq.read_table(folder / "predictions.parquet")["kind.logits"].to_pylist())


def test_probabilities_are_averaged_over_those_that_know(members, tmp_path):
    rows, folder = ensemble(members, out=str(tmp_path / "both"))
    one, two = (torch.tensor(logits(tmp_path / "both" / name)).softmax(1) for name in ("1-text", "2-image"))
    table = pq.read_table(folder / "predictions.parquet")
    text, image = (np.asarray(table[f"has.{m}"]) for m in ("text", "image"))
    expected = torch.stack([one, two]).mean(0)
    expected[text & ~image], expected[image & ~text] = one[text & ~image], two[image & ~text]
    assert (text != image).any()
    found = torch.tensor(logits(folder)).softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, torch.stack([one, two]).mean(0), atol=1e-3)
    right = np.array(table["kind.label"].to_pylist()) == np.array(table["kind.prediction"].to_pylist())
    accuracy = next(row for row in rows if row.metric == "accuracy" and row.group == "all")
    assert accuracy.value == pytest.approx(right.mean())
    assert accuracy.modalities == "image+text"


def test_what_was_fitted_to_one_model_is_not_the_ensembles(members, tmp_path):
    calibrated = [shutil.copytree(member, tmp_path / str(k)) for k, member in enumerate(members)]
    for member in calibrated:
        calibrate(str(member))
        assert "calibration" in (member / "vocabularies.json").read_text()
    plain, _ = ensemble(members, out=str(tmp_path / "plain"))
    rows, folder = ensemble([str(member) for member in calibrated], out=str(tmp_path / "plain-too"))
    assert [row.value for row in rows] == pytest.approx([row.value for row in plain], nan_ok=True)
    assert "kind.set" not in pq.read_schema(folder / "predictions.parquet").names


def test_heads_average_what_they_mean():
    x, weights = torch.randn(3, 4, 2, dtype=torch.float64), torch.tensor([[0.5], [0.25], [0.25]]).expand(3, 4).double()
    mean = (weights[..., None] * x.softmax(2)).sum(0)
    torch.testing.assert_close(Classify(4, {"classes": [0, 1], "counts": [1, 1]}).average(x, weights).softmax(1), mean)
    tags = Tag(4, {"classes": [0, 1], "counts": [1, 1], "rows": 2}).average(x, weights)
    torch.testing.assert_close(tags.sigmoid(), (weights[..., None] * x.sigmoid()).sum(0))
    numbers = Regress(4, {"mean": 0.0, "std": 1.0}).average(x[..., :1], weights)
    torch.testing.assert_close(numbers, (weights[..., None] * x[..., :1]).sum(0))
    silent = torch.tensor([[1.0], [0.0], [0.0]]).expand(3, 4).double()  # a model that knows nothing of a row
    torch.testing.assert_close(Classify(4, {"classes": [0, 1], "counts": [1, 1]}).average(x, silent), x[0].log_softmax(1))


def test_what_cannot_be_one_is_refused(members, capfd, tmp_path, trained):
    assert "takes two checkpoints or more, found 1" in refused(capfd, "ensemble", members[0])
    with pytest.raises(ConfigError, match="have other rows"):
        ensemble([members[0], str(trained)], out=str(tmp_path / "x"))
    status, out, _ = call(capfd, "ensemble", *members, "evaluate.resamples=0", "--out", tmp_path / "y", "--json")
    assert status == 0
    assert '"accuracy"' in out
