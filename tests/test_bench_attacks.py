"""The benchmark of attacks, on a tiny model of pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import experiment

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import bench_attacks

from mmkt import launch
from mmkt.parts import Parts


@pytest.mark.filterwarnings("ignore")
def test_mmkt_beside_foolbox(tiny_settings, monkeypatch, capsys):
    pytest.importorskip("foolbox")
    data = tiny_settings
    data["model"]["encoders"] = {"image": data["model"]["encoders"]["image"]}
    launch.train(experiment(data))
    more = ["--what", "parity", "carlini", "cost", "--rows", "8", "--eps", "0.05", "--steps", "4", "--pairs", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_attacks.py", f"{data['run']}/best", *more, "--plugins"])
    bench_attacks.main()
    lines = capsys.readouterr().out.splitlines()
    same = [line for line in lines if line.startswith("ε 0.05 FGSM")]
    assert len(same) == 1
    assert same[0].endswith("the same row by row 100.0 %")
    assert sum("PGD-40" in line for line in lines) == 4  # from the picture, from random places, and its cost beside two others
    assert sum("PGD-20" in line for line in lines) == 2
    assert sum("Carlini and Wagner, 9 × 4" in line for line in lines) == 2


@pytest.mark.parametrize("form", ["pooled", "strided"])
def test_the_plain_network(form):
    net = Parts(["scripts/plain_net"]).find("encoders", "two_convolutions")({}, None, form=form)
    found = net({"pixels": torch.rand(3, 1, 28, 28)})
    assert found.pooled.shape == (3, net.width)
    assert sorted(name for stage in net.stages() for name in stage) == sorted(name for name, _ in net.named_parameters())
    assert [len(stage) for stage in net.stages()] == [2, 2, 2]


def test_a_model_of_sounds_is_refused(trained, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_attacks.py", str(trained), "--plugins"])
    with pytest.raises(SystemExit, match="reads text, image, audio: foolbox attacks pictures alone"):
        bench_attacks.main()
