"""Rows, checkpoints and manifests of strangers, through the command line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import call, png, refused, rows_of_three, wav, with_rows, write

from mmkt.checkpoint import read_tensors
from mmkt.model import Model

HOME = Path(__file__).parent.parent
BAD = {
    "r3": ("image", "truncated"),
    "r5": ("audio", "no samples"),
    "r30": ("image", "cannot read the file"),
    "r33": ("audio", "NaN"),
}


def spoil(k: int, row: dict) -> None:
    """A cut PNG and an empty WAV in training, a missing file in validation or test, a WAV with NaN in test."""
    row["image"] = {"bytes": row["image"], "path": None}
    if k == 3:
        row["image"]["bytes"] = png(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8))[:-600]
    if k == 5:
        row["audio"] = wav(np.zeros(0))
    if k == 30:
        row["image"] = {"bytes": None, "path": "nowhere.png"}
    if k == 33:
        row["audio"] = nan_wav()
    if k in (3, 5):
        row["kind"] = "k_only_in_bad_rows"


def nan_wav() -> bytes:
    import io

    import soundfile

    stream = io.BytesIO()
    samples = np.zeros(800, np.float32)
    samples[7] = np.nan
    soundfile.write(stream, samples, 8000, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def test_bad_rows_are_refused_or_left_out(capfd, tiny_settings, config_file, tmp_path):
    data = with_rows(tiny_settings, tmp_path, spoil)
    assert "row 'r" in refused(capfd, "train", config_file(data), f"run={tmp_path}/refused")
    run = Path(data["run"])
    status, out, err = call(capfd, "train", config_file(data), "data.bad_rows=drop", "--json")
    assert status == 0, err
    assert "4 of 40 rows cannot be decoded and are left out" in err
    lines = [json.loads(line) for line in (run / "bad_rows.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == sorted(BAD, key=lambda name: int(name[1:]))
    for line in lines:
        column, words = BAD[line["id"]]
        assert line["column"] == column
        assert words in line["message"]
    classes = json.loads((run / "best/vocabularies.json").read_text())["kind"]
    assert "k_only_in_bad_rows" not in classes["classes"]
    assert sum(classes["counts"]) == 22  # of 24 training rows
    table = pq.read_table(run / "best/evaluation-test/predictions.parquet")
    assert table["id"].to_pylist() == ["r32", *(f"r{k}" for k in range(34, 40))]
    status, _, err = call(capfd, "train", config_file(data), "data.bad_rows=drop", "--resume")
    assert status == 0, err
    # evaluation: refused again unless told, and its list lies beside its figures
    words = ["evaluate", run / "best", f"--out={tmp_path}/out"]
    assert "row 'r" in refused(capfd, *words, "data.bad_rows=refuse")
    status, _, err = call(capfd, *words)
    assert status == 0, err
    assert "1 of 8 rows cannot be decoded" in err
    assert [json.loads(line)["id"] for line in (tmp_path / "out/bad_rows.jsonl").read_text().splitlines()] == ["r33"]


def test_with_nothing_bad_drop_changes_nothing(capfd, tiny_settings, config_file, tmp_path):
    losses = []
    for value in ("refuse", "drop"):
        run = tmp_path / value
        assert call(capfd, "train", config_file(tiny_settings), f"data.bad_rows={value}", f"run={run}")[0] == 0
        losses.append([json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()])
        assert not (run / "bad_rows.jsonl").exists()
    assert losses[0] == losses[1]


# ---------------------------------------------------------------- embed


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Path:
    rows = rows_of_three(21, seed=3)
    for k, row in enumerate(rows):
        for name in ("split", "kind", "tags", "size"):
            del row[name]
        if k % 3 == 0:
            row["audio"] = None
        if k % 4 == 1:
            row["image"] = None
    return write(rows, tmp_path_factory.mktemp("unlabelled") / "rows.parquet")


def embedded_by_two(checkpoint: Path, manifest: Path, out: Path, *words: str) -> pa.Table:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    module = ["-m", "mmkt.cli", "embed", str(checkpoint), str(manifest), "--out", str(out), *words]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, *module], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return pq.read_table(out)


def test_embed(capfd, trained, unlabelled, tmp_path):
    for name, more in (("one", []), ("unit", ["--normalize"])):
        status, _, err = call(capfd, "embed", trained, unlabelled, "--out", tmp_path / f"{name}.parquet", *more)
        assert status == 0, err
    one, unit = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "unit"))
    rows = pq.read_table(unlabelled).to_pylist()
    assert one.column_names == ["id", "split", "domain", "group", "text", "image", "audio", "fused"]
    assert one["id"].to_pylist() == [row["id"] for row in rows]
    model = Model.from_pretrained(trained)
    from mmkt.data.collate import Collate
    from mmkt.data.rows import Rows

    processors = {m: encoder.processor() for m, encoder in model.encoders.items()}
    source, none = Rows(None, {m: m for m in processors}, processors, seed=0, train=False), torch.full((1,), -1)
    collate = Collate(model.modalities, processors, {}, none, none)
    for k, row in enumerate(rows):  # each row alone, by the model itself
        with torch.inference_mode():
            item = source.item({m: row[m] for m in processors if row[m] is not None})
            outputs = model(collate([item]))
        for name in ("text", "image", "audio", "fused"):
            found, short = (table[name][k].as_py() for table in (one, unit))
            if name != "fused" and row[name] is None:
                assert found is None
                assert short is None
                continue
            expected = (outputs.fused if name == "fused" else outputs.encoded[name]).pooled[0].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)
            np.testing.assert_allclose(short, expected / np.linalg.norm(expected), atol=1e-5)
    assert one["audio"].null_count == 7
    assert one.schema.field("fused").type == pa.list_(pa.float32())


@pytest.mark.slow  # two processes predict as one in test_evaluate_any_way; here that rank 0 writes what both found
def test_two_processes_embed_what_one_does(capfd, trained, unlabelled, tmp_path):
    assert call(capfd, "embed", trained, unlabelled, "--out", tmp_path / "one.parquet")[0] == 0
    one = pq.read_table(tmp_path / "one.parquet")
    two = embedded_by_two(trained, unlabelled, tmp_path / "two.parquet", "data.batch_size=4")
    assert one["id"] == two["id"]
    for name in ("text", "image", "audio", "fused"):
        for found, again in zip(one[name].to_pylist(), two[name].to_pylist(), strict=True):
            assert (found is None) == (again is None)
            if found is not None:
                np.testing.assert_allclose(again, found, atol=1e-5)


def test_embed_refuses_and_leaves_out(capfd, trained, unlabelled, tmp_path):
    assert "is fixed in a checkpoint; data.… can be set" in refused(capfd, "embed", trained, unlabelled, "evaluate.split=x")
    assert "no such file" in refused(capfd, "embed", trained, tmp_path / "none.csv")
    rows = pq.read_table(unlabelled).to_pylist()
    rows[4]["audio"] = b"RIFF"
    spoiled = write(rows, tmp_path / "spoiled.parquet")
    assert "row 'r4', column 'audio'" in refused(capfd, "embed", trained, spoiled, "--out", tmp_path / "x.parquet")
    status, out, err = call(capfd, "embed", trained, spoiled, "--out", tmp_path / "x.parquet", "data.bad_rows=drop", "--json")
    assert status == 0, err
    assert json.loads(out) == {"embeddings": str(tmp_path / "x.parquet")}
    assert pq.read_table(tmp_path / "x.parquet")["id"].to_pylist() == [row["id"] for row in rows if row["id"] != "r4"]
    assert json.loads((tmp_path / "x.bad_rows.jsonl").read_text())["column"] == "audio"


def test_folds_from_the_command_line(capfd, tiny_settings, config_file, tmp_path):
    tiny_settings["model"]["encoders"] = {"image": tiny_settings["model"]["encoders"]["image"]}
    words = [
        "folds",
        config_file(tiny_settings),
        "train.steps=2",
        "train.evaluate_every=2",
        "data.fold.validation=0.4",
        "--k",
        "2",
    ]
    status, out, err = call(capfd, *words, "--json")
    assert status == 0, err
    figure = json.loads(out)["figures"][0]
    assert list(figure["folds"]) == ["1", "2"]
    assert figure["low"] <= figure["mean"] <= figure["high"]
    status, out, err = call(capfd, *words)  # all is read
    assert "95 % interval" in out
    assert "loss" not in err
    assert "no column 'speaker'" in refused(capfd, "folds", config_file(tiny_settings), "--by", "speaker")


# ---------------------------------------------------------------- what newcomers tried


def test_a_run_that_made_no_step_is_started_anew(capfd, tiny_settings, config_file, tmp_path):
    data = with_rows(tiny_settings, tmp_path, lambda k, row: row.update(image=b"no picture"))
    assert "no image format" in refused(capfd, "train", config_file(data))
    assert (Path(data["run"]) / "config.json").is_file()
    assert "no image format" in refused(capfd, "train", config_file(data), "--resume")  # the same run, from its first step
    assert "was started with another data.manifest" in refused(
        capfd, "train", config_file(tiny_settings), f"run={data['run']}", "--resume"
    )
    assert "there is no run to resume" in refused(capfd, "train", config_file(data), "--resume", f"run={tmp_path}/none")
    status, _, err = call(capfd, "train", config_file(tiny_settings), f"run={data['run']}")
    assert status == 0, err
    config = json.loads((Path(data["run"]) / "config.json").read_text())
    assert config["data"]["manifest"] == tiny_settings["data"]["manifest"]
    assert "has a run already" in refused(capfd, "train", config_file(tiny_settings), f"run={data['run']}")


def test_a_setting_in_the_wrong_place_is_found(capfd, tiny_settings, config_file):
    err = refused(capfd, "train", config_file(tiny_settings), "train.threads=1", "data.lr=1e-3")
    assert "train.threads: there is no setting 'threads'; did you mean threads?" in err
    assert "data.lr: there is no setting 'lr'; did you mean train.lr?" in err
    assert "(train.epochs=null train.steps=200)" in refused(capfd, "train", config_file(tiny_settings), "train.epochs=1")


def test_a_batch_of_one_and_a_batch_norm(capfd, tiny_settings, config_file):
    words = ["data.batch_size=1", "model.encoders.image.model=resnet10t", "model.encoders.image.size=32"]
    assert "data.batch_size: a process has 1 row(s) of it" in refused(capfd, "train", config_file(tiny_settings), *words)


def test_files_that_are_read_as_text_are_said(capfd, tiny_settings, config_file, tmp_path):
    data = with_rows(tiny_settings, tmp_path, lambda k, row: row.update(text=f"pictures/{k}.png"))
    status, _, err = call(capfd, "train", config_file(data), "train.steps=1")
    assert status == 0, err
    assert "text: the column 'text' looks like image files, and is read as text" in err
    assert "looks like" not in call(capfd, "train", config_file(tiny_settings), "train.steps=1", f"run={tmp_path}/plain")[2]


def test_paths_with_backslashes_get_a_hint(capfd, tmp_path):
    rows = "".join(f"{k},photos\\{k}.png\n" for k in range(30))
    (tmp_path / "m.csv").write_text(f"id,photo\n{rows}")
    status, out, _ = call(capfd, "data", "check", tmp_path / "m.csv")
    assert status == 1
    assert "parted by /" in " ".join(out.split())
    assert "and 10 more problems (--json names all)" in out


def test_no_split_at_all_is_no_problem(capfd, tmp_path):
    (tmp_path / "m.csv").write_text("id,text\n1,a\n2,b\n")
    status, out, _ = call(capfd, "data", "check", tmp_path / "m.csv")
    assert status == 0
    assert "no row names a split: data.fractions will share them out" in out
    (tmp_path / "m.csv").write_text("id,text,split\n1,a,train\n2,b,\n")
    status, out, _ = call(capfd, "data", "check", tmp_path / "m.csv")
    assert status == 1
    assert "1 rows have no split: name it in every row, or in none" in out


# ---------------------------------------------------------------- bad input


def huge_png(side: int = 30_000) -> bytes:
    """A picture of one bit a pixel, black: 110 kB that would be 2.7 GB decoded."""
    pack = zlib.compressobj(9)
    line = b"\0" * (1 + side // 8)
    data = b"".join(pack.compress(line) for _ in range(side)) + pack.flush()

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("image", huge_png, "too many pixels, the limit is 64,000,000: raise data.max_pixels"),
        ("audio", nan_wav, "samples are NaN"),
        ("text", lambda: "a" * 100_001, "100,001 characters, the limit is 100,000"),
    ],
)
def test_items_past_the_limits(capfd, tiny_settings, config_file, tmp_path, column, value, says):
    data = with_rows(tiny_settings, tmp_path, lambda k, row: row.update({column: value()}) if k == 3 else None)
    err = refused(capfd, "train", config_file(data))
    assert says in err
    assert f"row 'r3', column '{column}'" in err
    status, out, err = call(capfd, "data", "check", data["data"]["manifest"])
    assert status == 1
    assert "Traceback" not in err + out
    assert "problem: row 'r3'" in out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,text,kind\n1,café,a\n2,thé,b\n".encode("latin-1"), "line 2: not UTF-8 (byte 0xe9); save the file as UTF-8"),
        (b"id,text,kind\n1,a,x\n1,b,y\n", "1 ids stand for more than one row: 1"),
    ],
)
def test_manifests_that_cannot_be(capfd, tiny_settings, config_file, tmp_path, content, says):
    (tmp_path / "m.csv").write_bytes(content)
    assert says in refused(capfd, "train", config_file(tiny_settings), f"data.manifest={tmp_path}/m.csv")
    assert says in refused(capfd, "data", "check", tmp_path / "m.csv")


def test_a_member_outside_its_zip(capfd, tiny_settings, config_file, tmp_path):
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        pack.writestr("../../x.png", png(np.zeros((8, 8), np.uint8)))

    def change(k, row):
        row["image"] = {"bytes": None if k == 3 else row["image"], "path": "pack.zip::../../x.png"}

    data = with_rows(tiny_settings, tmp_path, change)
    assert "must stay inside its zip file" in refused(capfd, "train", config_file(data))


def pickled(folder: Path) -> None:
    tensors = {name: x.clone() for name, x in read_tensors(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()  # it is mapped into memory
    torch.save(tensors, folder / "model.safetensors")


def poisoned(folder: Path) -> None:
    class Poison:
        def __reduce__(self):
            return Path.touch, (folder / "poisoned",)

    (folder / "model.safetensors").write_bytes(pickle.dumps(Poison()))


def half_written(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "vocabularies.json").unlink()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (pickled, "not a whole safetensors file"),
        (poisoned, "not a whole safetensors file"),
        (half_written, "is missing: is "),
        (cut, "not a whole safetensors file"),
    ],
)
def test_weights_that_cannot_be(capfd, trained, tiny_settings, config_file, unlabelled, tmp_path, change, says):
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained, folder)
    change(folder)
    for words in (["evaluate", folder], ["embed", folder, unlabelled], ["predict", folder, "--text", "it"]):
        assert says in refused(capfd, *words)
    assert says in refused(capfd, "train", config_file(tiny_settings), f"model.start={folder}")
    assert not (folder / "poisoned").exists()
