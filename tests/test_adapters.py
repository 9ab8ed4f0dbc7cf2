"""Adapters: nothing changes at the start, exactly what is named trains, formulas, merging, errors in words."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel

from mmkt.adapters.bitfit import Bitfit
from mmkt.adapters.bottleneck import Bottleneck
from mmkt.adapters.dora import Dora
from mmkt.adapters.ia3 import Ia3
from mmkt.adapters.lora import Lora
from mmkt.adapters.norms import Norms
from mmkt.adapters.prefix import Prefix
from mmkt.adapters.vera import Vera
from mmkt.encoders.spectrogram import Spectrogram
from mmkt.layers import presets
from mmkt.layers.hf_body import checkpoint_gradients, stages
from mmkt.layers.hf_tower import Tower
from mmkt.types import Encoded, Encoder

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
SIZES |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "hidden_dropout_prob": 0.0, "max_position_embeddings": 20}
SIZES |= {"attention_probs_dropout_prob": 0.0}
TEXT = {"input_ids": torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))}
PICTURE = {k: v for k, v in SIZES.items() if "token_id" not in k and "vocab" not in k} | {"image_size": 16, "patch_size": 8}
PIXELS = {"pixel_values": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
WAVES = SIZES | {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2}
WAVES |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0}
WAVES |= {"activation_dropout": 0.0, "feat_proj_dropout": 0.0, "layerdrop": 0.0, "apply_spec_augment": False}
SOUND = {"input_values": torch.rand(2, 80, generator=torch.Generator().manual_seed(0)) - 0.5}
WHISPER = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WHISPER |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8, "vocab_size": 50, "max_source_positions": 8}
WHISPER |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0, "dropout": 0.0}
GROUPED = SIZES | {"num_key_value_heads": 1}
CLIP = {"text_config": SIZES, "vision_config": PICTURE, "projection_dim": 12}
WINDOWS = {"embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 2, "mlp_ratio": 1.5, "drop_path_rate": 0.0}
HEARING = {"patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2], "num_mel_bins": 16}
HEARING |= {"spec_size": 64, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4], "projection_dim": 12}
CONFIGS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), (SIZES, TEXT)),
    "electra": (SIZES | {"embedding_size": 8}, TEXT),
    "distilbert": ({"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "vocab_size": 50, "dropout": 0.0,
                    "attention_dropout": 0.0}, TEXT),
    "gpt2": ({"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20, "vocab_size": 50, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
              "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 2}, TEXT),
    "mpnet": (SIZES, TEXT),
    **dict.fromkeys(("llama", "qwen2"), (GROUPED, TEXT)),
    **dict.fromkeys(("mistral", "qwen3", "gemma"), (GROUPED | {"head_dim": 8}, TEXT)),
    "clip": (CLIP, TEXT),
    "siglip": (CLIP, TEXT),
    "chinese_clip": (CLIP, TEXT),
    "clap": (CLIP | {"audio_config": HEARING}, TEXT),
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm"), (WAVES, SOUND)),
    "whisper": (WHISPER, {"input_features": torch.rand(2, 8, 16)}),
    "audio-spectrogram-transformer": (SIZES | {"num_mel_bins": 16, "max_length": 32, "patch_size": 8},
                                      {"input_values": torch.rand(2, 32, 16)}),
    "vit": (PICTURE, PIXELS),
    "dinov2": (PICTURE | {"mlp_ratio": 2}, PIXELS),
    "swin": (WINDOWS | {"image_size": 16, "patch_size": 4}, PIXELS),
    **dict.fromkeys(("VisionTransformer", "SwinTransformer"), (None, {"x": PIXELS["pixel_values"]})),
    "mmkt": (None, {"waveform": SOUND["input_values"].repeat(1, 10), "lengths": torch.tensor([800, 500])}),
}  # fmt: skip
# query, key, value, attention_out, up, down
LAYERS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), (
        "encoder.layer.0.attention.self.query encoder.layer.0.attention.self.key encoder.layer.0.attention.self.value "
        "encoder.layer.0.attention.output.dense encoder.layer.0.intermediate.dense encoder.layer.0.output.dense")),
    "distilbert": "transformer.layer.0.attention.q_lin transformer.layer.0.attention.k_lin transformer.layer.0.attention.v_lin "
    "transformer.layer.0.attention.out_lin transformer.layer.0.ffn.lin1 transformer.layer.0.ffn.lin2",
    "gpt2": "h.0.attn.c_attn h.0.attn.c_attn h.0.attn.c_attn h.0.attn.c_proj h.0.mlp.c_fc h.0.mlp.c_proj",
    "mpnet": "encoder.layer.0.attention.attn.q encoder.layer.0.attention.attn.k encoder.layer.0.attention.attn.v "
    "encoder.layer.0.attention.attn.o encoder.layer.0.intermediate.dense encoder.layer.0.output.dense",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), (
        "layers.0.self_attn.q_proj layers.0.self_attn.k_proj layers.0.self_attn.v_proj layers.0.self_attn.o_proj "
        "layers.0.mlp.gate_proj+layers.0.mlp.up_proj layers.0.mlp.down_proj")),
    **dict.fromkeys(("clip", "siglip"), (
        "tower.encoder.layers.0.self_attn.q_proj tower.encoder.layers.0.self_attn.k_proj tower.encoder.layers.0.self_attn.v_proj "
        "tower.encoder.layers.0.self_attn.out_proj tower.encoder.layers.0.mlp.fc1 tower.encoder.layers.0.mlp.fc2")),
    **dict.fromkeys(("chinese_clip", "clap"), (
        "tower.encoder.layer.0.attention.self.query tower.encoder.layer.0.attention.self.key "
        "tower.encoder.layer.0.attention.self.value tower.encoder.layer.0.attention.output.dense "
        "tower.encoder.layer.0.intermediate.dense tower.encoder.layer.0.output.dense")),
    **dict.fromkeys(("wav2vec2", "hubert"), (
        "encoder.layers.0.attention.q_proj encoder.layers.0.attention.k_proj encoder.layers.0.attention.v_proj "
        "encoder.layers.0.attention.out_proj encoder.layers.0.feed_forward.intermediate_dense "
        "encoder.layers.0.feed_forward.output_dense")),
    "wavlm": "- - - - encoder.layers.0.feed_forward.intermediate_dense encoder.layers.0.feed_forward.output_dense",
    "whisper": "layers.0.self_attn.q_proj layers.0.self_attn.k_proj layers.0.self_attn.v_proj layers.0.self_attn.out_proj "
    "layers.0.fc1 layers.0.fc2",
    **dict.fromkeys(("audio-spectrogram-transformer", "vit"), (
        "layers.0.attention.q_proj layers.0.attention.k_proj layers.0.attention.v_proj layers.0.attention.o_proj "
        "layers.0.mlp.fc1 layers.0.mlp.fc2")),
    "dinov2": "encoder.layer.0.attention.q_proj encoder.layer.0.attention.k_proj encoder.layer.0.attention.v_proj "
    "encoder.layer.0.attention.o_proj encoder.layer.0.mlp.fc1 encoder.layer.0.mlp.fc2",
    "VisionTransformer": "blocks.0.attn.qkv blocks.0.attn.qkv blocks.0.attn.qkv blocks.0.attn.proj blocks.0.mlp.fc1 "
    "blocks.0.mlp.fc2",
    "swin": "encoder.layers.0.blocks.0.attention.q_proj encoder.layers.0.blocks.0.attention.k_proj "
    "encoder.layers.0.blocks.0.attention.v_proj encoder.layers.0.blocks.0.attention.o_proj "
    "encoder.layers.0.blocks.0.mlp.fc1 encoder.layers.0.blocks.0.mlp.fc2",
    "SwinTransformer": "layers.0.blocks.0.attn.qkv layers.0.blocks.0.attn.qkv layers.0.blocks.0.attn.qkv "
    "layers.0.blocks.0.attn.proj layers.0.blocks.0.mlp.fc1 layers.0.blocks.0.mlp.fc2",
    "mmkt": "blocks.0.attention.q blocks.0.attention.k blocks.0.attention.v blocks.0.attention.o blocks.0.fc1 blocks.0.fc2",
}  # fmt: skip


class Plain(Encoder):
    """A body and nothing else."""

    backbone, kind, width = "body", "text", 16

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, inputs):
        out = self.body(**inputs)
        return Encoded.of((out if isinstance(out, torch.Tensor) else out.last_hidden_state).flatten(1))

    def stages(self):
        return stages(name for name, _ in self.named_parameters())

    processor = blank = None


SIDES = ("clip", "siglip", "chinese_clip", "clap")
TIMM = {
    "VisionTransformer": ("test_vit", {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 1}),
    "SwinTransformer": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depths": (1,), "num_heads": (2,), "window_size": 2},
    ),
}


def encoder_of(kind: str, side: str = "text") -> Encoder:
    torch.manual_seed(0)
    settings = CONFIGS[kind][0]
    if kind == "mmkt":
        return Spectrogram({}, None, rate=8000, seconds=0.1, mels=8, width=16, layers=1, heads=2).eval()
    if kind in TIMM:
        return Plain(timm.create_model(TIMM[kind][0], **TIMM[kind][1], num_classes=0)).eval()
    body = AutoModel.from_config(AutoConfig.for_model(kind, **settings))
    body = Tower(body, side, False) if kind in SIDES else body.encoder if kind == "whisper" else body
    if getattr(body, "pooler", None) is not None:
        body.pooler = None
    if kind == "gpt2" or "num_key_value_heads" in settings:
        body.config.use_cache = False
    return Plain(body).eval()


def inputs_of(kind: str):
    return CONFIGS[kind][1]


def put(adapter, encoder: Encoder) -> set[str]:
    """As the model does."""
    trains = adapter.apply(encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in trains)
    return trains


def stir(encoder: Encoder, trains: set[str]) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name in sorted(trains):
            parameter = encoder.get_parameter(name)
            parameter.add_(0.2 * torch.randn_like(parameter))


def test_every_preset_is_tried():
    assert set(CONFIGS) == set(LAYERS) == set(presets.PRESETS)


LAST = {"roles": ["up", "down"]}
EVERY = {
    "lora": (Lora, {"r": 2}),
    "dora": (Dora, {"r": 2}),
    "ia3": (Ia3, {}),
    "vera": (Vera, {"r": 4}),
    "bottleneck": (Bottleneck, {"r": 3, "activation": "gelu"}),  # few units: of ReLU none may be alive
    "parallel": (Bottleneck, {"r": 3, "activation": "gelu", "placement": "parallel"}),
    "bitfit": (Bitfit, {}),
    "norms": (Norms, {}),
    "prefix": (Prefix, {"length": 3}),
}


def adapter_of(name: str, kind: str):
    """One that fits a family: what WavLM's attention is made of hears nothing."""
    cls, settings = EVERY[name]
    if kind == "wavlm" and name not in ("bitfit", "norms", "prefix"):
        settings = settings | ({"roles": ["down"]} if name in ("bottleneck", "parallel") else LAST)
    return cls(**settings)


def names_of(name: str, kind: str) -> set[str]:
    """What trains, written out by hand from LAYERS."""
    query, key, value, out, up, down = LAYERS[kind].split()
    if kind == "wavlm":
        query, value, key = up, down, down
    before = "" if kind == "mmkt" else "body."
    ends = {
        "lora": ((query, value), "lora_A.default.weight lora_B.default.weight"),
        "dora": ((query, value), "lora_A.default.weight lora_B.default.weight lora_magnitude_vector.default.weight"),
        "ia3": ((key, value, down) if kind != "wavlm" else (up, down), "ia3_l.default"),
        "vera": ((query, value), "vera_lambda_b.default vera_lambda_d.default"),
        "bottleneck": ((out, down), "bottleneck.down.weight bottleneck.down.bias bottleneck.up.weight bottleneck.up.bias"),
        "prefix": ((out,), "prefix.keys prefix.values prefix.gates"),
    }
    layers, words = ends["bottleneck" if name == "parallel" else name]
    return {f"{before}{layer}.{word}" for layer in layers if layer != "-" for word in words.split()}


# of families that share another's preset and code, one adapter will do
ALIKE = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "mistral",
    "qwen2",
    "hubert",
    "gemma",
    "siglip",
    "chinese_clip",
    "audio-spectrogram-transformer",
)


@pytest.mark.parametrize(("name", "kind"), [(n, k) for k in CONFIGS for n in EVERY if n == "lora" or k not in ALIKE])
def test_an_adapter_on_a_family(name, kind):
    """At the start nothing changes, to the bit; what is named trains, and no other gets a gradient; it merges, or not."""
    encoder, inputs = encoder_of(kind), inputs_of(kind)
    original, names = encoder(inputs).pooled, [n for n, _ in encoder.named_parameters()]
    adapter = adapter_of(name, kind)
    if (name == "bitfit" and kind in ("llama", "qwen3")) or (name == "prefix" and kind not in PREFIXED):
        with pytest.raises(ValueError, match=r"has no biases|no prefixes for a body of the family"):
            adapter.apply(encoder)
        return
    trains = put(adapter, encoder)
    if name not in ("bitfit", "norms"):
        assert trains == names_of(name, kind)
    start = encoder(inputs).pooled
    # of two families attention adds in another order where its weights need no gradient
    reordered = kind in ("wavlm", "swin")
    assert torch.allclose(start, original, atol=1e-6) if reordered else torch.equal(start, original)
    assert sorted(n for stage in encoder.stages() for n in stage) == sorted(n for n, _ in encoder.named_parameters())
    stir(encoder, trains)
    changed = encoder(inputs).pooled
    assert (changed - original).abs().max() > 1e-4
    (changed * torch.randn_like(changed)).sum().backward()
    graded = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert graded == trains
    still = {n for n in graded if not encoder.get_parameter(n).grad.abs().any()}
    assert all(n.endswith(("key.bias", "k_proj.bias", "k_lin.bias", ".k.bias")) for n in still)  # a softmax does not see them
    if not adapter.merges:
        with pytest.raises(ValueError, match="cannot be merged into the body's own weights"):
            adapter.merge(encoder)
        return
    for mode in (True, False):
        assert torch.allclose(encoder.train(mode)(inputs).pooled, changed, atol=1e-5)
    adapter.merge(encoder)
    assert [n for n, _ in encoder.named_parameters()] == names
    assert set(encoder.state_dict()) == set(encoder_of(kind).state_dict())
    for mode in (True, False):
        assert torch.allclose(encoder.train(mode)(inputs).pooled, changed, atol=1e-5)


LINES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma")
PREFIXED = set(CONFIGS) - {*LINES, "mpnet", "wavlm", "swin", "clap", "VisionTransformer", "SwinTransformer"}


@pytest.mark.parametrize(
    ("kind", "side", "named"),
    [
        ("clip", "image", "tower.encoder.layers.0.self_attn.q_proj"),
        ("chinese_clip", "image", "tower.encoder.layers.0.self_attn.q_proj"),
        ("clap", "audio", "tower.audio_encoder.layers.{}.blocks.0.attention.self.query"),
    ],
)
def test_the_other_side_of_a_model(kind, side, named):
    found = presets.layers_of(encoder_of(kind, side=side), ["query"], None)
    assert found == list(dict.fromkeys(named.format(k) for k in range(2)))


def test_pairs_of_a_body_whose_blocks_stand_in_stages():
    encoder = encoder_of("clap", side="audio")
    start = "tower.audio_encoder.layers.{}.blocks.0."
    ends = [(f"{start}attention.output.dense".format(k), f"{start}output.dense".format(k)) for k in range(2)]
    assert presets.pairs(encoder, "attention_out", "down") == ends


def test_biases_and_norms_by_name():
    layer = "body.encoder.layer.0."
    linear = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    linear += ["intermediate.dense", "output.dense"]
    norms = [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm", "body.embeddings.LayerNorm"]
    assert put(Bitfit(), encoder_of("bert")) == {f"{layer}{x}.bias" for x in linear} | {f"{x}.bias" for x in norms}
    assert put(Norms(), encoder_of("bert")) == {f"{x}.{end}" for x in norms for end in ("weight", "bias")}
    llama = [f"body.{x}.weight" for x in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")]
    assert put(Norms(), encoder_of("llama")) == set(llama)
    assert put(Norms(targets=["*.output.LayerNorm"]), encoder_of("bert")) == {
        f"{x}.{end}" for x in norms[:2] for end in ("weight", "bias")
    }


def around(adapter, kind: str, layer: str):
    """The layer under its adapter with stirred parameters, and the one that was there."""
    encoder = encoder_of(kind)
    plain = copy.deepcopy(presets.body_of(encoder).get_submodule(layer))
    stir(encoder, put(adapter, encoder))
    return presets.body_of(encoder).get_submodule(layer), plain


@pytest.mark.parametrize(
    ("kind", "layer"), [("bert", "encoder.layer.0.attention.self.query"), ("gpt2", "h.0.attn.c_attn")], ids=("Linear", "Conv1D")
)
def test_formulas(kind, layer):
    x = torch.randn(3, 16)
    new, old = around(Lora(r=2, alpha=6), kind, layer)
    w = old.weight.T if kind == "gpt2" else old.weight  # (out, in)
    change = 3 * new.lora_B.default.weight @ new.lora_A.default.weight
    assert torch.allclose(new(x), x @ (w + change).T + old.bias, atol=1e-5)
    assert change.abs().max() > 1e-2

    new, _ = around(Dora(r=2, alpha=6), kind, layer)
    v = w + 3 * new.lora_B.default.weight @ new.lora_A.default.weight
    scaled = new.lora_magnitude_vector.default.weight[:, None] * v / v.norm(dim=1, keepdim=True)
    assert torch.allclose(new(x), x @ scaled.T + old.bias, atol=1e-5)

    new, _ = around(Vera(r=4), kind, layer)
    a, b = new.vera_A.default[:, : w.shape[1]], new.vera_B.default[: w.shape[0]]
    y = new.vera_lambda_b.default * ((new.vera_lambda_d.default * (x @ a.T)) @ b.T)
    assert torch.allclose(new(x), old(x) + y, atol=1e-5)

    new, _ = around(Ia3(targets=[layer]), kind, layer)
    assert torch.allclose(new(x), old(x) * new.ia3_l.default.flatten(), atol=1e-6)
    new, _ = around(Ia3(inputs=[layer]), kind, layer)
    assert torch.allclose(new(x), old(x * new.ia3_l.default.flatten()), atol=1e-6)

    new, _ = around(Bottleneck(r=3, targets=[layer], scale=0.5), kind, layer)
    h, b = old(x), new.bottleneck
    assert torch.allclose(new(x), h + 0.5 * b.up(F.relu(b.down(h))), atol=1e-6)


def test_a_parallel_bottleneck_reads_what_enters_the_sublayer():
    encoder = encoder_of("mmkt")
    block, x, mask = copy.deepcopy(encoder.blocks[0]), torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    stir(encoder, put(Bottleneck(r=3, placement="parallel"), encoder))
    new = encoder.blocks[0]
    y = block.norm1(x)
    middle = x + block.attention(y, y, mask) + new.attention.o.bottleneck(y)
    z = block.norm2(middle)
    assert torch.allclose(new(x, mask), middle + block.fc2(F.gelu(block.fc1(z))) + new.fc2.bottleneck(z), atol=1e-5)


@pytest.mark.parametrize("kind", ["mmkt", "bert"])
def test_a_prefix_is_a_gated_attention_of_its_own(kind):
    encoder = encoder_of(kind)
    plain, x, mask = copy.deepcopy(encoder), torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    stir(encoder, put(Prefix(length=3), encoder))
    if kind == "mmkt":
        new, old = encoder.blocks[0].attention, plain.blocks[0].attention
        got, was, out, queries = new(x, x, mask), old(x, x, mask), new.o, old.q(x)
    else:
        new, old = encoder.body.encoder.layer[0].attention, plain.body.encoder.layer[0].attention
        pick = {}
        new.output.dense.register_forward_hook(lambda _, given, out: pick.update(got=out))
        old.output.dense.register_forward_hook(lambda _, given, out: pick.update(was=out))
        new(x), old(x)
        got, was, out, queries = pick["got"], pick["was"], new.output.dense, old.self.query(x)
    added = []
    for head in range(2):
        of = slice(8 * head, 8 * head + 8)
        seen = (queries[..., of] @ out.prefix.keys[:, of].T / 8**0.5).softmax(-1) @ out.prefix.values[:, of]
        added.append(torch.tanh(out.prefix.gates[head]) * seen)
    assert torch.allclose(got, was + torch.cat(added, -1) @ out.weight.T, atol=1e-5)
    assert (got - was).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["parallel", "prefix", "vera"])
def test_a_copy_is_changed_by_its_own_alone(name):
    encoder = encoder_of("bert")
    trains = put(adapter_of(name, "bert"), encoder)
    stir(encoder, trains)
    other = copy.deepcopy(encoder)
    before = encoder(TEXT).pooled
    with torch.no_grad():
        for parameter in trains:
            other.get_parameter(parameter).zero_()
    assert torch.equal(encoder(TEXT).pooled, before)
    assert torch.equal(other(TEXT).pooled, encoder_of("bert")(TEXT).pooled)


@pytest.mark.parametrize("name", ["lora", "parallel", "prefix"])
def test_activations_computed_again_give_the_same_gradients(name):
    found = []
    for again in (False, True):
        encoder = encoder_of("bert")
        trains = put(adapter_of(name, "bert"), encoder)
        stir(encoder, trains)
        encoder.train()
        if again:
            checkpoint_gradients(encoder.body)
        encoder(TEXT).pooled.square().sum().backward()
        found.append({n: encoder.get_parameter(n).grad for n in trains})
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-6) for n in found[0])


def test_targets_are_whole_names():
    encoder = encoder_of("bert")
    trains = put(Lora(r=2, targets=["encoder.layer.[0-9].output.dense"]), encoder)
    assert trains == {f"body.encoder.layer.0.output.dense.lora_{x}.default.weight" for x in "AB"}  # not attention.output.dense


class Shared(Plain):
    backbone = None


WORDS = [
    (Lora(targets=["layer.0.query"]), "bert", r"'layer.0.query' matches nothing; .* near are encoder.layer.0.*query"),
    (Lora(targets=["encoder.layer.0"]), "bert", "'encoder.layer.0' matches encoder.layer.0, which is no linear layer"),
    (Bitfit(targets=["quary"]), "bert", "'quary' matches nothing; patterns are of whole names"),
    (Lora(), "wavlm", r"a wavlm body has no layer of its own as query or value.*roles: \[up, down\]"),
    (Prefix(), "llama", "no prefixes for a body of the family llama; there are for bert"),
]


@pytest.mark.parametrize(("adapter", "kind", "words"), WORDS, ids=[words[:20] for *_, words in WORDS])
def test_errors_in_words(adapter, kind, words):
    with pytest.raises(ValueError, match=words):
        adapter.apply(encoder_of(kind))


def test_errors_about_bodies():
    with pytest.raises(ValueError, match="Shared owns no body for an adapter: put it on the encoder that owns the body"):
        Lora().apply(Shared(nn.Linear(2, 2)))
    mixer = Plain(timm.create_model("test_mambaout", num_classes=0))
    words = r"no preset for the family MambaOut; there are presets for bert, .*, such as targets: \['stages\.\*\.blocks"
    with pytest.raises(ValueError, match=words):
        Lora().apply(mixer)
    assert Lora(targets=["stages.*.blocks.*.fc1"]).apply(mixer)
    with pytest.raises(ValueError, match="parallel needs to know where a sublayer begins"):
        Bottleneck(placement="parallel", targets=["*"])
