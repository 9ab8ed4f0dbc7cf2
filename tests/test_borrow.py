"""Text blocks fed with pictures and sounds: the same as the body's own forward, and the controls."""

from __future__ import annotations

import pytest
import torch
from conftest import rows_of_three, settings, write
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from mmkt import launch
from mmkt.config import check
from mmkt.encoders.borrow import Borrow
from mmkt.encoders.hf_text import HfText
from mmkt.experiment import Experiment
from mmkt.layers import text_blocks
from mmkt.layers.norms import norm_parameters
from mmkt.layers.redraw import redraw
from mmkt.model import Model
from mmkt.parts import Parts

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
CONFIGS = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "camembert": SIZES,
    "electra": SIZES | {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "vocab_size": 50},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 64},
    "llama": SIZES | {"num_key_value_heads": 1},
    "mistral": SIZES | {"num_key_value_heads": 1, "head_dim": 16},
    "qwen2": SIZES | {"num_key_value_heads": 1},
    "qwen3": SIZES | {"num_key_value_heads": 1, "head_dim": 16},
}


def body_of(kind: str):
    torch.manual_seed(0)
    extra = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    body = AutoModel.from_config(AutoConfig.for_model(kind, **CONFIGS[kind], **extra)).eval()
    body.config.use_cache = False
    for parameter in body.parameters():  # norms that do nothing would hide a norm that is left out
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return body


@pytest.mark.parametrize("kind", CONFIGS)
def test_blocks_give_what_the_body_gives(kind):
    body, seen = body_of(kind), {}
    ids = torch.randint(3, 50, (3, 7))
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    first = body.get_submodule(text_blocks.layout(body).blocks)[0]
    hook = first.register_forward_pre_hook(
        lambda _, given, named: seen.update(x=given[0] if given else named["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        whole = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        hook.remove()
        typical = text_blocks.typical_norm(body)
        text_blocks.cut(body, None)
        assert not any("embed" in name and "rotary" not in name for name, _ in body.named_parameters())
        found = text_blocks.run(body, seen["x"], mask)
    torch.testing.assert_close(found[mask], whole[mask], atol=1e-5, rtol=1e-5)
    assert (found - text_blocks.run(body, seen["x"], torch.ones_like(mask)))[1].abs().max() > 1e-3  # the mask is read
    assert typical == pytest.approx(seen["x"].norm(dim=-1).mean().item(), rel=0.2)


def test_every_layout_is_tried():
    assert set(CONFIGS) == set(text_blocks.LAYOUTS)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_some_layers(kind):
    body = body_of(kind)
    x, mask = torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        two = text_blocks.run(body, x, mask, 2)
        text_blocks.cut(body, 2)
        assert torch.equal(text_blocks.run(body, x, mask), two)
    with pytest.raises(ValueError, match="layers: 5 is more than the 2 that the body has"):
        text_blocks.cut(body, 5)


def test_a_family_that_cannot_lend():
    with pytest.raises(ValueError, match="cannot borrow the blocks of a t5 model; bodies of these types can be: bert, roberta"):
        text_blocks.layout(type("Body", (), {"config": AutoConfig.for_model("t5")}))


def test_tokens_start_as_long_as_words(tiny_bert):
    torch.manual_seed(0)
    encoder = Borrow({}, None, reads="image", body=str(tiny_bert), size=16, channels=1)
    whole = AutoModel.from_pretrained(tiny_bert).eval()
    words = whole.embeddings(torch.arange(whole.config.vocab_size)[None]).norm(dim=-1).mean().item()
    tokens, mask = encoder.embed({"pixels": torch.rand(5, 1, 16, 16)})
    assert tokens.shape == (5, 16, 32)
    assert mask.all()
    assert torch.allclose(tokens.norm(dim=-1), torch.tensor(words), rtol=1e-3)
    assert encoder.embedder(torch.rand(5, 16)).norm(dim=-1).mean() < 0.5 * words  # without the norm they are not


def test_patches_are_read_row_by_row(tiny_bert):
    encoder = Borrow({}, None, reads="image", body=str(tiny_bert), size=8, patch=4, channels=3)
    pixels = torch.rand(1, 3, 8, 8)
    seen = {}
    encoder.embedder.register_forward_hook(lambda _, given, out: seen.update(x=given[0]))
    encoder.embed({"pixels": pixels})
    assert torch.equal(seen["x"][0, 1], (pixels[0, :, :4, 4:] * 2 - 1).flatten())


def audio_of(encoder, lengths):
    torch.manual_seed(1)
    waveform = torch.rand(len(lengths), max(lengths)) - 0.5
    for k, length in enumerate(lengths):
        waveform[k, length:] = 0
    return {"waveform": waveform, "lengths": torch.tensor(lengths)}


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_of_sounds_changes_nothing(tiny_bert, pooling):
    torch.manual_seed(0)
    encoder = Borrow({}, None, reads="audio", body=str(tiny_bert), rate=8000, seconds=0.5, mels=16, pooling=pooling).eval()
    inputs = audio_of(encoder, [1200, 3000, 400])
    with torch.no_grad():
        together = encoder(inputs)
        for k, length in enumerate(inputs["lengths"].tolist()):
            alone = encoder({"waveform": inputs["waveform"][k : k + 1, :length], "lengths": inputs["lengths"][k : k + 1]})
            torch.testing.assert_close(alone.pooled[0], together.pooled[k], atol=1e-5, rtol=1e-5)
    inputs["waveform"].requires_grad_()
    (encoder(inputs).pooled * torch.randn(encoder.width)).sum().backward()
    assert inputs["waveform"].grad.abs().amax(1).min() > 0


def test_a_shared_body_is_the_lenders(tiny_bert):
    text = HfText({}, None, model=str(tiny_bert))
    shared = Borrow({"text": text}, None, reads="image", body="text", size=16, channels=1)
    own = Borrow({"text": text}, None, reads="image", body="text", own=True, size=16, channels=1)
    assert not any(name.startswith("body") for name, _ in shared.named_parameters())
    assert shared.backbone is None
    assert own.backbone == "body"
    pixels = {"pixels": torch.rand(2, 1, 16, 16)}
    own.load_state_dict(shared.state_dict() | {k: v for k, v in own.state_dict().items() if k.startswith("body")})
    text.eval(), own.eval(), shared.eval()
    assert torch.equal(shared(pixels).pooled, own(pixels).pooled)
    with torch.no_grad():
        text.body.encoder.layer[0].output.dense.weight.add_(1.0)
    assert not torch.equal(shared(pixels).pooled, own(pixels).pooled)
    for encoder in (shared, own):
        names = [name for stage in encoder.stages() for name in stage]
        assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())
    assert [len(stage) for stage in own.stages()][1:] == [16, 16]


@pytest.mark.parametrize(("more", "words"), [
    ({"body": "audio"}, "audio is an encoder of this model that has no text blocks"),
    ({"body": "text", "weights": "random"}, "model.encoders.text.weights=random"),
    ({"patch": 5}, "size: 16 does not divide into patches of 5"),
    ({"layers": 9}, "layers: 9 is more than the 2"),
    ({"body": "nobody/nothing"}, "could not be loaded"),
])  # fmt: skip
def test_what_cannot_be_borrowed(tiny_bert, more, words):
    house = {"text": HfText({}, None, model=str(tiny_bert)), "audio": torch.nn.Linear(1, 1)}
    house["audio"].kind = "audio"
    with pytest.raises(ValueError, match=words):
        Borrow(house, None, **({"reads": "image", "body": str(tiny_bert), "size": 16} | more))


def test_statistics_keep_means_and_deviations_and_nothing_else(tiny_bert):
    kept = Borrow({}, None, reads="image", body=str(tiny_bert), size=16).body
    drawn = Borrow({}, None, reads="image", body=str(tiny_bert), size=16, weights="statistics").body
    big = [(p, q) for p, q in zip(kept.parameters(), drawn.parameters()) if p.numel() >= 1024]
    assert len(big) > 5
    for p, q in big:
        assert abs(p.mean() - q.mean()) < 5 * p.std() / p.numel() ** 0.5
        assert 0.9 < p.std() / q.std() < 1.1
        assert abs(torch.corrcoef(torch.stack([p.flatten(), q.flatten()]))[0, 1]) < 0.2
    norm = torch.nn.BatchNorm1d(4)
    norm(torch.randn(8, 4) * 9 + 5)
    redraw(norm)
    assert norm.running_var.eq(1).all()
    assert norm.running_mean.eq(0).all()


def test_norms_are_found_by_what_they_are():
    llama = body_of("llama")
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in norm_parameters(llama)} == {
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
    }
    assert norm_parameters(torch.nn.LayerNorm(3)) == {"weight", "bias"}
    assert norm_parameters(torch.nn.Linear(3, 3)) == set()


def config_of(tmp_path, tiny_bert, transfer="fpt", text=False, **borrow):
    manifest = write(rows_of_three(48), tmp_path / "rows.parquet")
    config = settings(manifest, tiny_bert, tmp_path / "run")
    image = {"name": "borrow", "reads": "image", "body": str(tiny_bert), "size": 16, "channels": 1, "patch": 8} | borrow
    text_encoder = {"text": config["model"]["encoders"]["text"]} if text else {}
    config["model"] |= {"encoders": text_encoder | {"image": image}, "heads": {"kind": "classify"}, "fusion": "concat"}
    config["objectives"] = {"kind": {"name": "classify", "task": "kind"}}
    config["transfer"], config["train"] = transfer, {"steps": 4, "lr": 0.01, "save_every": 2}
    config["evaluate"], config["trackers"] = {"resamples": 0}, []
    return check(Experiment, config, Parts())


@pytest.mark.parametrize("text", [False, True])
def test_fpt_leaves_every_frozen_bit(tmp_path, tiny_bert, text):
    config = config_of(tmp_path, tiny_bert, text=text, **({"body": "text"} if text else {}))
    before = {name: x.clone() for name, x in launch.build(config).learner.model.state_dict().items()}
    launch.train(config)
    after = Model.from_pretrained(tmp_path / "run" / "best").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name in changed if ".body." in name}
    assert inside
    assert all("LayerNorm" in name or "position" in name for name in inside)
    assert {name.split(".")[2] for name in changed if name.startswith("encoders.image") and ".body." not in name} == {
        "embedder",
        "positions",
        "norm",
    }
    states = {name.rpartition("/")[0] for name in load_file(tmp_path / "run" / "last" / "optimizer.safetensors")}
    assert states - changed == {name for name in before if name.startswith("space.missing")}  # no row lacked anything
    assert changed <= states


def test_a_checkpoint_needs_no_original(tmp_path, tiny_bert):
    config = config_of(tmp_path, tiny_bert, "full", layers=1)
    launch.train(config)
    moved = tiny_bert.rename(tiny_bert.with_name("elsewhere"))
    try:
        model = Model.from_pretrained(tmp_path / "run" / "best")
    finally:
        moved.rename(tiny_bert)
    assert len(model.encoders["image"].body.encoder.layer) == 1
    picture = rows_of_three(1)[0]["image"]
    assert model.predict([{"image": picture}])[0]["kind"]["prediction"].startswith("k")


def test_a_lender_may_stand_behind(tmp_path, tiny_bert):
    config = config_of(tmp_path, tiny_bert, "full", text=True, body="text")
    turned = dict(reversed(config.model.encoders.items()))
    model = launch.build(config.model_copy(update={"model": config.model.model_copy(update={"encoders": turned})})).learner.model
    assert model.modalities == ("image", "text")
    assert model.encoders["image"].lender[0] is model.encoders["text"].body


def test_no_body(tmp_path, tiny_bert):
    config = config_of(tmp_path, tiny_bert, "full", layers=0)
    assert launch.train(config)
    assert not [name for name in Model.from_pretrained(tmp_path / "run" / "best").state_dict() if "body" in name]
