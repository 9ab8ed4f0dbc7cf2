import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmkt.data import check, columns, formats, mapped
from mmkt.data.columns import codes
from mmkt.data.manifest import ManifestError, column_of, fingerprint, from_rows, read
from mmkt.data.splits import assign_splits, rows_of, without


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_guaranteed_columns_and_union_of_keys(tmp_path):
    manifest = read(_jsonl(tmp_path / "m.jsonl", [{"text": "a", "domain": 3}, {"text": "b\u2028c", "label": 1.5, "split": ""}]))
    assert manifest.root == tmp_path
    assert manifest.table["id"].to_pylist() == ["0", "1"]
    assert manifest.table["domain"].to_pylist() == ["3", None]
    assert manifest.table["split"].to_pylist() == [None, None]
    assert manifest.table["label"].to_pylist() == [None, 1.5]
    assert manifest.table["text"].to_pylist()[1] == "b\u2028c"
    for name in ("id", "split", "domain", "group"):
        assert manifest.table[name].type == pa.string()


def test_csv_keeps_codes_texts_and_nulls(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(b'\xef\xbb\xbfid,zip,n,x,word,text\n001,02139,7,1.5,NA,"two\nlines"\n002,10001,,2,null,"a ""b"""\n')
    table = read(path).table
    assert table["id"].to_pylist() == ["001", "002"]
    assert table["zip"].to_pylist() == ["02139", "10001"]
    assert table["n"].to_pylist() == [7, None]
    assert table["x"].to_pylist() == [1.5, 2.0]
    assert table["word"].to_pylist() == ["NA", "null"]
    assert table["text"].to_pylist() == ["two\nlines", 'a "b"']


def test_csv_long_integers_stay_exact(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("a,b,c\n123456789012345678901234,1_000,0\n1,2,-5\n")
    table = read(path).table
    assert table["a"].to_pylist()[0] == "123456789012345678901234"
    assert table["b"].to_pylist() == ["1_000", "2"]
    assert table["c"].to_pylist() == [0, -5]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("m.jsonl", b'{"a": 1}\n\n[1]\n', "line 3: a line is an object"),
        ("m.jsonl", b"", "the file is empty"),
        ("m.jsonl", b"\n\n", "there are no rows"),
        ("m.jsonl", b'{"id": "r1"}\n{"id": "r1"}\n{"id": "r2"}\n', "1 ids stand for more than one row: r1"),
        ("m.jsonl", b'{"id": "r1"}\n{"id": null}\n', r"1 rows lack an id \(row numbers 1\)"),
        ("m.jsonl", b'{"a": 1}\n{"a": "x"}\n', "column 'a' mixes or holds what a table cannot \\(int, str\\)"),
        ("m.jsonl", b'{"split": ["x"]}\n', "'split' holds strings or numbers"),
        ("m.csv", b"a,b\n1,2\n3\n", "line 3: 1 fields where the header has 2"),
        ("m.csv", b'a,b\n1,"x"y\n', "line 2"),
        ("m.csv", b"a,a\n1,2\n", "'a' stands there twice"),
        ("m.csv", b"a,b\n1,2\n1,caf\xe9\n", "line 3: not UTF-8 \\(byte 0xe9\\)"),
        ("m.csv", b"a,b\n", "there are no rows"),
        ("m.parquet", b"PAR1 no", "not a readable Parquet"),
        ("m.arrow", b"ARROW1 no", "not a readable Arrow IPC file"),
        ("m.xlsx", b"x", r"ends in \.jsonl, \.csv, \.parquet, \.arrow, not in '\.xlsx'"),
    ],
)
def test_errors_say_where(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read(tmp_path / name)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ManifestError, match=r"did you mean .*manifest\.jsonl\?"):
        read(tmp_path / "manifset.jsonl")
    with pytest.raises(ManifestError, match="there is no folder"):
        read(tmp_path / "nowhere" / "m.csv")


def test_fingerprint_is_of_content_not_of_storage(tmp_path):
    rows = [{"id": f"r{i}", "text": f"t {i}", "label": i % 3, "x": i / 7, "note": None} for i in range(50)]
    a = read(_jsonl(tmp_path / "a.jsonl", rows))
    pq.write_table(a.table.select(["x", "label", "text", "id"]), tmp_path / "b.parquet", row_group_size=7)
    lines = ["id,x,label,text"] + [f"{r['id']},{r['x']!r},{r['label']},{r['text']}" for r in rows]
    (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
    assert fingerprint(a) == fingerprint(read(tmp_path / "b.parquet")) == fingerprint(read(tmp_path / "c.csv"))
    rows[17]["label"] = 5
    assert fingerprint(from_rows(rows)) != fingerprint(a)


def test_pieces_have_the_types_of_the_whole(tmp_path, monkeypatch):
    """Columns that come late, and types that only a late row decides, over pieces of three rows."""
    rows = [
        {"id": f"r{i}", "x": i if i < 7 else i + 0.5, "cell": None if i < 5 else {"bytes": None, "path": f"{i}.png"}}
        | ({"tags": [] if i < 8 else ["a", None]} if i > 2 else {})
        for i in range(11)
    ]
    lines = [["id", "n", "x", "code"], *([f"r{i}", i, i if i < 7 else i + 0.5, i if i < 10 else "007"] for i in range(11))]
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    _jsonl(tmp_path / "m.jsonl", rows)
    whole = from_rows(rows).table, read(tmp_path / "m.csv").table
    monkeypatch.setattr(formats, "ROWS", 3)
    monkeypatch.setattr(columns, "ROWS", 3)
    parts = read(tmp_path / "m.jsonl").table, read(tmp_path / "m.csv").table
    assert [part["id"].num_chunks for part in parts] == [4, 4]
    for one, two in zip(whole, parts):
        assert one.equals(two)
    assert [str(parts[1][name].type) for name in ("n", "x", "code")] == ["int64", "double", "string"]
    _jsonl(tmp_path / "m.jsonl", [*rows, {"tags": "a"}])
    with pytest.raises(ManifestError, match=r"column 'tags' mixes or holds what a table cannot \(list, str\)"):
        read(tmp_path / "m.jsonl")
    (tmp_path / "m.csv").write_bytes(b"a,b\n" + b"1,2\n" * 9 + b"1\n")
    with pytest.raises(ManifestError, match="line 11: 1 fields"):
        read(tmp_path / "m.csv")


def _million(rows):
    """As a script makes it, a piece of a manifest of a million."""
    words = np.random.default_rng(0).integers(0, 10**9, (rows, 4)).astype(str)
    kinds = np.array(["cat", "dog"])[np.arange(rows) % 2]
    columns = {"id": np.char.add("row-", np.arange(rows).astype(str)), "split": np.where(np.arange(rows) % 9, "train", "test")}
    columns |= {"group": words[:, 0], "image": [f"{w}.png" for w in words[:, 1]], "caption": [" ".join(w) for w in words]}
    return pa.table({**columns, "kind": kinds})


def _stored(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".csv":
        from pyarrow.csv import write_csv

        write_csv(table, path)
    else:
        _jsonl(path, table.to_pylist())
    return path


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl", "m.arrow"])
def test_rows_lie_in_a_mapped_file_and_not_in_memory(tmp_path, name):
    table = _million(20_000)
    path, size = _stored(table, tmp_path / name), table.nbytes
    before = pa.total_allocated_bytes()
    manifest = read(path)
    assert pa.total_allocated_bytes() - before < size / 5  # the column "domain", of nulls, alone
    assert manifest.table.select(table.column_names).to_pylist() == table.to_pylist()
    assert fingerprint(manifest) == fingerprint(from_rows(table.to_pylist()))
    assert without(manifest, {"row-7"}).table["id"].to_pylist() == [f"row-{i}" for i in range(20_000) if i != 7]
    assert pa.total_allocated_bytes() - before < size / 5
    mapped.release()  # pages come back by themselves
    assert manifest.table["caption"][19_999].as_py() == table["caption"][19_999].as_py()


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    path = _stored(_million(30_000), tmp_path / "m.parquet")
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(mapped.tempfile, "TemporaryFile", lambda: full.open("r+b", buffering=0))
    with pytest.raises(ManifestError, match=r"No space left on device.*let TMPDIR name a folder with more room.*\.arrow"):
        read(path)


def test_python_objects_are_of_a_piece_and_not_of_all_rows(tmp_path):
    """A string is 50 bytes at the least, and a row has six."""
    peaks = []
    for rows in (8_000, 32_000):
        path = _stored(_million(rows), tmp_path / "m.parquet")
        tracemalloc.start()
        manifest = read(path)
        check.check(manifest, {"image": "image"}, ["kind"], content=False)
        fingerprint(manifest)
        codes(manifest.table["group"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 24_000 < 60, peaks  # bytes a row: a digest, codes, masks


def test_categories_and_codes(tmp_path):
    table = pa.table({"kind": pa.array(["b", "a", None, "b"]).dictionary_encode(), "x": [1.5, None, float("nan"), 1.5]})
    for name in ("m.parquet", "m.arrow"):
        found = read(_stored(table, tmp_path / name)).table
        assert found["kind"].type == pa.string()
        assert found["kind"].to_pylist() == ["b", "a", None, "b"]
    values, place = codes(found["x"])
    assert (values.to_pylist(), place.tolist()) == ([1.5], [0, -1, -1, 0])
    values, place = codes(from_rows([{"t": t} for t in (["a"], [], None, ["a"], ["b", "a"])]).table["t"])
    assert (values.to_pylist(), place.tolist()) == ([["a"], [], ["b", "a"]], [0, 1, -1, 0, 2])


def test_fingerprint_counts_media_bytes():
    def of(data):
        return fingerprint(from_rows([{"image": {"bytes": data, "path": "x.png"}}]))

    assert of(b"1") == of(b"1") != of(b"2")


def test_splits_respect_groups_fractions_and_ignore_order():
    rng = np.random.default_rng(0)
    rows = [{"id": f"r{i}", "group": None if i % 5 == 0 else f"g{rng.integers(60)}"} for i in range(1000)]
    fractions = {"train": 0.7, "validation": 0.1, "test": 0.2}
    table = assign_splits(from_rows(rows), fractions, seed=1).table.to_pylist()
    by_group = {}
    for row in table:
        by_group.setdefault(row["group"] or row["id"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_group.values())
    for name, fraction in fractions.items():
        assert abs(sum(row["split"] == name for row in table) - fraction * 1000) < 20
    shuffled = assign_splits(from_rows([rows[i] for i in rng.permutation(1000)]), fractions, seed=1).table.to_pylist()
    assert {r["id"]: r["split"] for r in table} == {r["id"]: r["split"] for r in shuffled}
    other = assign_splits(from_rows(rows), fractions, seed=2).table.to_pylist()
    assert other != table


def test_splits_are_refused_where_they_cannot_be():
    with pytest.raises(ManifestError, match="1 of 2 rows have a split already"):
        assign_splits(from_rows([{"split": "train"}, {"split": None}]), {"train": 1.0}, 0)
    with pytest.raises(ManifestError, match="sum to 1"):
        assign_splits(from_rows([{"a": 1}]), {"train": 0.5, "test": 0.4}, 0)
    with pytest.raises(ManifestError, match="'test' would get no row: there are 1 groups"):
        assign_splits(from_rows([{"group": "g"}] * 4), {"train": 0.5, "test": 0.5}, 0)


def test_without_rows():
    manifest = from_rows([{"id": name, "split": "test"} for name in "abc"])
    assert without(manifest, {"b"}).table["id"].to_pylist() == ["a", "c"]
    assert without(manifest, set()).table == manifest.table
    with pytest.raises(ManifestError, match="none of the 3 rows can be used"):
        without(manifest, set("abc"))


def test_rows_of_and_column_of():
    manifest = from_rows(
        [{"split": "test", "text": "a"}, {"split": "dev", "text": "b"}, {"split": "test", "text": "c"}, {"text": "d"}]
    )
    assert rows_of(manifest, "test").tolist() == [0, 2]
    assert rows_of(manifest, "test").dtype == np.int64
    message = r"split 'train' is empty: the manifest has test \(2 rows\), dev \(1 rows\), 1 rows without a split"
    with pytest.raises(ManifestError, match=message):
        rows_of(manifest, "train")
    with pytest.raises(ManifestError, match=r"no column 'txet' \(did you mean 'text'\?\): it has .*split"):
        column_of(manifest, "txet")


def test_several_columns_are_one_of_structs():
    manifest = from_rows([{"age": 3, "sex": "f"}, {"age": None, "sex": "m"}])
    assert column_of(manifest, ["sex", "age"]).to_pylist() == [{"sex": "f", "age": 3}, {"sex": "m", "age": None}]
    for names in ([], ["age", "age"]):
        with pytest.raises(ManifestError, match="one or more, each once"):
            column_of(manifest, names)
    with pytest.raises(ManifestError, match="no column 'agee'"):
        column_of(manifest, ["sex", "agee"])
