"""The source hub: sets of the datasets library, made on the spot, become the same manifest streamed or not."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import call, png, refused, rows_of_three, wav

datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")

from mmkt.data import parquet
from mmkt.data.manifest import fingerprint, read
from mmkt.data.sources.hub import Hub

RANDOM = np.random.default_rng(0)
KINDS = ["cat", "dog", "emu"]
FILE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
FEATURES = datasets.Features(
    {
        "picture": datasets.Image(),
        "several": datasets.List(datasets.Image()),
        "clip": FILE,  # from_dict would want torchcodec for an Audio: it is made one in Arrow
        "kind": datasets.ClassLabel(names=KINDS),
        "tags": datasets.List(datasets.ClassLabel(names=["x", "y"])),
        "translation": {"en": datasets.Value("string"), "de": datasets.Value("string")},
        "captions": datasets.List(datasets.Value("string")),
        "scene": {"view": datasets.Image(), "kind": datasets.ClassLabel(names=KINDS)},
        "grid": datasets.Array2D((2, 2), "float32"),
        "objects": datasets.List({"kind": datasets.ClassLabel(names=KINDS), "size": datasets.Value("float64")}),
    }
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture() -> bytes:
    return png(RANDOM.integers(0, 255, (4, 4, 3), dtype=np.uint8))


def sound() -> bytes:
    return wav(RANDOM.uniform(-0.5, 0.5, 200))


def examples(n: int) -> list[dict]:
    return [
        {
            "picture": {"bytes": picture(), "path": f"/home/somebody/{k}.png"},
            "several": None if k == 1 else [{"bytes": picture(), "path": None} for _ in range(k % 3)],
            "clip": None if k == 2 else {"bytes": sound(), "path": f"clips/{k}.wav"},
            "kind": k % 3 if k != 3 else -1,
            "tags": [0, 1][: k % 3],
            "translation": {"en": f"word {k}", "de": None if k == 4 else f"Wort {k}"},
            "captions": [f"caption {j} of {k}" for j in range(k % 4)],
            "scene": {"view": {"bytes": picture(), "path": None}, "kind": k % 2},
            "grid": [[k, 1.0], [2.0, 3.0]],
            "objects": [{"kind": j, "size": j / 2} for j in range(k % 3)],
        }
        for k in range(n)
    ]


def shelve(rows: list[dict], file: Path, features: datasets.Features = FEATURES, **more: list) -> list[dict]:
    """Rows as a Parquet file such as the library writes."""
    data = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
    if "clip" in features:
        data = data.cast_column("clip", datasets.Audio(sampling_rate=8000))
    table = data.data.table
    for name, values in more.items():
        table = table.append_column(name, pa.array(values))
    if more:
        table = table.replace_schema_metadata(None)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=3)
    return rows


@pytest.fixture
def shelf(tmp_path) -> tuple[Path, dict[str, list[dict]]]:
    """A folder with two splits of every type of column, and what is in it."""
    folder = tmp_path / "shelf"
    names = {"train": "train", "validation": "dev", "test": "test"}
    return folder, {
        split: shelve(examples(n), folder / f"data/{names[split]}-00000-of-00001.parquet")
        for split, n in (("train", 70), ("test", 4), ("validation", 5))
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_every_type_of_column(shelf, tmp_path, streaming):
    folder, rows = shelf
    made = read(Hub(dataset=str(folder), streaming=streaming).prepare(tmp_path / "out", None)).table
    assert made["id"].to_pylist() == [f"{split}-{k}" for split, found in rows.items() for k in range(len(found))]
    for got, row in zip(made.to_pylist(), [row for found in rows.values() for row in found], strict=True):
        assert got["picture"] == {"bytes": row["picture"]["bytes"], "path": row["picture"]["path"].rsplit("/", 1)[-1]}
        assert got["several"] == row["several"]
        assert (got["clip"] or {}).get("bytes") == (row["clip"] or {}).get("bytes")
        assert got["kind"] == (KINDS[row["kind"]] if row["kind"] >= 0 else None)
        assert got["tags"] == [["x", "y"][tag] for tag in row["tags"]]
        assert [got["translation.en"], got["translation.de"]] == list(row["translation"].values())
        assert got["captions"] == row["captions"]
        assert got["scene.view"]["bytes"] == row["scene"]["view"]["bytes"]
        assert got["scene.kind"] == KINDS[row["scene"]["kind"]]
        assert got["grid"] == row["grid"]
        assert got["objects"] == [{"kind": KINDS[x["kind"]], "size": x["size"]} for x in row["objects"]]
    assert "torchcodec" not in sys.modules


def test_what_is_taken(shelf, tmp_path):
    folder, rows = shelf

    def table(**settings):
        return read(Hub(dataset=str(folder), **settings).prepare(tmp_path / "out", None)).table

    for streaming in (False, True):
        few = table(streaming=streaming, rows=4, columns={"image": "picture", "text": "translation.en"})
        assert set(few.column_names) == {"id", "split", "domain", "group", "image", "text"}
        assert few["id"].to_pylist() == [f"{split}-{k}" for split in rows for k in range(4)]
        assert few["text"].to_pylist()[:4] == [f"word {k}" for k in range(4)]
    cut = table(splits={"train": "train[:60]", "validation": "train[60:]", "seen": "dev+test"})
    assert [cut["split"].to_pylist().count(name) for name in ("train", "validation", "seen")] == [60, 10, 9]
    for settings, says in (
        ({"splits": {"train": "trian"}}, r"Unknown split .trian"),
        ({"splits": {"train": "train[:9]"}, "streaming": True}, r"Bad split"),
        ({"columns": {"image": "pictrue"}}, r"no column 'pictrue' \(did you mean 'picture'\?\): it has picture, several"),
        ({"config": "big"}, r"'big' not found. Available: \['default'\]"),
    ):
        with pytest.raises(ValueError, match=says):
            table(**settings)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.parquet"], "nothing half-written stays"


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_folders_of_files_become_one_file(tmp_path, kind, monkeypatch):
    """The bytes are the files', byte by byte, and stay readable when the files are gone."""
    suffix, make = {"image": ("png", picture), "audio": ("wav", sound)}[kind]
    files = {}
    for name in (f"{split}/{label}/{k}" for split in ("train", "test") for label in KINDS for k in range(2)):
        files[name] = make()
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/{name}.{suffix}").write_bytes(files[name])
    for name in ("decode_example", "embed_storage"):
        monkeypatch.setattr({"image": datasets.Image, "audio": datasets.Audio}[kind], name, lambda *_: pytest.fail("decoded"))
    prints = set()
    for streaming in (False, True):
        made = read(Hub(dataset=str(tmp_path / "set"), streaming=streaming).prepare(tmp_path / f"out-{streaming}", None))
        prints.add(fingerprint(made))
        found = {(row["split"], row["label"], row[kind]["path"]): row[kind]["bytes"] for row in made.table.to_pylist()}
        assert found == {(*name.split("/")[:2], f"{name[-1]}.{suffix}"): data for name, data in files.items()}
    assert len(prints) == 1
    assert datasets.Audio.encode_example.__module__ == "datasets.features.audio", "the library is as it was"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tar_file_of_pictures_and_sounds(tmp_path, streaming):
    (tmp_path / "set").mkdir()
    members = {}
    with tarfile.open(tmp_path / "set/train-0.tar", "w") as archive:
        for k in range(4):
            row = {"png": picture(), "wav": sound(), "json": json.dumps({"kind": f"k{k}"}).encode()}
            for suffix, data in row.items():
                entry = tarfile.TarInfo(f"{k:03}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
            members[f"{k:03}"] = row
    made = read(Hub(dataset=str(tmp_path / "set"), streaming=streaming).prepare(tmp_path / "out", None)).table.to_pylist()
    assert [row["__key__"] for row in made] == list(members)
    for row in made:
        expected = members[row["__key__"]]
        assert [row["png"]["bytes"], row["wav"]["bytes"]] == [expected["png"], expected["wav"]]
        assert row["json.kind"] == json.loads(expected["json"])["kind"]


@pytest.mark.parametrize("streaming", [False, True])
def test_json_lines_of_one_split(tmp_path, streaming):
    (tmp_path / "set").mkdir()
    lines = [{"id": k // 2, "said": [f"a{k}", "b"], "group": f"g{k % 3}", "domain": [k]} for k in range(9)]
    (tmp_path / "set/all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = read(Hub(dataset=str(tmp_path / "set"), streaming=streaming).prepare(tmp_path / "out", None)).table
    assert made["split"].null_count == 9, "data.fractions makes them"
    assert made["id"].to_pylist() == [f"train-{k}" for k in range(9)]
    assert made["source_id"].to_pylist() == [str(k // 2) for k in range(9)]
    assert made["group"].to_pylist() == [f"g{k % 3}" for k in range(9)]
    assert made["source_domain"].to_pylist() == [[k] for k in range(9)]
    assert made["said"].to_pylist() == [line["said"] for line in lines]


def test_ids_and_splits_of_its_own(tmp_path):
    rows = [{"kind": k % 3} for k in range(8)]
    features = datasets.Features({"kind": datasets.Value("int64")})
    splits = ["train"] * 5 + ["val"] * 2 + ["test"]
    shelve(rows, tmp_path / "lone/test.parquet", features, id=[f"n{k}" for k in range(8)], split=splits)
    made = read(Hub(dataset=str(tmp_path / "lone")).prepare(tmp_path / "out", None)).table
    assert made["id"].to_pylist() == [f"n{k}" for k in range(8)]
    assert made["split"].to_pylist() == ["train"] * 5 + ["validation"] * 2 + ["test"]
    named = read(Hub(dataset=str(tmp_path / "lone"), splits={"held": "test"}).prepare(tmp_path / "out", None)).table
    assert named["split"].unique().to_pylist() == ["held"]
    assert named["source_split"].to_pylist() == splits


def test_a_manifest_is_written_group_by_group_and_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP", 300)
    path = tmp_path / "manifest.parquet"

    def pieces(ids, wrong=False):
        for k in range(8):
            yield "ab"[k // 4], pa.table({"id": [ids(k, j) for j in range(10)], "x": [float(k)] * 10})
        if wrong:
            yield "b", pa.table({"id": ["z"], "x": ["a word"]})

    parquet.write(pieces(lambda k, j: f"{k}.{j}"), path)
    assert pq.ParquetFile(path).num_row_groups > 2
    assert read(path).table["id"].to_pylist()[-1] == "7.9"
    before = path.read_bytes()
    for bad, says in ((pieces(lambda k, j: f"{k}.{j}", wrong=True), "unlike those before"), (iter(()), "there are no rows")):
        with pytest.raises(ValueError, match=says):
            parquet.write(bad, path)
        assert path.read_bytes() == before
    parquet.write(pieces(lambda k, j: f"{j}"), path)
    table = read(path).table
    assert table["id"].to_pylist() == [f"{name}-{k}" for name in "ab" for k in range(40)]
    assert table["source_id"].to_pylist() == [str(j) for j in range(10)] * 8
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.parquet"]


def test_a_cell_may_name_no_other_file(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "own.png").write_bytes(picture())
    features = datasets.Features({"picture": datasets.Image()})
    for path, fine in (("own.png", True), (str(secret), False), ("../secret.png", False), (f"file://{secret}", False)):
        table = pa.table({"picture": [{"bytes": None, "path": path}]}, schema=features.arrow_schema)
        pq.write_table(table, folder / "train.parquet")
        source = Hub(dataset=str(folder), streaming=True)
        if fine:
            cell = read(source.prepare(tmp_path / "out", None)).table["picture"][0].as_py()
            assert cell == {"bytes": (folder / "own.png").read_bytes(), "path": "own.png"}
        else:
            with pytest.raises(ValueError, match="is no file of the data set"):
                source.prepare(tmp_path / "out", None)


def test_it_says_what_to_type(capfd, tmp_path, monkeypatch):
    err = refused(capfd, "data", "prepare", "hub", "dataset=nobody/nothing", "--out", tmp_path / "out")
    assert "Couldn't reach 'nobody/nothing'" in err
    assert "HF_HUB_OFFLINE is set: unset it, or name a folder as dataset=FOLDER" in err
    assert "dataset" in refused(capfd, "data", "prepare", "hub", "--out", tmp_path / "out")
    assert "dataset=" in refused(capfd, "data", "prepare", "hub", "dataset=x", "--from", tmp_path, "--out", tmp_path / "out")
    (tmp_path / "program").mkdir()
    (tmp_path / "program/program.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"runs no program of a data set.*revision=refs/convert/parquet"):
        Hub(dataset=str(tmp_path / "program")).prepare(tmp_path / "out", None)
    assert not (tmp_path / "ran").exists()
    hidden = "There is no set 'a/b', or it is private"
    error = datasets.exceptions.DatasetNotFoundError(hidden)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match=f"a/b: {hidden}.*hf auth login"):
        Hub(dataset="a/b").prepare(tmp_path / "out", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'mmkt\[hub\]'"):
        Hub(dataset="a/b").prepare(tmp_path / "out", None)


def test_from_the_hub_to_a_model(capfd, tiny_settings, config_file, tmp_path):
    """An experiment whose data set is the Hub's: prepared, trained for two steps, evaluated."""
    kinds = sorted({row["kind"] for row in rows_of_three(8)})
    features = datasets.Features(
        {"img": datasets.Image(), "clip": FILE, "said": datasets.Value("string"), "kind": datasets.ClassLabel(names=kinds)}
    )
    for split, rows in (("train", rows_of_three(32)), ("dev", rows_of_three(16, 1)), ("test", rows_of_three(16, 2))):
        made = [
            {
                "img": {"bytes": row["image"], "path": None},
                "clip": {"bytes": row["audio"], "path": None},
                "said": row["text"],
                "kind": kinds.index(row["kind"]),
            }
            for row in rows
        ]
        shelve(made, tmp_path / f"set/{split}.parquet", features)
    tiny_settings["data"] |= {
        "source": {"name": "hub", "dataset": str(tmp_path / "set")},
        "manifest": str(tmp_path / "made/manifest.parquet"),
        "columns": {"text": "said", "image": "img", "audio": "clip"},
    }
    tiny_settings["train"] |= {"steps": 2, "evaluate_every": 2}
    status, out, err = call(capfd, "train", config_file(tiny_settings), "--json")
    assert status == 0, err
    assert json.loads(out)
    assert json.loads((Path(tiny_settings["run"]) / "best/vocabularies.json").read_text())["kind"]["classes"] == kinds
    assert json.loads((tmp_path / "made/source.json").read_text())["dataset"] == str(tmp_path / "set")
    assert "was made with rows=None" in refused(capfd, "train", config_file(tiny_settings), "data.source.rows=3", "run=other")
