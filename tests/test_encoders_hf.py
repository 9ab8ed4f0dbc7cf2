"""Encoders from the transformers library: one contract for every family, on tiny models made on the spot."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import WORDS, settings
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mmkt.config import check
from mmkt.experiment import Experiment
from mmkt.heads.classify import Classify
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts

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
CONVOLUTIONS = {"conv_dim": [16, 16, 16], "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2], "num_feat_extract_layers": 3}
QUIET = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
POSITIONS = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}


def raw_family(config, model, **chosen):
    def make(folder: Path) -> None:
        model(config(**SMALL, **CONVOLUTIONS, **QUIET, **POSITIONS, **chosen)).save_pretrained(folder)
        normal = chosen.get("feat_extract_norm") == "layer"
        hf.Wav2Vec2FeatureExtractor(do_normalize=normal, return_attention_mask=normal).save_pretrained(folder)

    return make


def ast(folder: Path) -> None:
    config = hf.ASTConfig(**SMALL, **STILL, max_length=64, num_mel_bins=32)
    hf.ASTModel(config).save_pretrained(folder)
    hf.ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(folder)


def whisper(folder: Path) -> None:
    layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 50, "vocab_size": 20}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3, "suppress_tokens": None}
    hf.WhisperModel(hf.WhisperConfig(**layers, **sizes, **ends)).save_pretrained(folder)
    hf.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tokenizer(folder: Path, **more) -> None:
    words = {word: k for k, word in enumerate([*SPECIAL, *WORDS])}
    found = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    found.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    hf.PreTrainedTokenizerFast(tokenizer_object=found, **named | more).save_pretrained(folder)


def bert(folder: Path) -> None:
    tokenizer(folder)
    hf.BertModel(hf.BertConfig(**SMALL, **STILL, vocab_size=len(SPECIAL) + len(WORDS))).save_pretrained(folder)


WORDED = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 24, "pad_token_id": 0}
SIDE = hf.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})


def clip(folder: Path) -> None:
    tokenizer(folder, pad_token="[SEP]")  # as the original: padding looks like the end
    text = hf.CLIPTextConfig(**SMALL, **WORDED | {"pad_token_id": 3}, projection_dim=20, eos_token_id=3, bos_token_id=2)
    image = hf.CLIPVisionConfig(**SMALL | {"hidden_size": 24}, **PICTURE, projection_dim=20)
    hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=image, projection_dim=20)).save_pretrained(folder)
    SIDE.save_pretrained(folder)


def chinese_clip(folder: Path) -> None:
    tokenizer(folder)
    text = hf.ChineseCLIPTextConfig(**SMALL, **STILL, **WORDED)
    image = hf.ChineseCLIPVisionConfig(**SMALL | {"hidden_size": 24}, **PICTURE, projection_dim=20)
    config = hf.ChineseCLIPConfig(text_config=text, vision_config=image, projection_dim=20)
    hf.ChineseCLIPModel(config).save_pretrained(folder)
    SIDE.save_pretrained(folder)


def siglip(folder: Path) -> None:
    tokenizer(folder)
    text, image = hf.SiglipTextConfig(**SMALL, **WORDED), hf.SiglipVisionConfig(**SMALL, **PICTURE)
    hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=image)).save_pretrained(folder)
    hf.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def clap(fusion: bool):
    def make(folder: Path) -> None:
        tokenizer(folder)
        stages = {"depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "hidden_size": 32}
        mel = {"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "hidden_dropout_prob": 0.0}
        kind = {"enable_fusion": True, "fusion_type": "aff_2d", "patch_embed_input_channels": 1} if fusion else {}
        audio = hf.ClapAudioConfig(**stages, **mel, **kind, num_hidden_layers=2, projection_dim=20)
        text = hf.ClapTextConfig(**SMALL, **STILL, **WORDED, projection_dim=20)
        hf.ClapModel(hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=20)).save_pretrained(folder)
        # 0.6 s at 16 kHz: 120 frames of 80 samples
        hf.ClapFeatureExtractor(
            feature_size=16, sampling_rate=16_000, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=8000,
            truncation="fusion" if fusion else "rand_trunc",
        ).save_pretrained(folder)  # fmt: skip

    return make


STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
FAMILIES = {
    "bert": (bert, "hf_text", {}),
    "bert, windows": (bert, "hf_text", {"max_tokens": 5, "windows": 3, "pooling": "cls"}),
    "vit": (vit, "hf_image", {}),
    "vit, another size": (vit, "hf_image", {"pooling": "cls", "size": 48}),
    "dinov2": (dinov2, "hf_image", {"pooling": "mean"}),
    "swin": (swin, "hf_image", {}),
    "convnext": (convnext, "hf_image", {}),
    "wav2vec2": (raw_family(hf.Wav2Vec2Config, hf.Wav2Vec2Model), "hf_audio", {}),
    "wav2vec2, layer norm": (raw_family(hf.Wav2Vec2Config, hf.Wav2Vec2Model, **STABLE), "hf_audio", {}),
    "hubert": (raw_family(hf.HubertConfig, hf.HubertModel), "hf_audio", {}),
    "wavlm": (raw_family(hf.WavLMConfig, hf.WavLMModel), "hf_audio", {}),
    "ast": (ast, "hf_audio", {}),
    "whisper": (whisper, "hf_audio", {}),
    "whisper, windows": (whisper, "hf_audio", {"seconds": 0.1, "windows": 4}),
    "clip, text": (clip, "hf_text", {}),
    "clip, image": (clip, "hf_image", {}),
    "chinese clip, text": (chinese_clip, "hf_text", {}),
    "chinese clip, image": (chinese_clip, "hf_image", {"pooling": "mean"}),
    "siglip, text": (siglip, "hf_text", {}),
    "siglip, image": (siglip, "hf_image", {}),
    "clap, text": (clap(False), "hf_text", {}),
    "clap, audio": (clap(False), "hf_audio", {}),
    "clap, audio, fused": (clap(True), "hf_audio", {"pooling": "mean"}),
}


# what compiles as another one does
ALIKE = ("vit, another size", "wav2vec2, layer norm", "whisper, windows", "clap, audio, fused", "chinese clip, image")


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
    real = inputs["attention_mask"].bool() if encoder.kind == "text" else torch.ones_like(leaf, dtype=torch.bool)
    assert (leaf.grad[real] != 0).float().mean() > 0.9
    assert not leaf.grad[~real].any()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # inside transformers
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ALIKE], indirect=True)
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


def test_activations_computed_again_give_the_same_gradients(family, encoder):
    if family == "convnext" or family.startswith("clap"):
        with pytest.raises(ValueError, match=r"(ConvNext|ClapText|ClapAudio)Model cannot .* train.checkpointing: false"):
            encoder.checkpoint_gradients()
        return
    inputs, found, kept = some(encoder, 0, 1), [], []

    def note(x):
        kept[-1] += x.numel()
        return x

    for module in encoder.modules():  # whatever else is random in training
        if isinstance(module, torch.nn.Dropout) or hasattr(module, "drop_prob"):
            module.p = module.drop_prob = 0.0
    encoder.train()
    for again in (False, True):
        if again:
            encoder.checkpoint_gradients()
        encoder.zero_grad()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = encoder(inputs)
        (out.pooled * torch.linspace(-1, 1, encoder.width)).sum().backward()
        found.append({name: p.grad for name, p in encoder.named_parameters()})
    assert kept[1] < 0.7 * kept[0]  # it did compute them again
    for name, grad in found[0].items():
        assert (grad is None) == (found[1][name] is None), name
        if grad is not None:
            torch.testing.assert_close(found[1][name], grad, atol=1e-6, rtol=1e-6)


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


# ---------------------------------------------------------------- sides of contrastive models


@pytest.mark.parametrize("family", [name for name in FAMILIES if "clip" in name or "clap" in name])
def test_a_tower_gives_the_embedding_of_its_model(family, tmp_path):
    encoder = make(family, tmp_path / "original", pooling="own")
    whole, texts = hf.AutoModel.from_pretrained(tmp_path / "original").eval(), ["it", "what is red round what it", "is"]
    with torch.no_grad():
        if encoder.kind == "text":
            processor = encoder.processor()
            ours, read = encoder(processor.pad([processor(text) for text in texts])), encoder.tokenizer
            more = {"padding": "max_length", "max_length": 24} if "siglip" in family else {"padding": True}
            inputs = read(texts, return_tensors="pt", **more)
            if "siglip" in family:  # was trained without a mask
                inputs = {"input_ids": inputs["input_ids"]}
            theirs = whole.get_text_features(**inputs).pooler_output
        elif encoder.kind == "image":
            inputs = some(encoder, 0, 1)
            ours = encoder(inputs)
            theirs = whole.get_image_features(pixel_values=(inputs["pixels"] - encoder.mean) / encoder.std).pooler_output
        else:
            inputs = some(encoder, 2, 0, 1)
            ours = encoder(inputs)
            features = encoder.front.features(inputs["waveform"], inputs["lengths"])
            longer = torch.zeros(3, 1, dtype=torch.bool)
            theirs = whole.get_audio_features(input_features=features, is_longer=longer).pooler_output
        pooled = torch.nn.functional.normalize(ours.pooled, dim=1) if "clap" in family else ours.pooled  # theirs is scaled
        torch.testing.assert_close(pooled, theirs, atol=1e-5, rtol=0)
        assert ours.tokens.shape[2] == ours.pooled.shape[1] == encoder.width
        assert not torch.allclose(theirs[0], theirs[1], atol=1e-4)


def test_without_a_projection_both_sides_keep_their_space(tmp_path):
    clip(tmp_path / "clip")
    data = settings(tmp_path / "nothing", tmp_path / "nothing", tmp_path / "run")
    sides = {"text": {"name": "hf_text"}, "image": {"name": "hf_image"}}
    data["model"] |= {"encoders": {m: side | {"model": str(tmp_path / "clip")} for m, side in sides.items()}, "dim": 20}
    data["model"]["space"] = {"projection": "none", "norm": False}
    model = Model.from_config(check(Experiment, data, Parts()), {"kind": Classify.learn(["a", "b"])}).eval()
    assert not list(model.space.project.parameters())
    texts = some(model.encoders["text"], 0, 1, 2)
    pictures = some(model.encoders["image"], 0, 1, 2)
    with torch.no_grad():
        encoded = {"text": model.encoders["text"](texts), "image": model.encoders["image"](pictures)}
        found = {m: torch.nn.functional.normalize(x.pooled, dim=1) for m, x in model.fuse(encoded).encoded.items()}
        image = model.encoders["image"]
        pixels = (pictures["pixels"] - image.mean) / image.std
        whole = hf.AutoModel.from_pretrained(tmp_path / "clip").eval()
        known = {name: texts[name] for name in ("input_ids", "attention_mask")}
        theirs = whole(**known, pixel_values=pixels).logits_per_text / whole.logit_scale.exp()
    torch.testing.assert_close(found["text"] @ found["image"].T, theirs, atol=1e-5, rtol=0)
    data["model"]["dim"] = 32
    with pytest.raises(ConfigError, match=r"model.space.projection: .* as wide as model.dim, 32; found text 20, image 20"):
        Model.from_config(check(Experiment, data, Parts()), {"kind": Classify.learn(["a", "b"])})


@pytest.mark.parametrize("family", ["clip, text", "siglip, text", "clap, text"])
def test_embeddings_stand_in_for_ids(family, tmp_path):
    encoder = make(family, tmp_path / "original")
    inputs = some(encoder, 0, 2)
    with torch.no_grad():
        known = encoder(inputs)
        given = encoder({"inputs_embeds": encoder.embed(inputs["input_ids"]), "attention_mask": inputs["attention_mask"]})
        torch.testing.assert_close(given.pooled, known.pooled, atol=1e-6, rtol=0)
        torch.testing.assert_close(encoder(inputs).pooled, known.pooled, atol=0, rtol=0)  # nothing is left behind


def test_a_side_that_is_not_there_is_refused(tmp_path):
    clip(tmp_path / "clip")
    hf.ClapFeatureExtractor().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="found a model of type 'clip'; hf_audio takes"):
        make("clap, audio", tmp_path / "clip")
    clap(False)(tmp_path / "clap")
    SIDE.save_pretrained(tmp_path / "clap")
    with pytest.raises(ValueError, match="found a clap model, which has no image side: it has text and audio"):
        make("clip, image", tmp_path / "clap")


def test_texts_longer_than_the_model_are_refused_or_cut(tmp_path):
    with pytest.raises(ValueError, match=r"max_tokens: 80 is not what .* takes; up to 24 are allowed"):
        make("clip, text", tmp_path / "clip", max_tokens=80)
    with pytest.raises(ValueError, match=r"max_tokens: 24 is not what .* takes; up to 23 are allowed"):  # RoBERTa's positions
        make("clap, text", tmp_path / "clap", max_tokens=24)
    whole = make("clap, text", tmp_path / "clap")
    assert whole(whole.processor().pad([whole.processor()("what " * 40)])).mask.sum() == whole.max_tokens
    with pytest.raises(ValueError, match=r"max_tokens: 8 is not what .* takes; 24 alone, padding included, are allowed"):
        make("siglip, text", tmp_path / "siglip", max_tokens=8)
    encoder = make("clip, text", tmp_path / "clip")
    inputs = encoder.processor().pad([encoder.processor()("what " * 40)])
    assert inputs["input_ids"].shape == (1, 24)
    assert inputs["cut"].all()
    assert encoder(inputs).pooled.isfinite().all()


# ---------------------------------------------------------------- long texts


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_windows_are_read_alone_and_weighted_by_their_tokens(pooling, tmp_path):
    encoder = make("bert, windows", tmp_path / "original", pooling=pooling)
    words = ["what", "is", "it", "the", "red", "round", "large", "loud"]
    processor, alone = encoder.processor(), make("bert", tmp_path / "original", pooling=pooling)
    items = [processor("it"), processor(" ".join(words[:7])), processor(" ".join(words * 2))]
    assert [len(item["input_ids"]) for item in items] == [1, 3, 3]
    batch = processor.pad(items)
    assert batch["cut"].tolist() == [False, False, True]
    with torch.no_grad():
        out, read = encoder(batch), alone.processor()
        parts = [alone(read.pad([read(" ".join(words[k : k + 3][: 7 - k]))])) for k in (0, 3, 6)]
        tokens = torch.cat([part.tokens[0] for part in parts])
        weights = torch.tensor([part.tokens.shape[1] for part in parts]) / len(tokens)
        assert weights.tolist() == pytest.approx([5 / 13, 5 / 13, 3 / 13])
        torch.testing.assert_close(out.tokens[1][out.mask[1]], tokens, atol=1e-5, rtol=0)
        pooled = sum(weight * part.pooled[0] for weight, part in zip(weights, parts))
        torch.testing.assert_close(out.pooled[1], pooled, atol=1e-5, rtol=0)


def test_windows_of_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="windows: 3 does not go with pairs: true; set windows: 1"):
        make("bert, windows", tmp_path / "original", pairs=True)


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


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2, layer norm", "hubert", "wavlm"])
def test_a_batch_of_clips_gets_what_the_model_gives_each_alone(family, tmp_path):
    encoder = make(family, tmp_path / "original")
    body = hf.AutoModel.from_pretrained(tmp_path / "original").eval()
    extractor = hf.AutoFeatureExtractor.from_pretrained(tmp_path / "original")
    inputs = some(encoder, 2, 0, 1)
    with torch.no_grad():
        ours = encoder(inputs)
        for k, seed in enumerate((2, 0, 1)):
            theirs = body(**extractor(raw(encoder, seed).numpy(), sampling_rate=16_000, return_tensors="pt")).last_hidden_state[0]
            torch.testing.assert_close(ours.tokens[k][ours.mask[k]], theirs, atol=1e-5, rtol=0)
        leaked = body(inputs["waveform"]).last_hidden_state[1, : len(theirs)]
        if family == "hubert":  # the control: without our norm, padding changes the answer
            assert (leaked - ours.tokens[1, : len(leaked)]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["ast", "whisper", "clap, audio", "clap, audio, fused"])
def test_the_front_end_gives_the_feature_extractors_numbers(family, tmp_path):
    encoder = make(family, tmp_path / "original")
    extractor = hf.AutoFeatureExtractor.from_pretrained(tmp_path / "original")
    inputs = some(encoder, 2, 0, 1)
    clips = [raw(encoder, seed).numpy() for seed in (2, 0, 1)]
    theirs = extractor(clips, sampling_rate=16_000, return_tensors="pt")
    if family.startswith("clap"):
        ours = encoder.front.features(inputs["waveform"], inputs["lengths"])
        assert ours.shape == theirs["input_features"].shape == (3, 4 if "fused" in family else 1, 201, 16)
        torch.testing.assert_close(ours, theirs["input_features"].float(), atol=1e-3, rtol=0)  # dB, down to −100
        return
    if family == "ast":
        ours, theirs = encoder.front.features(inputs["waveform"], inputs["lengths"]), theirs["input_values"]
    else:
        ours, theirs = encoder.front.features(inputs["waveform"]), theirs["input_features"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    body = hf.AutoModel.from_pretrained(tmp_path / "original").eval()
    with torch.no_grad():
        out = encoder(inputs)
        if family == "ast":
            torch.testing.assert_close(out.pooled, body(theirs).pooler_output, atol=1e-5, rtol=0)
        else:
            expected = body.encoder(theirs).last_hidden_state
            torch.testing.assert_close(out.tokens[out.mask], expected[out.mask], atol=1e-5, rtol=0)
            assert out.mask.sum(1).tolist() == [-(-len(clip) // 320) for clip in clips]


@pytest.mark.parametrize("name", ["hf_audio", "spectrogram"])
def test_windows_of_sound_are_read_alone_and_weighted_by_their_samples(name, tmp_path):
    if name == "hf_audio":
        encoder, alone = (make("wav2vec2", tmp_path / "raw", seconds=0.1, windows=windows) for windows in (3, 1))
    else:
        chosen = {"seconds": 0.1, "mels": 16, "width": 32, "layers": 1, "heads": 2}
        torch.manual_seed(0)
        encoder, alone = (Parts().find("encoders", name)({}, None, **chosen, windows=windows).eval() for windows in (3, 1))
        alone.load_state_dict(encoder.state_dict())
    processor, single = encoder.processor(), alone.processor()
    clips = [torch.from_numpy(0.1 * np.random.default_rng(k).standard_normal(n)).float() for k, n in enumerate((900, 4000, 9000))]
    batch = processor.pad([processor(clip) for clip in clips])
    assert batch["waveform"].shape == (3, 3, 1600)
    assert batch["lengths"].tolist() == [[900, 0, 0], [1600, 1600, 800], [1600, 1600, 1600]]
    assert batch["cut"].tolist() == [False, False, True]
    with torch.no_grad():
        out = encoder(batch)
        parts = [alone(single.pad([single(window)])) for window in clips[1].split(1600)]
        tokens = torch.cat([part.tokens[0][part.mask[0]] for part in parts])
        torch.testing.assert_close(out.tokens[1][out.mask[1]], tokens, atol=1e-5, rtol=0)
        pooled = sum(share * part.pooled[0] for share, part in zip((0.4, 0.4, 0.2), parts))
        torch.testing.assert_close(out.pooled[1], pooled, atol=1e-5, rtol=0)
        assert not torch.allclose(out.pooled[1], sum(part.pooled[0] for part in parts) / 3, atol=1e-4)
    once = single.pad([single(clip) for clip in clips])
    assert once["waveform"].shape == (3, 1600)
    assert once["cut"].tolist() == [False, True, True]


def test_audio_that_does_not_fit_is_refused(tmp_path, tiny_bert):
    with pytest.raises(ValueError, match=r"seconds: 5 is more than .* takes; up to 1 are"):
        make("whisper", tmp_path / "whisper", seconds=5)
    vit(tmp_path / "vit")
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"found a model of type 'vit'; hf_audio takes wav2vec2"):
        make("wav2vec2", tmp_path / "vit")
    short = make("wav2vec2", tmp_path / "raw")
    one = short({"waveform": torch.ones(1, 3), "lengths": torch.tensor([3])})
    assert one.mask.tolist() == [[True]]
    assert one.pooled.isfinite().all()
