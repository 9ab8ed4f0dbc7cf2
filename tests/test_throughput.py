"""What a step costs beside its arithmetic: the host never waits for the device between flushes."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import experiment, rows_of_three, write
from torch.utils._python_dispatch import TorchDispatchMode

from mmkt import launch, train
from mmkt.copies import on_device
from mmkt.layers import unread_mask
from mmkt.layers.gaussian import pick
from mmkt.run import Run
from mmkt.types import Batch

aten = torch.ops.aten
# each of these makes the host wait for a GPU: a number is read, a size is known only there, or numbers go up in a copy
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.equal.default,
    aten.lift_fresh.default,
    aten.repeat_interleave.Tensor,
    aten.multinomial.default,  # it looks whether chances are finite
}


def place() -> str:
    """Where the host would wait: the innermost line of mmkt."""
    own = [f for f in traceback.extract_stack() if f.filename.startswith(str(Path(train.__file__).parent))]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "test"


class Waits(TorchDispatchMode):
    """Notes every operation for which the host would wait, while it is on."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.on = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if self.on and (func in WAITS or masked):
            self.found.append(f"{func} at {place()}")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def off(self):
        self.on, before = False, self.on
        try:
            yield
        finally:
            self.on = before


def apart(waits: Waits, function):
    """A function during which nothing is noted."""

    def quiet(*arguments, **named):
        with waits.off():
            return function(*arguments, **named)

    return quiet


@contextmanager
def watched(monkeypatch):
    """What makes the host wait in every ``_Loop.step``, but in taking batches and in AdamW, whose counter lies on the CPU."""
    waits = Waits()
    for name in ("tolist", "numpy", "cpu"):
        plain = getattr(torch.Tensor, name)

        def noted(self, *arguments, name=name, plain=plain, **named):
            waits.found += [f"{name} at {place()}"] * waits.on
            return plain(self, *arguments, **named)

        monkeypatch.setattr(torch.Tensor, name, noted)
    waits.on = False
    step = train._Loop.step

    def watched_step(*arguments):
        waits.on = True
        with waits:
            step(*arguments)
        waits.on = False

    monkeypatch.setattr(train._Loop, "step", watched_step)
    # as on a GPU; on a CPU masks are looked at, as there is nothing to wait for
    plain_mask = unread_mask.sdpa_mask
    skips = ("allow_is_causal_skip", "allow_is_bidirectional_skip")
    as_there = lambda *a, **k: plain_mask(*a, **k | dict.fromkeys(skips, False))  # noqa: E731
    monkeypatch.setattr(unread_mask, "sdpa_mask", as_there)
    monkeypatch.setattr(train.Meter, "take", apart(waits, train.Meter.take))
    monkeypatch.setattr(torch.optim.AdamW, "step", apart(waits, torch.optim.AdamW.step))
    yield waits.found
    monkeypatch.undo()


def test_what_waits_is_seen(monkeypatch):
    x = torch.tensor([1.0, 0.0, 2.0])
    for function in (
        lambda: x.sum().item(),
        lambda: float(x.sum()),
        lambda: bool((x > 0).any()),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: x.unique(),
        lambda: torch.tensor([1, 2]),
        lambda: torch.multinomial(x, 1),
        lambda: x.index_put((x > 0,), torch.zeros(())),
    ):
        with Waits() as waits:
            function()
        assert waits.found
    with Waits() as waits:
        torch.where(x > 0, x, 0.0).masked_fill(x > 1, 3.0)[:2].sum().clamp(min=1)
        x.gather(0, x.argmax(0, keepdim=True))
    assert not waits.found


SEVERAL = {
    "kind": {"name": "classify", "task": "kind", "class_weights": "balanced", "focal": 1.0},
    "tags": {"name": "tag", "task": "tags", "class_weights": "balanced"},
    "size": {"name": "regress", "task": "size"},
}


def fitted(config) -> None:
    setup = launch.build(config)
    plan = launch.plan_of(setup, config)
    train.fit(setup.learner, setup.feed, plan, Run(config.run, config, "x"), Accelerator(), config.train, seed=config.seed)


def unheard(tmp_path: Path) -> str:
    """Rows of which most cannot be heard, so that some batches of four have no sound at all; some lack text or a label."""
    rows, random = rows_of_three(96), np.random.default_rng(0)
    for k, row in enumerate(rows):
        row["audio"] = None if k % 6 else row["audio"]
        row["text"] = None if random.random() < 0.3 else row["text"]
        for column in ("kind", "tags", "size"):
            row[column] = None if k > 16 and random.random() < 0.3 else row[column]
    return str(write(rows, tmp_path / "unheard.parquet"))


@pytest.mark.parametrize(
    ("fusion", "more"),
    [
        ("concat", []),
        ("concat", ["train.clip=null", "train.precision=bf16"]),
        ("attention_pool", ["train.accumulate=2", "model.space.dropout=0.1"]),
        ("gated", ["data.dropout={text: 0.5, audio: 0.5}"]),
        ("dynamic_gate", []),
        ("moe", []),
        ("mopoe", ["train.accumulate=2"]),
        ("poe", []),
        ("sparse_moe", []),
        ("perceiver", []),
        ("tensor", []),
        ("late", []),
        ("evidential", []),
    ],
)
def test_no_step_makes_the_host_wait(tiny_settings, tmp_path, monkeypatch, fusion, more):
    tiny_settings["data"] |= {"manifest": unheard(tmp_path), "batch_size": 4, "validation": None}
    tiny_settings["model"]["heads"] = {"kind": "classify", "tags": "tag", "size": "regress"}
    tiny_settings["objectives"] = SEVERAL
    config = experiment(tiny_settings, f"model.fusion={fusion}", "train.steps=4", "train.log_every=4", *more)
    with watched(monkeypatch) as found:
        fitted(config)
    assert found == []


def test_alignment_does_not_wait(tiny_settings, monkeypatch):
    tiny_settings["objectives"]["near"] = "align"
    with watched(monkeypatch) as found:
        fitted(experiment(tiny_settings, "train.steps=3", "data.dropout={text: 0.3}", "data.validation=null"))
    assert found == []


def test_a_loop_that_reads_its_loss_is_caught(tiny_settings, monkeypatch):
    plain = train.Meter.add

    def add(self, step, batch, loss, means):
        assert float(loss.detach()) == float(loss.detach())
        plain(self, step, batch, loss, means)

    monkeypatch.setattr(train.Meter, "add", add)
    with watched(monkeypatch) as found:
        fitted(experiment(tiny_settings, "train.steps=3", "data.validation=null"))
    assert [line.split()[0] for line in found] == ["aten._local_scalar_dense.default"] * 2 * 3


def test_a_pick_is_uniform_over_what_is_there():
    torch.manual_seed(0)
    which = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4])
    picked = torch.stack([pick(which) for _ in range(6000)])  # (6000, 3)
    shares = torch.bincount(picked[:, 0], minlength=4) / 6000
    assert shares.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.03)
    assert (picked[:, 1] == 1).all()
    torch.manual_seed(3)
    one = pick(which[:2])
    torch.manual_seed(3)
    assert torch.equal(one, torch.multinomial(which[:2].float(), 1)[:, 0])


def numbered(k: int) -> Batch:
    x = torch.full((2,), k)
    return Batch({"m": {"x": torch.full((2, 3), float(k))}}, {"m": x > 0}, {}, {}, {}, x, x, x, x)


def test_batches_on_a_device_are_the_same_batches():
    found = list(on_device(iter([numbered(k) for k in range(3)]), torch.device("cpu")))
    assert [int(batch.row[0]) for batch in found] == [0, 1, 2]
    away = numbered(1).to("meta")
    assert away.inputs["m"]["x"].device.type == "meta"
    assert numbered(1).to("cpu").row.tolist() == [1, 1]


def test_blank_rows_go_where_the_model_goes(tiny_settings):
    model = launch.build(experiment(tiny_settings)).learner.to("meta").model
    assert {x.device.type for blank in model._blank.values() for x in blank.values()} == {"meta"}


def test_a_mask_that_is_not_read_changes_no_token(tiny_bert):
    """On the meta device nothing can be read, as on a GPU nothing should be; on the CPU both masks give the same tokens."""
    from transformers import AutoModel

    torch.manual_seed(0)
    ids = torch.randint(4, 16, (3, 7))
    for mask in (torch.ones(3, 7, dtype=torch.long), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])):
        plain = AutoModel.from_pretrained(tiny_bert).eval()
        ours = unread_mask.use(AutoModel.from_pretrained(tiny_bert)).eval()
        assert ours.config._attn_implementation == unread_mask.NAME
        one, two = (body(input_ids=ids, attention_mask=mask).last_hidden_state for body in (plain, ours))
        assert torch.equal(one[mask > 0], two[mask > 0])
        away = ours.to("meta")(input_ids=ids.to("meta"), attention_mask=mask.to("meta")).last_hidden_state
        assert away.shape == one.shape
        with pytest.raises(RuntimeError, match="meta"):
            plain.to("meta")(input_ids=ids.to("meta"), attention_mask=mask.to("meta"))
