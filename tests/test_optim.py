"""Schedules, optimisers, averages of weights: against reference libraries, and to the bit after resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from conftest import call, experiment
from forked import together
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mmkt
from mmkt import launch, optim
from mmkt.averages.ema import Ema
from mmkt.averages.swa import Swa
from mmkt.averaging import Averaged
from mmkt.evaluate import evaluate
from mmkt.experiment import Train
from mmkt.parts import ConfigError


def stepped(scheduler, steps: int) -> list[float]:
    """A reference's rates."""
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)


def shares(schedule: str, warmup: float = 0.0, **more) -> list[float]:
    return [optim.factor(step, 100, schedule, warmup, **more) for step in range(100)]


# ---------------------------------------------------------------- schedules


def test_schedules_against_torch():
    of = torch.optim.lr_scheduler
    references = {
        "cosine": of.CosineAnnealingLR(sgd(), 100, eta_min=0.1),
        "linear": of.LinearLR(sgd(), 1.0, 0.1, 100),
        "exponential": of.ExponentialLR(sgd(), 0.1 ** (1 / 100)),
        "constant": of.ConstantLR(sgd(), 1.0),
    }
    for name, reference in references.items():
        assert shares(name, end=0.1) == pytest.approx(stepped(reference, 100)), name
    assert shares("step") == pytest.approx([0.9 * x + 0.1 * x for x in stepped(of.MultiStepLR(sgd(), [50, 75]), 100)])
    assert shares("cosine", end=0.1) != pytest.approx(shares("cosine"))


def test_schedules_against_transformers():
    wsd = transformers.get_wsd_schedule(
        sgd(), num_warmup_steps=10, num_stable_steps=65, num_decay_steps=25, decay_type="1-sqrt", min_lr_ratio=0.2
    )
    assert shares("wsd", 0.1, decay=0.25, end=0.2)[10:] == pytest.approx(stepped(wsd, 100)[10:])
    inverse = transformers.get_inverse_sqrt_schedule(sgd(), num_warmup_steps=10)
    assert shares("inverse_sqrt", 0.1)[10:] == pytest.approx(stepped(inverse, 100)[10:])
    assert shares("inverse_sqrt") == pytest.approx(stepped(transformers.get_inverse_sqrt_schedule(sgd(), 0), 100))


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_every_schedule_climbs_first_and_never_rises_again(schedule):
    found = shares(schedule, 0.1, end=0.05)
    assert found[:10] == pytest.approx([(k + 1) / 11 for k in range(10)])
    assert found[10] == 1.0
    assert found[10:] == sorted(found[10:], reverse=True)
    assert min(found[10:]) >= 0.05
    assert optim.factor(0, 1, schedule, 0.0) == 1.0
    assert schedule in Train.model_fields["schedule"].annotation.__args__


# ---------------------------------------------------------------- optimisers


def test_every_optimiser_is_offered():
    assert set(Train.model_fields["optimizer"].annotation.__args__) == {*optim.OPTIMIZERS, "muon"}


def losses(run: str) -> list[float]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


class Killed(BaseException):
    pass


def killed(config, steps: int) -> None:
    """Train until a step is half done."""
    plain, count = Accelerator.backward, []

    def backward(self, loss):
        count.append(1)
        if len(count) > steps:
            raise Killed
        return plain(self, loss)

    Accelerator.backward = backward
    try:
        with pytest.raises(Killed):
            launch.train(config)
    finally:
        Accelerator.backward = plain


def same_after_resuming(settings: dict, *overrides: str) -> tuple[Path, list[float]]:
    """Train in one go, and with a kill between two saves; every file of both is the same to the bit."""
    base = [*overrides, "train.steps=8", "train.evaluate_every=4", "model.space.dropout=0.1"]
    whole, broken = (f"{settings['run']}-{name}" for name in ("whole", "broken"))
    launch.train(experiment(settings, *base, f"run={whole}"))
    killed(experiment(settings, *base, f"run={broken}"), 5)
    launch.train(experiment(settings, *base, f"run={broken}"), resume=True)
    files = sorted(file.relative_to(whole) for file in Path(whole).rglob("*.safetensors"))
    for file in files:
        one, two = load_file(Path(whole) / file), load_file(Path(broken) / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), file
    assert losses(whole) == losses(broken)
    return Path(whole), losses(whole)


@pytest.fixture
def small(tiny_settings) -> dict:
    """Two modalities, and embeddings among what trains."""
    del tiny_settings["model"]["encoders"]["image"]
    return tiny_settings


def test_optimisers_resume_to_the_bit_and_differ(small):
    curves = {}
    for name in ("adamw", "sgd", "adafactor", "muon"):
        run = small["run"]
        small["run"] = f"{run}-{name}"
        betas = ["train.betas=[0.8, 0.9]"] if name in ("adamw", "muon") else []
        folder, curves[name] = same_after_resuming(small, f"train.optimizer={name}", *betas)
        kept = {key.rpartition("/")[2] for key in load_file(folder / "last/optimizer.safetensors")}
        small["run"] = run
        assert (
            kept
            == {
                "adamw": {"step", "exp_avg", "exp_avg_sq"},
                "sgd": {"momentum_buffer"},
                "adafactor": {"step", "row_var", "col_var", "variance"},
                "muon": {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"},
            }[name]
        )
    assert len({tuple(curve) for curve in curves.values()}) == 4


def test_muon_takes_matrices_alone_and_adamw_all_else(small):
    setup = launch.build(experiment(small, "train.optimizer=muon"))
    trains = setup.learner.begin(launch.plan_of(setup, experiment(small))[0])
    made = optim.optimizer(setup.learner, trains, Train(optimizer="muon", lr=0.1, momentum=0.5), {"encoders.text": 0.5})
    matrices, others = ({name for g in one.param_groups for name in g["names"]} for one in made.both)
    assert matrices | others == set(trains)
    assert not matrices & others
    assert "encoders.text.body.encoder.layer.0.attention.self.query.weight" in matrices
    assert "encoders.text.body.embeddings.word_embeddings.weight" in others
    assert all(name in others for name in trains if trains[name].ndim != 2 or name.startswith("heads."))
    assert {g["lr"] for g in made.param_groups} == {0.1, 0.05}
    # the first step of both against torch's own
    name = "encoders.text.body.encoder.layer.0.attention.self.query.weight"
    copy, grad = nn.Parameter(trains[name].detach().clone()), torch.randn_like(trains[name])
    trains[name].grad, copy.grad = grad, grad
    reference = torch.optim.Muon([copy], lr=0.05, weight_decay=0.01, momentum=0.5, adjust_lr_fn="match_rms_adamw")
    made.step()
    reference.step()
    assert torch.equal(trains[name], copy)
    assert not torch.equal(reference.state[copy]["momentum_buffer"], torch.zeros_like(copy))


def test_rates_by_pattern_go_with_every_transfer(small):
    for name in ("full", "probe", "lp_ft", "thaw", "fpt"):
        setup = launch.build(experiment(small))
        config = experiment(small, f"transfer={name}", "transfer.lr={heads: 0.25}")
        last = launch.plan_of(setup, config)[-1]
        made = optim.optimizer(setup.learner, setup.learner.begin(last), Train(lr=0.1), last.lr)
        optim.set_rate(made, 0.5)
        rates = {n: g["lr"] for g in made.param_groups for n in g["names"]}
        assert {n.split(".")[0] for n, rate in rates.items() if rate == 0.0125} == {"heads"}
        assert {n.split(".")[0] for n, rate in rates.items() if rate == 0.05} >= {"space", "fusion"}
        assert set(rates.values()) == {0.0125, 0.05}


def test_a_python_number_in_an_optimisers_state_comes_back_as_one(small, monkeypatch):
    """As bitsandbytes counts its steps; it also shares one table between all parameters."""

    class Counting(torch.optim.SGD):
        table = torch.arange(3.0)

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    assert type(state.setdefault("steps", 0)) is int
                    state["steps"] += 1
                    state["table"] = self.table
                    p.grad /= state["steps"]
            super().step()

    monkeypatch.setitem(optim.OPTIMIZERS, "adafactor", lambda groups, train: Counting(groups, lr=train.lr))
    folder, _ = same_after_resuming(small, "train.optimizer=adafactor")
    kept = load_file(folder / "last/optimizer.safetensors")
    assert {int(x) for key, x in kept.items() if key.endswith("/steps")} == {8}


def test_adamw_is_one_kernel_unless_told_and_its_step_is_adamws(small):
    def moved(**changes):
        train = Train(lr=1e-2, weight_decay=0.1, **changes)
        learner = launch.build(experiment(small)).learner
        torch.manual_seed(1)
        trains = {name: p for name, p in learner.named().items() if p.requires_grad}
        made = optim.optimizer(learner, trains, train, {})
        for _ in range(3):
            for p in trains.values():
                p.grad = torch.randn(p.shape)
            made.step()
        return made, torch.cat([p.detach().flatten() for p in trains.values()])

    made, fused = moved()
    assert all(group["fused"] for group in made.param_groups)
    made, plain = moved(fused=False)
    assert not any(group["fused"] for group in made.param_groups)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    assert not torch.equal(fused, moved(betas=(0.9, 0.99))[1])
    assert moved(optimizer="sgd")[0].param_groups[0]["fused"]


def test_what_cannot_be_had_is_refused(small, monkeypatch):
    with pytest.raises(ConfigError, match="there is no such kernel for muon: leave it out, or take adamw or sgd"):
        launch.train(experiment(small, "train.optimizer=muon", "train.fused=true"))
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r'pip install "mmkt\[8bit\]"'):
        launch.train(experiment(small, "train.optimizer=adamw8bit", f"run={small['run']}-8bit"))
    with pytest.raises(ConfigError, match=r"train\.optimizer: .*did you mean 'adamw'"):
        experiment(small, "train.optimizer=adam")
    setup = launch.build(experiment(small))
    monkeypatch.setattr(optim.distributed, "is_sharded", lambda _: True)
    with pytest.raises(ConfigError, match="launch with ddp"):
        optim.optimizer(setup.learner, {}, Train(optimizer="adafactor"), {})


# ---------------------------------------------------------------- averages


def test_averages_against_torch():
    torch.manual_seed(0)
    path = [torch.randn(3, 2) for _ in range(40)]

    def walked(average) -> torch.Tensor:
        mean = path[0].clone()
        for step, now in enumerate(path):
            mean.lerp_(now, average.move(step, len(path)))
        return mean

    torch.testing.assert_close(walked(Swa(start=0.5)), torch.stack(path[20:]).mean(0))
    torch.testing.assert_close(walked(Swa(start=0.5, every=5)), torch.stack(path[20::5]).mean(0))
    torch.testing.assert_close(walked(Swa(start=0.99)), path[-1])
    assert [Swa(start=0.5).move(step, 40) for step in (0, 20)] == [1.0, 1.0]
    constant = nn.Linear(2, 3, bias=False)
    reference = AveragedModel(constant, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    late = Ema(decay=0.9)
    mean = None
    for step, now in enumerate(path):
        constant.weight.data = now
        reference.update_parameters(constant)
        # from step 81 on its share is 0.9; before, it is what a short training needs
        mean = now.clone() if mean is None else mean.lerp_(now, late.move(step + 81, 1))
    torch.testing.assert_close(mean, reference.module.weight.detach())
    assert [Ema(decay=0.999).move(step, 1) for step in (0, 90)] == pytest.approx([0.9, 9 / 100])


@pytest.mark.parametrize("average", ["ema", "{name: swa, start: 0.3, every: 2}"])
def test_what_is_saved_is_the_average_and_training_does_not_see_it(tiny_settings, average):
    tiny_settings["model"]["encoders"]["image"]["model"] = "test_efficientnet"  # of batch norms
    tiny_settings["transfer"] = {"name": "lp_ft", "share": 0.5}
    base = ["train.steps=8", "train.evaluate_every=4", "train.select=loss"]
    plain = f"{tiny_settings['run']}-plain"
    launch.train(experiment(tiny_settings, *base, f"run={plain}"))
    live: dict[str, list[torch.Tensor]] = {}
    follow = Averaged.follow

    def followed(self, step):
        for name, x in self.live().items():
            live.setdefault(name, []).append(x.clone())
        follow(self, step)

    run = tiny_settings["run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Averaged, "follow", followed)
        launch.train(experiment(tiny_settings, *base, f"train.average={average}"))
    assert losses(run) == losses(plain)
    last, other = (load_file(Path(f) / "last/learner.safetensors") for f in (run, plain))
    assert all(torch.equal(last[name], other[name]) for name in last)
    best, mean = load_file(Path(run) / "best/model.safetensors"), load_file(Path(run) / "last/average.safetensors")
    assert any(name.endswith("running_var") for name in mean)
    # the saved best is of one of the two evaluations, whose average follows from the weights of each step
    move = (Ema() if average == "ema" else Swa(start=0.3, every=2)).move
    start = {f"model.{k}": v for k, v in launch.build(experiment(tiny_settings, *base)).learner.model.state_dict().items()}
    state = json.loads((Path(run) / "last/state.json").read_text())["progress"]
    for name, xs in live.items():
        expected = start[name].clone()
        for step, x in enumerate(xs):
            expected.lerp_(x, move(step, 8))
            if step + 1 == state["best_step"]:
                torch.testing.assert_close(best[name.removeprefix("model.")], expected)
        torch.testing.assert_close(mean[name], expected)
    changed = [name for name in mean if not torch.equal(mean[name], last[name])]
    assert len(changed) > len(mean) / 2
    loss = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert min(x["validation/loss"] for x in loss if "validation/loss" in x) == state["best"]
    assert mmkt.load(Path(run) / "best").config.train.average["name"] in average


def test_an_average_resumes_to_the_bit_and_changes_what_is_evaluated(small):
    folder, _ = same_after_resuming(small, "train.average={name: ema, decay: 0.9}")
    assert (folder / "last/average.safetensors").is_file()
    found, _ = evaluate(str(folder / "best"), ["evaluate.split=validation"])
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(line["validation/kind/accuracy"] for line in logged if "validation/kind/accuracy" in line)
    assert next(r.value for r in found.rows if r.metric == "accuracy" and r.group == "all") == best


def test_without_validation_the_last_average_is_the_best(small):
    folder = Path(small["run"])
    launch.train(experiment(small, "train.average=ema", "data.validation=null"))
    best, mean = load_file(folder / "best/model.safetensors"), load_file(folder / "last/average.safetensors")
    assert all(torch.equal(best[name.removeprefix("model.")], x) for name, x in mean.items() if name.startswith("model."))


def _averaged(folder: Path, world: int) -> None:
    """One run on several processes, of which each has batch statistics of its own."""
    import worker

    config = experiment(json.loads((folder / "settings.json").read_text()), f"run={folder / f'run-{world}'}")
    worker.trained(config, world)


def test_several_processes_average_alike(tiny_settings, tmp_path):
    tiny_settings["data"]["batch_size"] = 8
    # AdamW would make steps of the rate's size out of gradients that are rounding alone
    tiny_settings["train"] |= {"average": {"name": "swa", "start": 0.3}, "steps": 6, "lr": 0.05, "optimizer": "sgd"}
    (tmp_path / "settings.json").write_text(json.dumps(tiny_settings))
    together(2, _averaged, tmp_path, 2, said=tmp_path)
    _averaged(tmp_path, 1)
    one, two = (load_file(tmp_path / f"run-{world}/last/average.safetensors") for world in (1, 2))
    last = load_file(tmp_path / "run-2/last/learner.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=0)
    assert max(float((last[name] - two[name]).abs().max()) for name in two) > 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("train.momentum=0.5", "train.momentum: train.optimizer=adamw does not read it"),
        ("train.betas=[0.8,0.9] train.optimizer=sgd", "train.betas: train.optimizer=sgd does not read it"),
        ("train.lr_end=0.1 train.schedule=constant", "train.lr_end: train.schedule=constant does not read it"),
        ("train.decay=0.5", "train.decay: train.schedule=cosine does not read it"),
        ("data.pad_to.image=8", "data.pad_to.image: its items have one length already"),
    ],
)
def test_settings_that_nothing_reads(tiny_settings, config_file, capfd, settings, words):
    status, _, err = call(capfd, "train", config_file(tiny_settings), *settings.split())
    assert status == 2
    assert words in err


def test_contrast_in_a_later_phase_is_refused_before_the_first(tiny_settings, config_file, capfd):
    tiny_settings["objectives"]["near"] = "align"
    status, _, err = call(capfd, "train", config_file(tiny_settings), "train.accumulate=2", "transfer={name: lp_ft, share: 0.5}")
    assert status == 2
    assert "train.accumulate: contrastive objectives compare the rows of a batch" in err
    assert "phase" not in err.split("train.accumulate")[0]
