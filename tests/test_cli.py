"""What a person types: help, lists, bad input (a clear message, a non-zero exit, no traceback), --json, predict."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import call, png, refused, rows_of_three, wav, with_rows, write
from safetensors.torch import load_file, save_file

from mmkt.config import override

HOME = Path(__file__).parent.parent


# ---------------------------------------------------------------- small commands


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys; from mmkt.cli import parser; parser().format_help(); "
        "print([m for m in ('torch', 'pyarrow', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_list_imports_no_torch_and_shows_facts(capfd):
    code = "import sys; from mmkt.catalogue import catalogue; catalogue(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
    status, out, _ = call(capfd, "list", "fusion", "--json")
    found = json.loads(out)["fusion"]
    assert status == 0
    assert found["gated"]["facts"]["missing"] == "exact"
    assert found["merged"]["settings"]["layers"] == "2"
    status, out, _ = call(capfd, "list", "fusion")
    assert re.search(r"gated +any +pooled +no +exact +yes +no +M²·D²", out)
    status, out, _ = call(capfd, "list", "fusion", "gated")
    assert "y = Σ_{m∈P} z_m ⊙ h_m" in out
    assert "(M*D)**2" in out
    assert "did you mean 'gated'" in refused(capfd, "list", "fusion", "gatd")
    assert "did you mean 'fusion'" in refused(capfd, "list", "fusoin")


def test_schema(capfd):
    status, out, _ = call(capfd, "schema")
    assert status == 0
    assert "model" in json.loads(out)["properties"]


def test_unknown_command_and_setting(capfd):
    assert call(capfd, "trian")[0] == 2
    status, _, err = call(capfd, "evaluate", "x", "--bach-size", "1")
    assert status == 2
    assert "unrecognised '--bach-size'" in err


# ---------------------------------------------------------------- train, evaluate, predict


def test_dry_run_says_what_would_happen_and_writes_nothing(capfd, tiny_settings, config_file):
    status, out, err = call(capfd, "train", config_file(tiny_settings), "--dry-run", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["steps"] == 6
    assert found["shapes"]["logits kind"] == [12, 8]
    assert sum(part["all"] for part in found["parameters"].values()) > 100_000
    assert "encoders.image" in err
    assert not Path(tiny_settings["run"]).exists()


def test_json_is_one_object_on_standard_output(capfd, tiny_settings, config_file):
    tiny_settings["trackers"] = ["tensorboard"]
    status, out, err = call(capfd, "train", config_file(tiny_settings), "--json")
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert {"run", "split", "metric", "value", "low", "high", "n"} <= set(rows[0])
    assert "validation kind/accuracy" in err
    assert list(Path(tiny_settings["run"]).rglob("events.out.tfevents*"))
    status, out, err = call(capfd, "evaluate", Path(tiny_settings["run"]) / "best", "data.batch_size=5", "--json")
    assert status == 0, err
    again = json.loads(out)["rows"]  # in other batches: the same but for rounding
    assert [row["metric"] + row["group"] for row in again] == [row["metric"] + row["group"] for row in rows]
    assert [row["value"] for row in again] == pytest.approx([row["value"] for row in rows], abs=1e-6, nan_ok=True)
    status, out, _ = call(capfd, "evaluate", Path(tiny_settings["run"]) / "best", "evaluate.split=validation")
    assert status == 0
    assert "accuracy" in out


def test_predict(capfd, trained, tmp_path):
    (tmp_path / "p.png").write_bytes(png(np.full((16, 16), 220, np.uint8)))
    (tmp_path / "s.wav").write_bytes(wav(0.3 * np.sin(np.arange(1600) / 3)))
    words = ["predict", trained, "--text", "it is large", "--image", tmp_path / "p.png", "--audio", tmp_path / "s.wav"]
    status, out, err = call(capfd, *words, "--json")
    assert status == 0, err
    assert json.loads(out)["kind"]["prediction"].startswith("k")
    assert call(capfd, "predict", trained, "--text", "it is small")[0] == 0
    assert "names the modality 'vidoe'" in refused(capfd, "predict", trained, "--vidoe", "x")
    assert "cannot read the file" in refused(capfd, "predict", trained, "--image", tmp_path / "nowhere.png")
    assert "give one modality" in refused(capfd, "predict", trained)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.fusion=gatd"], ["model.fusion", "did you mean 'gated'"]),
        (["model.fuson=gated"], ["model.fuson", "did you mean 'fusion'"]),
        (["train.lr=quick"], ["train.lr", "'quick'"]),
        (
            ["train.lr=-1", "model.dmi=3", "model.heads.kind=classfy"],
            ["train.lr", "did you mean 'dim'", "did you mean 'classify'"],
        ),
        (["data.manifest=nowhere.parquet"], ["nowhere.parquet", "no such file"]),
        (["data.train=trian"], ["the split 'trian' is empty", "train (72 rows)"]),
        (["data.labels={kind: sort}"], ["no column 'sort'"]),
        (["data.columns={image: picture}"], ["no column 'picture'"]),
        (["model.encoders.text.model=no/such-model"], ["model.encoders.text", "could not be loaded"]),
        (["model.encoders.image.model=resnet51"], ["timm has no model 'resnet51'"]),
        (["data.batch_size"], ["looks like train.lr=3e-4"]),
        (["train.epochs=2"], ["either train.steps or train.epochs"]),
        (["train.select=kind/acuracy"], ["train.select", "kind/accuracy"]),
        (["objectives.kind.task=kin"], ["objectives.kind.task", "did you mean 'kind'"]),
    ],
)
def test_settings_that_cannot_be(capfd, tiny_settings, config_file, overrides, says):
    err = refused(capfd, "train", config_file(tiny_settings), *overrides)
    for words in says:
        assert words in err


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("image", "jpeg cut short", "truncated or damaged"),
        ("audio", wav(np.zeros(0)), "no samples"),
        ("audio", b"RIFF", "no sound file"),
        ("image", b"", "no image format"),
    ],
)
def test_media_that_cannot_be_decoded(capfd, tiny_settings, config_file, tmp_path, column, value, says, workers):
    if value == "jpeg cut short":
        import io

        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
        value = stream.getvalue()[:-600]
    data = with_rows(tiny_settings, tmp_path, lambda k, row: row.update({column: value}) if k == 3 else None)
    err = refused(capfd, "train", config_file(data), f"data.workers={workers}")
    assert says in err
    assert f"row 'r3', column '{column}'" in err


def test_rows_that_cannot_be(capfd, tiny_settings, config_file, tmp_path):
    deaf = with_rows(tiny_settings, tmp_path, lambda k, row: row.update(audio=None))
    assert "modality 'audio' (column 'audio') is absent from every row" in refused(capfd, "train", config_file(deaf))
    strange = with_rows(
        tiny_settings, tmp_path, lambda k, row: row.update(kind="k99") if row["split"] == "test" and k % 2 else None
    )
    err = refused(capfd, "train", config_file(strange))
    assert "'k99' is not one of the classes" in err
    assert "column 'kind'" in err
    same = with_rows(tiny_settings, tmp_path, lambda k, row: row.update(kind="k1"))
    assert "two classes or more" in refused(capfd, "train", config_file(same))
    test_only = with_rows(tiny_settings, tmp_path, lambda k, row: row.update(split="test"))
    assert "the split 'train' is empty" in refused(capfd, "train", config_file(test_only))
    nothing = with_rows(tiny_settings, tmp_path, lambda k, row: row.update(kind=None))
    assert "no row of the training split has a label" in refused(capfd, "train", config_file(nothing))


def damaged(trained: Path, tmp_path: Path, change) -> Path:
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(trained, folder)
    change(folder)
    return folder


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rewrite(folder: Path, *overrides: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(override(config, overrides)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: edit(f, lambda t: t.pop("space.missing.text")), "tensor space.missing.text is missing"),
        (lambda f: edit(f, lambda t: t.update(more=t["space.missing.text"].clone())), "tensor more has no place"),
        (lambda f: rewrite(f, "format=99"), "found 99; install a newer mmkt"),
        (lambda f: rewrite(f, "model.fusion.name=os.system"), "there is no 'os.system' in mmkt/fusion"),
        (lambda f: rewrite(f, "plugins=[their_lab]"), "whose code loading would run"),
        (lambda f: (f / "vocabularies.json").unlink(), "vocabularies.json is missing"),
    ],
)
def test_checkpoints_that_cannot_be(capfd, trained, tmp_path, change, says):
    assert says in refused(capfd, "evaluate", damaged(trained, tmp_path, change))


def test_a_batch_of_one_and_a_split_of_one(capfd, trained, tiny_settings, config_file, tmp_path):
    tiny = with_rows(
        tiny_settings, tmp_path, lambda k, row: row.update(split="train" if k < 38 else "validation" if k < 39 else "test")
    )
    tiny["data"]["batch_size"] = 1
    status, out, err = call(capfd, "train", config_file(tiny))
    assert status == 0, err


def test_the_manifest_of_a_source_is_not_reused_under_other_settings(capfd, tmp_path, tiny_settings, config_file):
    manifest = Path(tiny_settings["data"]["manifest"])
    copied = tmp_path / "made/manifest.parquet"
    copied.parent.mkdir()
    copied.write_bytes(manifest.read_bytes())
    (copied.parent / "source.json").write_text(json.dumps({"name": "folder", "kind": "image"}))
    tiny_settings["data"] |= {"manifest": str(copied), "source": {"name": "folder", "kind": "audio"}}
    err = refused(capfd, "train", config_file(tiny_settings))
    assert "was made with kind='image'" in err


# ---------------------------------------------------------------- data


def test_data_check(capfd, tiny_manifest, tmp_path):
    status, out, err = call(capfd, "data", "check", tiny_manifest, "--labels", "kind", "--json")
    found = json.loads(out)
    assert found["splits"] == {"train": 72, "validation": 24, "test": 24}
    rows = rows_of_three(20)
    rows[3]["image"] = b"broken"
    rows[19]["audio"] = rows[0]["audio"]
    status, out, err = call(capfd, "data", "check", write(rows, tmp_path / "bad.parquet"), "--labels", "kind")
    assert status == 1
    assert "r3" in out
    assert "r19" in out
    assert "no such file" in refused(capfd, "data", "check", tmp_path / "none.jsonl")


def test_data_prepare_names_its_settings(capfd, tmp_path):
    err = refused(capfd, "data", "prepare", "folder", "--from", tmp_path, "--out", tmp_path / "o", "kidn=image")
    assert "did you mean 'kind'" in err
    assert "did you mean 'numerals'" in refused(capfd, "data", "prepare", "numeral")


def test_a_folder_of_pictures_from_nothing_to_answers(capfd, tmp_path, config_file):
    """A stranger's pictures: prepare, train, predict."""
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(20):
            (tmp_path / "pictures" / name / f"{k}.png").write_bytes(
                png(random.integers(low, low + 100, (20, 24, 3), dtype=np.uint8))
            )
    status, out, err = call(capfd, "data", "prepare", "folder", "--from", tmp_path / "pictures", "--out", tmp_path / "made")
    assert status == 0, err
    config = {
        "run": str(tmp_path / "run"),
        "data": {"manifest": out.strip(), "batch_size": 8},
        "model": {
            "dim": 16,
            "encoders": {"image": {"name": "timm_image", "model": "test_efficientnet_gn", "weights": "random", "size": 32}},
            "heads": {"label": "classify"},
        },
        "objectives": {"label": {"name": "classify", "task": "label"}},
        "train": {"steps": 20, "lr": 3e-3},
    }
    path = tmp_path / "pictures.yaml"
    path.write_text(yaml.safe_dump(config))
    status, out, err = call(capfd, "train", path, "--json")
    assert status == 0, err
    picture = tmp_path / "pictures/light/3.png"
    status, out, err = call(capfd, "predict", tmp_path / "run/best", "--image", picture, "--json")
    assert json.loads(out)["label"]["prediction"] in ("dark", "light")
