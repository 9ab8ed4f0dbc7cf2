"""Features of frozen encoders: the same to the bit as computing them, never stale, whole after whatever happens to a cache."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import call, experiment, png, rows_of_three, wav, write
from PIL import Image
from safetensors.torch import load_file, save_file

from mmkt import feature_maker, feature_store, launch
from mmkt.checkpoint import CheckpointError
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.resting import rest
from mmkt.workshop import Workshop

FROZEN = 'transfer={name: full, frozen: ["encoders.*"]}'


def prepared(settings: dict, cache: Path, *more: str):
    """A built experiment whose features are in place."""
    config = experiment(settings, FROZEN, f"data.features={cache}", *more)
    setup = launch.build(config)
    plan = setup.parts.build("transfer", config.transfer).phases(setup.learner, 3)
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=config.train.precision)
    rest(setup.learner, setup.feed, plan, launch.used(setup.feed, config), accelerator, Workshop())
    return setup


def trained(settings: dict, cache: Path, run: Path, *more: str, workshop: Workshop | None = None) -> dict[str, torch.Tensor]:
    config = experiment(settings, FROZEN, f"data.features={cache}", f"run={run}", *more)
    launch.train(config, workshop=workshop)
    return load_file(run / "best" / "model.safetensors")


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def fused(tiny_settings) -> dict:
    tiny_settings["model"]["fusion"] = {"name": "merged", "heads": 2}  # reads tokens
    tiny_settings["model"]["space"] = {"dropout": 0.2}
    return tiny_settings


def test_a_training_on_cached_features_is_the_one_that_computes_them_to_the_bit(fused, tmp_path):
    first = trained(fused, tmp_path / "cache", tmp_path / "a")
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.bin")}
    assert len(files) == 3
    assert same(first, trained(fused, tmp_path / "cache", tmp_path / "b"))  # read
    assert {file: file.stat().st_mtime_ns for file in files} == files
    workshop = Workshop()
    assert same(first, trained(fused, tmp_path / "other", tmp_path / "c", workshop=workshop))  # computed anew
    assert same(first, trained(fused, tmp_path / "other", tmp_path / "d", workshop=workshop))  # with that one's encoders
    assert not same(first, trained(fused, tmp_path / "cache", tmp_path / "f", "seed=1"))
    assert not any(name.startswith("encoders.") for name in first)


def test_features_of_another_precision_train(fused, tmp_path):
    """Encoders give bfloat16 then, which what comes after them reads under autocast alone."""
    plain = trained(fused, tmp_path / "cache", tmp_path / "a")
    half = trained(fused, tmp_path / "cache", tmp_path / "b", "train.precision=bf16")
    assert half.keys() == plain.keys()
    assert not same(plain, half)
    assert all(torch.allclose(x, half[name].float(), atol=0.05) for name, x in plain.items())


def test_features_are_what_the_encoders_make_of_the_same_batches(fused, tmp_path):
    setup = prepared(fused, tmp_path / "cache")
    config = setup.learner.model.config
    assert config is not None
    plain = launch.build(config)
    assert not plain.feed.features
    model, compared = plain.learner.model.eval(), 0
    for one, two in zip(setup.feed.training(0, 4), plain.feed.training(0, 4), strict=True):
        encoded = model.encode(two)
        for name in ("row", "domain", "group", "stream"):
            assert torch.equal(getattr(one, name), getattr(two, name))
        assert torch.equal(one.labels["kind"], two.labels["kind"])
        for m, features in one.inputs.items():
            assert torch.equal(features.mask, encoded[m].mask)
            assert torch.equal(features.present, encoded[m].present)
            # how far a batch is padded shows in the last digits
            torch.testing.assert_close(features.tokens, encoded[m].tokens, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(features.pooled, encoded[m].pooled, atol=1e-5, rtol=1e-5)
            compared += 1
    assert compared == 12


def test_a_row_has_the_same_features_whatever_comes_with_it(fused, tmp_path):
    whole = prepared(fused, tmp_path / "whole").feed.features
    some = prepared(fused, tmp_path / "some", "data.subset.share=0.3").feed
    rows = torch.from_numpy(some.rows("train"))
    assert 0 < len(rows) < 40
    for m in whole:
        one, two = (f[m].take(rows, torch.ones(len(rows), dtype=torch.bool), True) for f in (whole, some.features))
        assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("change", [
    "model.encoders.image.size=48", "model.encoders.audio.mels=20", "model.encoders.text.max_tokens=3", "train.precision=bf16",
])  # fmt: skip
def test_another_setting_is_another_key(tiny_settings, tmp_path, change):
    prepared(tiny_settings, tmp_path / "cache")
    before = {entry.key for entry in feature_store.entries(tmp_path / "cache")}
    prepared(tiny_settings, tmp_path / "cache")
    assert {entry.key for entry in feature_store.entries(tmp_path / "cache")} == before
    prepared(tiny_settings, tmp_path / "cache", change)
    added = len(feature_store.entries(tmp_path / "cache")) - len(before)
    assert added == (3 if "precision" in change else 1)


def test_a_weight_a_pixel_a_word_or_a_sample_is_another_key(tiny_settings, tmp_path):
    cache, rows = tmp_path / "cache", rows_of_three(40)
    tiny_settings["data"]["manifest"] = str(write(rows, tmp_path / "rows.parquet"))
    setup = prepared(tiny_settings, cache)
    files = set(cache.rglob("tokens.bin"))
    before = {m: f.pooled[f.place[0]].clone() for m, f in setup.feed.features.items()}
    picture = np.array(Image.open(io.BytesIO(rows[0]["image"])))
    picture[3, 4] ^= 128
    for m, cell in {"image": png(picture), "text": "loud red quiet blue", "audio": wav(np.linspace(0, 0.1, 1500))}.items():
        changed = [rows[0] | {m: cell}, *rows[1:]]
        tiny_settings["data"]["manifest"] = str(write(changed, tmp_path / f"{m}.parquet"))
        found = prepared(tiny_settings, cache).feed.features
        assert len(set(cache.rglob("tokens.bin")) - files) == 1
        files = set(cache.rglob("tokens.bin"))
        for other, features in found.items():
            assert torch.equal(features.pooled[features.place[0]], before[other]) == (other != m)
            assert torch.equal(
                features.pooled[features.place[1]], setup.feed.features[other].pooled[setup.feed.features[other].place[1]]
            )
    prepared(tiny_settings, cache, "seed=1")  # other random weights: image and audio
    assert len(set(cache.rglob("tokens.bin")) - files) == 2


def test_rows_that_the_cache_has_are_not_computed_again(tiny_settings, tmp_path, monkeypatch):
    rows, computed = rows_of_three(40), []
    tiny_settings["data"]["manifest"] = str(write(rows, tmp_path / "rows.parquet"))
    prepared(tiny_settings, tmp_path / "cache")
    real = feature_maker.computed

    def counted(source, which, autocast):
        computed.append((source.modality, len(which)))
        return real(source, which, autocast)

    monkeypatch.setattr(feature_maker, "computed", counted)
    tiny_settings["data"]["manifest"] = str(write([rows[0] | {"text": "loud red quiet blue"}, *rows[1:]], tmp_path / "b.parquet"))
    found = prepared(tiny_settings, tmp_path / "cache").feed.features
    assert computed == [("text", 1)]
    alone = prepared(tiny_settings, tmp_path / "alone").feed.features
    which, there = torch.arange(24), torch.ones(24, dtype=torch.bool)
    for m in found:
        assert all(map(torch.equal, found[m].take(which, there, True), alone[m].take(which, there, True)))


def test_a_body_that_is_lent_rests_too(tiny_settings, tiny_bert, tmp_path):
    noisy = tmp_path / "bert"
    shutil.copytree(tiny_bert, noisy)
    config = json.loads((noisy / "config.json").read_text())
    (noisy / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    borrow = {"name": "borrow", "reads": "image", "body": "text", "size": 16, "channels": 1, "patch": 8}
    text = {"name": "hf_text", "model": str(noisy), "weights": "random"}
    tiny_settings["model"]["encoders"] = {"image": borrow, "text": text}
    both = [prepared(tiny_settings, tmp_path / name).feed.features["image"].pooled for name in ("a", "b")]
    assert torch.equal(*both)  # with dropout in the body they would differ


def test_what_is_cut_is_said(tiny_settings, tmp_path, capfd):
    prepared(tiny_settings, tmp_path / "cache", "model.encoders.text.max_tokens=3")
    assert "were longer than their encoder takes, and cut" in capfd.readouterr().err


def _fill(settings: dict, cache: Path, barrier) -> None:
    barrier.wait()
    prepared(settings, cache)


def test_two_processes_that_fill_one_cache_leave_it_right(tiny_settings, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    both = [context.Process(target=_fill, args=(tiny_settings, tmp_path / "cache", barrier)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 0]
    alone = prepared(tiny_settings, tmp_path / "alone").feed.features
    shared = prepared(tiny_settings, tmp_path / "cache").feed.features
    rows = torch.arange(60)
    for m in alone:
        there = torch.ones(60, dtype=torch.bool)
        assert all(map(torch.equal, alone[m].take(rows, there, True), shared[m].take(rows, there, True)))
    assert len(list((tmp_path / "cache").rglob("tokens.bin"))) == 3
    assert not list((tmp_path / "cache").rglob(".new-*"))


@pytest.mark.parametrize("name", ["tokens.bin", "index.safetensors"])
def test_a_cache_cut_short_is_noticed_and_made_again(tiny_settings, tmp_path, name, capfd):
    before = prepared(tiny_settings, tmp_path / "cache").feed.features["image"]
    rows, there = torch.arange(60), torch.ones(60, dtype=torch.bool)
    before = [x.clone() for x in before.take(rows, there, True)]
    for file in (tmp_path / "cache").rglob(name):
        file.write_bytes(file.read_bytes()[:-8])
    capfd.readouterr()
    after = prepared(tiny_settings, tmp_path / "cache").feed.features["image"]
    assert "is damaged" in capfd.readouterr().err
    assert all(map(torch.equal, before, after.take(rows, there, True)))
    prepared(tiny_settings, tmp_path / "cache")
    assert "is damaged" not in capfd.readouterr().err


def test_rows_without_a_modality_lists_dropout_and_encoders_that_train(tiny_settings, tmp_path):
    rows = rows_of_three(60)
    for k in range(0, 60, 3):
        rows[k]["audio"] = None
    for row in rows[36:48]:
        row["image"] = None
    tiny_settings["data"]["manifest"] = str(write(rows, tmp_path / "rows.parquet"))
    setup = prepared(tiny_settings, tmp_path / "cache", "data.dropout.text=0.5")
    plain = launch.build(setup.learner.model.config)
    seen = 0
    for one, two in zip(setup.feed.training(0, 6), plain.feed.training(0, 6), strict=True):
        for m in ("text", "image", "audio"):
            assert torch.equal(one.present[m], two.present[m])
            assert m not in one.inputs or torch.equal(one.inputs[m].present, one.present[m])
        seen += int((~one.present["text"]).sum())
    assert seen
    mixed = experiment(
        tiny_settings,
        'transfer={name: full, frozen: ["encoders.text"]}',
        f"data.features={tmp_path / 'cache'}",
        f"run={tmp_path / 'm'}",
    )
    launch.train(mixed)
    names = load_file(tmp_path / "m" / "best" / "model.safetensors").keys()
    assert any(name.startswith("encoders.image.") for name in names)
    assert not any(name.startswith("encoders.text.") for name in names)


def test_several_items_of_a_cell(tiny_settings, tmp_path):
    rows = rows_of_three(40)
    for k, row in enumerate(rows):
        row["text"] = [row["text"], "it is loud"] if k % 2 else [row["text"]]
    tiny_settings["data"]["manifest"] = str(write(rows, tmp_path / "rows.parquet"))
    tiny_settings["model"]["fusion"] = {"name": "merged", "heads": 2}
    setup = prepared(tiny_settings, tmp_path / "cache")
    plain = launch.build(setup.learner.model.config)
    one, two = next(setup.feed.training(0, 1)), next(plain.feed.training(0, 1))
    made, wanted = setup.learner.model.eval().fuse(one.inputs), plain.learner.model.eval()(two)
    torch.testing.assert_close(made.logits["kind"], wanted.logits["kind"], atol=1e-4, rtol=1e-4)


def test_its_checkpoint_refers_to_the_encoders(fused, tmp_path):
    trained(fused, tmp_path / "cache", tmp_path / "start")
    whole = tmp_path / "whole"
    Model.from_pretrained(tmp_path / "start" / "best").save_pretrained(whole)
    trained(fused, tmp_path / "cache", tmp_path / "run", f"model.start={whole}", "seed=3")
    model = Model.from_pretrained(tmp_path / "run" / "best")
    began = load_file(whole / "model.safetensors")
    own = model.state_dict()
    assert all(torch.equal(own[name], x) for name, x in began.items() if name.startswith("encoders."))
    assert not torch.equal(
        own["heads.kind.out.weight" if "heads.kind.out.weight" in own else next(n for n in own if n.startswith("heads."))],
        began[next(n for n in own if n.startswith("heads."))],
    )
    name = next(name for name in began if name.startswith("encoders.image."))
    save_file(began | {name: began[name] + 1}, whole / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a delta"):
        Model.from_pretrained(tmp_path / "run" / "best")


def test_where_no_encoder_rests(tiny_settings, tmp_path):
    with pytest.raises(ConfigError, match="no encoder rests: text: it trains"):
        launch.train(experiment(tiny_settings, f"data.features={tmp_path}", f"run={tmp_path / 'r'}"))
    tiny_settings["model"]["encoders"] = {"image": tiny_settings["model"]["encoders"]["image"] | {"augment": True}}
    with pytest.raises(ConfigError, match=r"its inputs are augmented .model.encoders.image.augment=false"):
        launch.train(experiment(tiny_settings, FROZEN, f"data.features={tmp_path}", f"run={tmp_path / 'r'}"))
    tiny_settings["data"]["manifest"] = str(
        write([row | {"image": b"no picture"} for row in rows_of_three(20)], tmp_path / "x.parquet")
    )
    with pytest.raises(ValueError, match="row 'r0', column 'image'"):
        launch.train(
            experiment(
                tiny_settings, FROZEN, "model.encoders.image.augment=false", f"data.features={tmp_path}", f"run={tmp_path / 'r'}"
            )
        )


def test_the_command_lists_and_clears(tiny_settings, tmp_path, capfd):
    prepared(tiny_settings, tmp_path / "cache")
    status, out, _ = call(capfd, "cache", tmp_path / "cache", "--json")
    found = json.loads(out)["features"]
    assert status == 0
    assert {entry["modality"] for entry in found} == {"text", "image", "audio"}
    assert all(entry["rows"] and entry["bytes"] for entry in found)
    status, out, _ = call(capfd, "cache", tmp_path / "cache")
    assert status == 0
    assert "timm_image" in out
    assert call(capfd, "cache", tmp_path / "cache", "--clear", "nothing")[0] == 2
    assert call(capfd, "cache", tmp_path / "cache", "--clear", found[0]["key"][:8])[0] == 0
    assert len(feature_store.entries(tmp_path / "cache")) == 2
    assert call(capfd, "cache", tmp_path / "cache", "--clear")[0] == 0
    assert feature_store.entries(tmp_path / "cache") == []
    status, _, err = call(capfd, "cache", tmp_path / "nowhere")
    assert status == 2
    assert "there is no cache" in err
