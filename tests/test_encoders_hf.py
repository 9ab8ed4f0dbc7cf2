"""Encoders from the transformers library: one contract for every family, on tiny models made on the spot."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import settings
from PIL import Image

from mmkt.config import check
from mmkt.experiment import Experiment
from mmkt.heads.classify import Classify
from mmkt.model import Model
from mmkt.parts import Parts

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PICTURE = {"image_size": 32, "patch_size": 8}


def image_family(config, model, processor):
    def make(folder: Path) -> None:
        model(config()).save_pretrained(folder)
        processor().save_pretrained(folder)

    return make


vit = image_family(
    lambda: hf.ViTConfig(**SMALL, **STILL, **PICTURE),
    hf.ViTModel,
    lambda: hf.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.5]),
)
dinov2 = image_family(
    lambda: hf.Dinov2Config(**SMALL, **STILL, **PICTURE, mlp_ratio=2),
    hf.Dinov2Model,
    lambda: hf.BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
)
swin = image_family(
    lambda: hf.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4),
    hf.SwinModel,
    lambda: hf.ViTImageProcessor(size={"height": 32, "width": 32}),
)
convnext = image_family(
    lambda: hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], image_size=32),
    hf.ConvNextModel,
    lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
)
FAMILIES = {
    "vit": (vit, "hf_image", {}),
    "vit, another size": (vit, "hf_image", {"pooling": "cls", "size": 48}),
    "dinov2": (dinov2, "hf_image", {"pooling": "mean"}),
    "swin": (swin, "hf_image", {}),
    "convnext": (convnext, "hf_image", {}),
}


def make(family: str, folder: Path, **more):
    """The family's encoder, its model saved to ``folder``."""
    build, name, chosen = FAMILIES[family]
    torch.manual_seed(0)
    if not folder.exists():
        build(folder)
    return Parts().find("encoders", name)({}, None, **{"model": str(folder)} | chosen | more).eval()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def encoder(family, tmp_path):
    return make(family, tmp_path / "original")


def raw(encoder, seed: int):
    random = np.random.default_rng(seed)
    if encoder.kind == "text":
        return " ".join(random.choice(["what", "is", "red", "round"], 2 + 3 * seed))
    if encoder.kind == "image":
        return Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    return torch.from_numpy(0.1 * random.standard_normal(3000 + 1700 * seed)).float()


def some(encoder, *seeds: int):
    processor = encoder.processor()
    return processor.pad([processor(raw(encoder, seed)) for seed in seeds])


def test_stages_name_every_parameter_once(encoder):
    stages = encoder.stages()
    assert len(stages) > 2
    assert sorted(name for stage in stages for name in stage) == sorted(name for name, _ in encoder.named_parameters())
    assert any("embed" in name or "conv" in name for name in stages[0])


def test_padding_changes_nothing(encoder):
    with torch.no_grad():
        many = encoder(some(encoder, 2, 0, 1))
        assert not many.tokens[~many.mask].any()
        for k, seed in enumerate((2, 0, 1)):
            one = encoder(some(encoder, seed))
            torch.testing.assert_close(one.pooled[0], many.pooled[k], atol=1e-5, rtol=0)
            assert one.mask.sum() == many.mask[k].sum()
            torch.testing.assert_close(one.tokens[0][one.mask[0]], many.tokens[k][many.mask[k]], atol=1e-5, rtol=0)


def test_the_gradient_reaches_the_raw_input(encoder):
    inputs = some(encoder, 1)
    name = {"image": "pixels", "audio": "waveform", "text": "inputs_embeds"}[encoder.kind]
    if encoder.kind == "text":
        inputs[name] = encoder.embed(inputs.pop("input_ids")).detach()
    leaf = inputs[name] = inputs[name].requires_grad_()
    out = encoder(inputs)
    (out.pooled * torch.linspace(-1, 1, encoder.width)).sum().backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad != 0).float().mean() > 0.9


def test_bf16_and_compile_give_the_eager_answer(encoder):
    inputs = some(encoder, 0, 1)
    with torch.no_grad():
        eager = encoder(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(inputs)
        assert half.pooled.isfinite().all()
        torch.testing.assert_close(half.pooled.float(), eager.pooled, atol=0.1, rtol=0.1)
        torch._dynamo.reset()
        compiled = torch.compile(encoder, backend="aot_eager")(inputs)
        torch.testing.assert_close(compiled.pooled, eager.pooled, atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_without_the_original_to_the_bit(family, tmp_path):
    make(family, tmp_path / "original")
    data = settings(tmp_path / "nothing", tmp_path / "nothing", tmp_path / "run")
    _, name, chosen = FAMILIES[family]
    data["model"]["encoders"] = {"it": {"name": name, "model": str(tmp_path / "original"), **chosen}}
    model = Model.from_config(check(Experiment, data, Parts()), {"kind": Classify.learn(["a", "b"])}).eval()
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "original")
    again = Model.from_pretrained(tmp_path / "saved")
    inputs = some(model.encoders["it"], 0, 1)
    for before, after in zip(model.encoders["it"](inputs), again.encoders["it"](some(again.encoders["it"], 0, 1))):
        assert torch.equal(before, after)


def test_blank_is_finite(encoder):
    out = encoder(encoder.blank())
    assert out.pooled.isfinite().all()
    assert out.pooled.shape == (1, encoder.width)


def test_what_cannot_be_had_is_refused_in_words(family, tmp_path):
    _, name, chosen = FAMILIES[family]
    with pytest.raises(ValueError, match=r"'nobody/nothing' could not be loaded.*weights: random"):
        Parts().find("encoders", name)({}, None, **chosen | {"model": "nobody/nothing"})
    make(family, tmp_path / "pickled")
    whole = hf.AutoModel.from_pretrained(tmp_path / "pickled")
    torch.save(whole.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"could not be loaded.*safetensors"):
        make(family, tmp_path / "pickled")


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("family", ["vit", "dinov2", "swin", "convnext"], indirect=False)
def test_the_picture_is_prepared_as_the_model_was_trained(family, tmp_path):
    encoder = make(family, tmp_path / "original")
    exact = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    processor = encoder.processor()
    ours = (processor.pad([processor(exact)])["pixels"] - encoder.mean) / encoder.std
    theirs = hf.AutoImageProcessor.from_pretrained(tmp_path / "original")(exact, return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    # resizing in PIL and in torchvision differ by rounding to bytes: one grey level over the deviation
    assert (ours - theirs).abs().max() < 2.1 / 255 / float(encoder.std.min())
    with torch.no_grad():
        body = hf.AutoModel.from_pretrained(tmp_path / "original").eval()
        expected = body(ours).pooler_output if FAMILIES[family][2] == {} else body(ours).last_hidden_state.mean(1)
        assert torch.equal(encoder(processor.pad([processor(exact)])).pooled, expected)


def test_summaries_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no first token"):
        make("swin", tmp_path / "swin", pooling="cls")
    with pytest.raises(ValueError, match="pooling: own is that one"):
        make("convnext", tmp_path / "convnext", pooling="mean")
    hf.ViTModel(hf.ViTConfig(**SMALL, **PICTURE), add_pooling_layer=False).save_pretrained(tmp_path / "headless")
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"lack 2 of its ViTModel's parameters \(pooler"):
        make("vit", tmp_path / "headless")
    assert make("vit", tmp_path / "headless", pooling="cls").pooling == "cls"
