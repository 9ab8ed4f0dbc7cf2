"""Space, model, fusions: missing ≡ absent, rows don't mix, nothing leaks, checkpoints are strict."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import experiment
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

import mmkt
from mmkt.checkpoint import CheckpointError, atomic, settle
from mmkt.config import ConfigError, check
from mmkt.experiment import Experiment
from mmkt.launch import build
from mmkt.model import Model, matches
from mmkt.parts import Parts
from mmkt.space import SharedSpace, join
from mmkt.types import Encoded

FUSIONS = ("concat", "gated", "late", "merged")  # every fusion by itself is in test_conformance.py


@pytest.fixture(scope="module")
def built(tiny_manifest, tiny_bert, tmp_path_factory):
    from conftest import settings

    data = settings(tiny_manifest, tiny_bert, tmp_path_factory.mktemp("run"))
    made = {}
    for fusion in FUSIONS:
        data["model"]["fusion"] = fusion
        made[fusion] = build(check(Experiment, data, Parts()))
    return made


def encoded(rows: int, length: int, width: int, seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length)[None] < torch.randint(1, length + 1, (rows, 1), generator=generator)
    tokens = torch.randn(rows, length, width, generator=generator) * mask[..., None]
    return Encoded(
        tokens,
        mask,
        torch.randn(rows, width, generator=generator),
        (torch.rand(rows, generator=generator) > 0.4) | (torch.arange(rows) == 0),
    )


def some(rows: int = 6) -> dict[str, Encoded]:
    return {"text": encoded(rows, 5, 32, 1), "image": encoded(rows, 3, 256, 2), "audio": encoded(rows, 4, 32, 3)}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_tokens_are_projected_only_where_they_are_read(built, fusion):
    """By a fusion of the level token, or an objective that says so; summaries and answers are the same to the bit."""
    model = built[fusion].learner.model.eval()
    reads = fusion == "merged"
    assert model.whole == reads
    widths = {m: e.width for m, e in model.encoders.items()}
    parts = {m: Encoded(*(x[..., : widths[m]] if x.is_floating_point() else x for x in e)) for m, e in some().items()}
    found = {}
    for model.whole in (True, False):
        found[model.whole] = model.fuse(parts)
        lengths = [e.tokens.shape[1] for e in found[model.whole].encoded.values()]
        assert lengths == ([5, 3, 4] if model.whole else [1, 1, 1])
    model.whole = reads
    for m in parts:
        assert torch.equal(found[True].encoded[m].pooled, found[False].encoded[m].pooled)
    same = all(torch.equal(x, found[False].logits[task]) for task, x in found[True].logits.items())
    assert same != reads


def test_lengths_are_rounded_up_and_change_nothing(tiny_settings):
    plain = build(experiment(tiny_settings))
    round_ = build(experiment(tiny_settings, "data.pad_to={text: 16, audio: 3000}"))
    one, two = (next(setup.feed.evaluation(setup.feed.rows("test"))) for setup in (plain, round_))
    most = plain.learner.model.encoders["audio"].processor().samples
    assert one.inputs["text"]["input_ids"].shape[1] < 16 == two.inputs["text"]["input_ids"].shape[1]
    assert one.inputs["audio"]["waveform"].shape[1] % 3000
    length = two.inputs["audio"]["waveform"].shape[1]
    assert length % 3000 == 0 or length == most
    assert length > one.inputs["audio"]["waveform"].shape[1]
    model = plain.learner.model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(two).logits["kind"], model(one).logits["kind"], atol=1e-5, rtol=0)


def test_an_objective_may_read_tokens(tiny_settings, tmp_path):
    lab = tmp_path / "their_lab" / "objectives"
    lab.mkdir(parents=True)
    lab.joinpath("words.py").write_text(
        "from mmkt.types import Objective\n\n\nclass Words(Objective):\n    tokens = True\n\n"
        "    def __init__(self, dim, modalities, outputs, domains, *, task: str = 'kind'):\n        super().__init__()\n\n"
        "    def forward(self, model, batch, outputs):\n        return outputs.encoded['text'].tokens.square().sum()\n\n"
        "    def count(self, batch):\n        return batch.labelled['kind'].sum()\n"
    )
    tiny_settings |= {"plugins": [str(lab.parent)]}
    tiny_settings["objectives"]["words"] = {"name": "words"}
    setup = build(check(Experiment, tiny_settings, Parts(tiny_settings["plugins"])))
    assert setup.learner.model.whole
    batch = next(setup.feed.training(0, 1))
    assert setup.learner.model(batch).encoded["text"].tokens.shape[1] > 1


def pick(parts: dict[str, Encoded], rows) -> dict[str, Encoded]:
    return {m: Encoded(*(x[rows] for x in e)) for m, e in parts.items()}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_has_a_gradient_and_rows_do_not_mix(built, fusion):
    model = built[fusion].learner.model.train()
    model.zero_grad()
    model.fuse(some()).logits["kind"].square().sum().backward()
    for name, p in [*model.space.named_parameters(), *model.fusion.named_parameters(), *model.heads.named_parameters()]:
        assert p.grad is not None, name
    model.eval()
    parts = {m: e._replace(tokens=e.tokens.requires_grad_(), pooled=e.pooled.requires_grad_()) for m, e in some().items()}
    model.fuse(parts).logits["kind"][2].sum().backward()
    for e in parts.values():
        others = [k for k in range(6) if k != 2]
        grads = [x.grad for x in (e.tokens, e.pooled) if x.grad is not None]
        assert all(not g[others].any() for g in grads)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_permuting_rows_permutes_answers_and_one_row_is_enough(built, fusion):
    model = built[fusion].learner.model.eval()
    whole = model.fuse(some()).logits["kind"]
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(model.fuse(pick(some(), order)).logits["kind"], whole[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.fuse(pick(some(), [2])).logits["kind"], whole[[2]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_masked_slots_and_absent_rows_leak_nothing(built, fusion):
    model = built[fusion].learner.model.eval()
    clean = some()
    dirty = {}
    for m, e in clean.items():
        tokens = e.tokens.masked_fill(~e.mask[..., None], float("nan"))
        tokens = torch.where(e.present[:, None, None], tokens, torch.tensor(float("inf")))
        dirty[m] = e._replace(tokens=tokens, pooled=e.pooled.masked_fill(~e.present[:, None], float("nan")))
    assert torch.equal(model.fuse(dirty).logits["kind"], model.fuse(clean).logits["kind"])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_missing_everywhere_is_absent_to_the_bit(built, fusion):
    model = built[fusion].learner.model.eval()
    parts = some()
    nowhere = torch.zeros(6, dtype=torch.bool)
    missing = parts | {"audio": Encoded.of(torch.randn(6, 32), nowhere)}
    absent = {m: e for m, e in parts.items() if m != "audio"}
    kept = model.fuse(parts, keep=("text", "image")).logits["kind"]
    assert torch.equal(model.fuse(missing).logits["kind"], model.fuse(absent).logits["kind"])
    assert torch.equal(kept, model.fuse(absent).logits["kind"])
    assert not torch.equal(kept, model.fuse(parts).logits["kind"])
    nothing = model.fuse({m: e._replace(present=nowhere) for m, e in parts.items()})
    assert nothing.logits["kind"].isfinite().all()


def test_space_gives_the_learned_vector_to_rows_without(built):
    space = built["concat"].learner.model.space
    parts = some()
    out = space(parts, 6)["image"]
    absent = ~parts["image"].present
    assert torch.equal(out.pooled[absent], space.missing["image"].expand(int(absent.sum()), -1))
    assert out.mask[absent].sum(1).eq(1).all()
    assert not out.tokens[~out.mask].any()


def test_join_lays_items_of_a_row_side_by_side():
    items = encoded(3, 2, 4, 0)
    index = torch.tensor([[2, -1], [0, 1], [-1, -1]])
    out = join(items, index)
    assert torch.equal(out.tokens[1], torch.cat([items.tokens[0], items.tokens[1]]))
    assert torch.equal(out.mask[0], torch.cat([items.mask[2], torch.tensor([False, False])]))
    torch.testing.assert_close(out.pooled[1], (items.pooled[0] + items.pooled[1]) / 2)
    assert out.present.tolist() == [True, True, False]


def test_a_row_answers_the_same_alone_as_in_a_batch(built):
    setup = built["merged"]
    model = setup.learner.model.eval()
    rows = setup.feed.rows("test")
    batches = list(setup.feed.evaluation(rows))
    with torch.no_grad():
        many = torch.cat([model(b).logits["kind"] for b in batches])
        order = torch.cat([b.row for b in batches]).argsort()
        single = [model(next(setup.feed.evaluation(np.array([row])))).logits["kind"] for row in rows]
    torch.testing.assert_close(torch.cat(single), many[order], atol=1e-5, rtol=0)


def test_a_tower_without_rows_still_has_a_gradient_of_zero(built):
    setup = built["concat"]
    model = setup.learner.model
    for p in model.parameters():
        p.requires_grad_(True)
    model.train()
    model.zero_grad()
    batch = next(setup.feed.training(0, 1))
    deaf = batch._replace(
        inputs={m: x for m, x in batch.inputs.items() if m != "audio"},
        present=batch.present | {"audio": torch.zeros(batch.size, dtype=torch.bool)},
    )
    model(deaf).logits["kind"].sum().backward()
    grads = [p.grad for p in model.encoders["audio"].parameters()]
    assert all(g is not None and not g.any() for g in grads)
    assert model.encoders["audio"].training  # left as it was
    assert any(p.grad.any() for p in model.encoders["image"].parameters())


def test_frozen_parts_stay_in_eval(built):
    model = built["concat"].learner.model
    for p in model.encoders["text"].parameters():
        p.requires_grad_(False)
    model.train()
    assert not model.encoders["text"].training
    assert model.encoders["image"].training
    for p in model.parameters():
        p.requires_grad_(True)


def test_saved_and_loaded_without_the_original_weights(built, tmp_path, tiny_bert):
    model = built["gated"].learner.model.eval()
    model.save_pretrained(tmp_path / "saved")
    away = tmp_path / "away"
    tiny_bert.rename(away)
    try:
        again = mmkt.load(tmp_path / "saved")
    finally:
        away.rename(tiny_bert)
    batch = next(built["gated"].feed.evaluation(built["gated"].feed.rows("test")))
    with torch.no_grad():
        one, two = model(batch), again(batch)
    assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(two)))
    assert again.vocabularies == model.vocabularies
    assert again.config == model.config


def corrupt(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("space.missing.text"), r"tensor space\.missing\.text is missing"),
        (lambda t: t.update(extra=torch.ones(1)), "tensor extra has no place"),
        (lambda t: t.update({"space.missing.text": torch.ones(3)}), r"shape \(3,\), the model's is \(32,\)"),
    ],
)
def test_loading_is_strict(built, tmp_path, change, says):
    built["concat"].learner.model.save_pretrained(tmp_path / "c")
    corrupt(tmp_path / "c", change)
    with pytest.raises(CheckpointError, match=says):
        Model.from_pretrained(tmp_path / "c")


def test_damaged_checkpoints_are_refused_by_name(built, tmp_path):
    built["concat"].learner.model.save_pretrained(tmp_path / "c")
    cut = (tmp_path / "c/model.safetensors").read_bytes()
    (tmp_path / "c/model.safetensors").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole"):
        Model.from_pretrained(tmp_path / "c")
    (tmp_path / "c/model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="not a whole safetensors"):
        Model.from_pretrained(tmp_path / "c")
    (tmp_path / "c/config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        Model.from_pretrained(tmp_path / "c")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Model.from_pretrained(tmp_path / "nowhere")


def test_a_checkpoint_that_names_a_class_outside_is_refused(built, tmp_path):
    built["concat"].learner.model.save_pretrained(tmp_path / "c")
    config = json.loads((tmp_path / "c/config.json").read_text())
    config["model"]["fusion"]["name"] = "os.system"
    (tmp_path / "c/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"there is no 'os\.system'"):
        Model.from_pretrained(tmp_path / "c")


@pytest.mark.parametrize("moment", ["writing", "between the renames", "before the old one is gone"])
def test_a_kill_leaves_the_old_checkpoint_or_the_new(tmp_path, monkeypatch, moment):
    folder = tmp_path / "best"
    with atomic(folder) as new:
        (new / "x").write_text("old")
    if moment == "writing":

        def write_half() -> None:
            with atomic(folder) as new:
                (new / "x").write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_half()
    elif moment == "between the renames":
        folder.rename(tmp_path / "best.old")
        (tmp_path / "best.new").mkdir()
    else:
        shutil.copytree(folder, tmp_path / "best.old")
    assert (settle(folder) / "x").read_text() == "old"
    with atomic(folder) as new:
        (new / "x").write_text("new")
    assert (settle(folder) / "x").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]


def test_patterns():
    assert matches("encoders.text.body.x", "encoders.text")
    assert matches("encoders.text.body.x", "encoders.*.body")
    assert not matches("encoders.text2.body.x", "encoders.text")
    assert not matches("encoders.text.body.x", "text")


def test_predicting_things_in_memory(built, tmp_path):
    from PIL import Image

    model = built["concat"].learner.model
    picture = Image.fromarray(np.full((16, 16), 200, np.uint8))
    sound = np.sin(np.arange(4000) / 10).astype(np.float32)
    rows = [
        {"text": "what is it", "image": picture, "audio": (sound, 16000)},
        {"text": "what is it"},
        {"image": np.asarray(picture), "audio": sound},
    ]
    answers = model.predict(rows)
    assert [set(a["kind"]) for a in answers] == [{"prediction", "confidence"}] * 3
    assert all(a["kind"]["prediction"] in model.vocabularies["kind"]["classes"] for a in answers)
    alone = model.predict(rows, batch_size=1)[1]["kind"]
    assert alone["prediction"] == answers[1]["kind"]["prediction"]
    assert alone["confidence"] == pytest.approx(answers[1]["kind"]["confidence"], abs=1e-5)
    with pytest.raises(ValueError, match="names the modality 'imgae'"):
        model.predict([{"imgae": picture}])
    assert isinstance(model.space, SharedSpace)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["model.fusion=multiplicative"], "multiplicative takes two modalities, found 3: text, image, audio: leave encoders out"),
        (
            ["model.fusion=film", "model.encoders.image=null", "model.encoders.audio=null"],
            "takes two or more modalities, found 1",
        ),
        (
            ["model.fusion=late", "model.heads.kind=null", "objectives.kind=null", "objectives.align.name=align"],
            "late fuses logits",
        ),
        (
            ["model.fusion=evidential", "model.heads.kind=null", "model.heads.size=regress", "objectives.kind.task=size"],
            "a head classify",
        ),
        (["model.fusion=film", "model.fusion.target=txt"], "there is no modality 'txt'; did you mean 'text'?"),
        (["model.fusion=concat", "terms.balance=1"], "terms.balance: the fusion brings no such term; it brings none"),
        (["model.fusion=poe", "objectives.divergence.name=align"], "the fusion brings a term of this name"),
    ],
)
def test_fusions_that_do_not_fit_are_refused_in_words(tiny_settings, changed, says):
    with pytest.raises(ConfigError) as refused:
        build(experiment(tiny_settings, *changed))
    assert says in str(refused.value)


def test_a_fusion_on_logits_leaves_heads_without_layers(tiny_settings):
    """And what it doesn't answer is answered from the mean of what is present."""
    config = experiment(tiny_settings, "model.fusion=evidential", "model.heads.size=regress")
    model = build(config).learner.model
    assert list(model.heads["kind"].parameters()) == []
    assert len(list(model.heads["size"].parameters())) == 2
    outputs = model.fuse(some())
    assert outputs.logits["kind"].shape == (6, 8)
    assert outputs.logits["size"].shape == (6, 1)
    assert outputs.notes["evidence.kind"].shape == (6, 4, 8)
