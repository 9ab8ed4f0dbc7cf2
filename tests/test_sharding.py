"""What FSDP2 gathers at once, and what it refuses. The runs themselves are in test_distributed.py."""

from __future__ import annotations

import pytest
import torch
from conftest import experiment
from torch import nn

from mmkt import distributed, evaluate, launch, sharding
from mmkt.parts import ConfigError


def paths(learner: nn.Module, m: str) -> list[str]:
    encoder = learner.model.encoders[m]
    found = {id(layer) for layer in sharding.layers(encoder)}
    return [name for name, module in encoder.named_modules() if id(module) in found]


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        ("test_efficientnet_gn", [f"trunk.body.blocks.{stage}.{k}" for stage, k in ((0, 0), (1, 0), (2, 0), (3, 0))]),
        ("test_vit", [f"trunk.body.blocks.{k}" for k in range(6)]),
    ],
)
def test_layers_are_found_without_their_classes_named(tiny_settings, model, blocks):
    learner = launch.build(experiment(tiny_settings, f"model.encoders.image.model={model}")).learner
    assert paths(learner, "text") == ["body.encoder.layer.0", "body.encoder.layer.1"]
    assert paths(learner, "audio") == ["blocks.0"]
    assert paths(learner, "image") == blocks


def test_a_parameter_without_dimensions_is_refused(tiny_settings):
    learner = launch.build(experiment(tiny_settings)).learner
    learner.model.fusion.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"fusion\.scale: has the shape \(\), .*shape \(1,\)"):
        sharding.shard(learner, None)


@pytest.mark.parametrize("count", [3, 5, 7])
def test_every_process_evaluates_equally_many_batches(tiny_settings, monkeypatch, count):
    feed = launch.build(experiment(tiny_settings, "data.batch_size=3")).feed
    rows = feed.rows("train")[:count]
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        found.append([batch.row.tolist() for batch in feed.evaluation(rows)])
    assert len({len(batches) for batches in found}) == 1
    assert sorted(row for batches in found for batch in batches for row in batch) == sorted(rows.tolist())


def test_fewer_rows_than_processes_are_refused(tiny_settings, monkeypatch):
    setup = launch.build(experiment(tiny_settings))
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "is_sharded", lambda module: True)
    with pytest.raises(ConfigError, match="3 rows or more, found 2"):
        evaluate.predict(setup.learner.model, setup.feed, setup.feed.rows("test")[:2])


def test_buffers_and_tensors_of_one_process_stay_as_they_are():
    layer = nn.BatchNorm1d(3)
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    distributed.share_buffers(layer)
    assert all(torch.equal(x, before[name]) for name, x in distributed.collected(layer.state_dict()).items())
    assert distributed.placed_like(torch.ones(3), layer.weight).equal(torch.ones(3))
