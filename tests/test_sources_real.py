"""Sources of published sets: on small files laid out as theirs, and on the real ones where they are."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import wav

from mmkt import prompts
from mmkt.data.sources._files import hold_back
from mmkt.data.sources.emoji import Emoji
from mmkt.data.sources.esc10 import Esc10
from mmkt.data.sources.fewclue import Fewclue
from mmkt.data.sources.flickr1k import Flickr1k
from mmkt.data.sources.intents import Intents
from mmkt.data.sources.phrasebank import Phrasebank

REAL = pytest.mark.skipif(not os.environ.get("MMKT_DATA"), reason="MMKT_DATA names no folder of real data sets")


def rows(source, folder: Path | None, tmp_path: Path) -> list[dict]:
    return pq.read_table(source.prepare(tmp_path / "out", folder)).to_pylist()


def packed(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def test_hold_back_takes_a_share_of_every_class():
    labels = ["a"] * 100 + ["b"] * 20
    held = hold_back(labels, 0.25, 0)
    assert Counter(np.array(labels)[held]) == {"a": 25, "b": 5}
    assert (held == hold_back(labels, 0.25, 0)).all()
    assert (held != hold_back(labels, 0.25, 1)).any()


def test_esc10_keeps_folds_and_recordings(tmp_path):
    folder = tmp_path / "esc10"
    folder.mkdir()
    with zipfile.ZipFile(folder / "audio.zip", "w") as archive, (folder / "meta.csv").open("w") as file:
        meta = csv.writer(file)
        meta.writerow(["file", "label", "label_name", "fold", "freesound_id", "take", "seconds"])
        for k in range(10):
            archive.writestr(f"{k}.ogg", wav(np.full(100, k / 20)))
            meta.writerow([f"{k}.ogg", k % 2, ["Rain", "Dog bark"][k % 2], 1 + k // 2, 1000 + k // 2, "A", 5.0])
    found = rows(Esc10(), tmp_path, tmp_path)
    assert [row["fold"] for row in found] == [str(1 + k // 2) for k in range(10)]
    assert [row["group"] for row in found] == [str(1000 + k // 2) for k in range(10)]
    assert [row["label"] for row in found] == ["Rain", "Dog bark"] * 5
    assert found[3]["audio"] == wav(np.full(100, 3 / 20))
    assert "split" not in found[0]
    (folder / "audio.zip").unlink()
    with pytest.raises(ValueError, match=r"no file audio\.zip: give the folder that holds the esc10 set"):
        rows(Esc10(), folder, tmp_path)


def test_intents(tmp_path, monkeypatch):
    bank = [{"split": s, "text": f"{s} {k}", "label": f"i{k % 4}"} for s, n in (("train", 40), ("test", 8)) for k in range(n)]
    packed(tmp_path / "intents/banking77.jsonl.gz", bank)
    found = rows(Intents(validation=0.2, seed=3), tmp_path, tmp_path)
    assert Counter(row["split"] for row in found) == {"train": 32, "validation": 8, "test": 8}
    assert Counter(row["intent"] for row in found if row["split"] == "validation") == dict.fromkeys(["i0", "i1", "i2", "i3"], 2)
    assert all(row["text"].startswith("test") == (row["split"] == "test") for row in found)
    clinc = [{"split": s, "text": f"{s} {k}", "label": f"i{k}"} for s in ("train", "val", "test") for k in range(3)]
    clinc += [{"split": f"oos_{s}", "text": f"odd {s}", "label": "oos"} for s in ("train", "val", "test")]
    packed(tmp_path / "intents/clinc150_full.jsonl.gz", clinc)
    found = rows(Intents(corpus="clinc150"), tmp_path, tmp_path)
    assert Counter(row["split"] for row in found) == {"train": 3, "validation": 3, "test": 3}
    assert "oos" not in {row["intent"] for row in found}
    found = rows(Intents(corpus="clinc150", out_of_scope=True), tmp_path, tmp_path)
    assert Counter(row["split"] for row in found if row["intent"] == "oos") == {"train": 1, "validation": 1, "test": 1}
    assert len({row["id"] for row in found}) == 12
    with pytest.raises(ValueError, match="banking77 has no requests out of scope"):
        Intents(out_of_scope=True)
    monkeypatch.delenv("MMKT_DATA", raising=False)
    with pytest.raises(ValueError, match="intents reads a folder: mmkt data prepare intents --from DIR"):
        rows(Intents(), None, tmp_path)


def test_phrasebank_by_agreement(tmp_path):
    names, agree = ("positive", "neutral", "negative"), ("50", "66", "75", "all")
    lines = [{"sentence": f"s{k}", "label": names[k % 3], "agree": agree[k % 4]} for k in range(120)]
    packed(tmp_path / "finance/phrasebank.jsonl.gz", lines)
    found = rows(Phrasebank(), tmp_path, tmp_path)
    assert Counter(row["split"] for row in found) == {"train": 86, "validation": 10, "test": 24}
    assert Counter(row["sentiment"] for row in found if row["split"] == "test") == dict.fromkeys(names, 8)
    found = rows(Phrasebank(agree=75), tmp_path, tmp_path)
    assert {row["domain"] for row in found} == {"agree 75 %", "agree 100 %"}
    assert len(found) == 60


def test_emoji_keeps_signs_apart_and_names_them(tmp_path):
    folder = tmp_path / "emoji"
    folder.mkdir()
    fields = ["hexcode", "group_name", "has_emojitwo", "label_en", "label_zh"]
    signs = [[f"1F{k:03X}", f"g{k % 2}", str(int(k % 4 > 0)), f"sign {k}", f"标{k}"] for k in range(80)]
    with gzip.open(folder / "meta.csv.gz", "wt", encoding="utf-8") as file:
        csv.writer(file).writerows([fields, *signs])
    for name, style in (("noto72.zip", "noto"), ("emojitwo64.zip", "emojitwo")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for code, _, both, *_ in signs:
                if style == "noto" or both == "1":
                    archive.writestr(f"{code}.png", f"{style} {code}".encode())
    found = rows(Emoji(), tmp_path, tmp_path)
    by = Counter((row["split"], row["domain"]) for row in found)
    seen = by["test", "emojitwo, seen"]
    assert by == {("train", "noto"): 57, ("validation", "noto"): 11, ("test", "noto"): 12, ("test", "emojitwo"): 12,
                  ("test", "emojitwo, seen"): seen}  # fmt: skip
    assert 30 < seen < 57
    codes = {place: {row["code"] for row in found if (row["split"], row["domain"]) == place} for place in by}
    train = codes["train", "noto"]
    assert codes["test", "noto"] == codes["test", "emojitwo"]
    assert not codes["test", "noto"] & (train | codes["validation", "noto"])
    assert codes["test", "emojitwo, seen"] < train
    assert all(row["image"] == f"{row['domain'].partition(',')[0]} {row['code']}".encode() for row in found)
    names = prompts.read(str(tmp_path / "out/prompts.json"))
    assert set(names) == {"en", "zh"}
    assert names["zh"].texts("1F007") == ["标7"]
    assert next(row for row in found if row["code"] == "1F007")["names"] == ["sign 7", "标7"]
    other = rows(Emoji(style="emojitwo", seed=1), tmp_path, tmp_path)
    assert {row["domain"] for row in other if row["split"] != "test"} == {"emojitwo"}
    assert {row["domain"] for row in other if row["split"] == "test"} == {"emojitwo", "noto", "noto, seen"}


def test_flickr1k_has_a_row_a_caption_where_it_is_judged(tmp_path):
    folder = tmp_path / "flickr1k"
    folder.mkdir()
    columns = ["image", "audio", "split8k", *(f"{kind}{k}" for kind in ("en", "zh_human", "zh_mt") for k in range(5))]
    splits = ["train", "train", "val", "test", ""]
    with gzip.open(folder / "meta.csv.gz", "wt", encoding="utf-8") as file:
        lines = [[f"{k}.jpg", f"{k}.ogg", split, *(f"{name} of {k}" for name in columns[3:])] for k, split in enumerate(splits)]
        csv.writer(file).writerows([columns, *lines])
    for name, suffix in (("images.zip", "jpg"), ("audio_tts.zip", "ogg")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for k in range(5):
                archive.writestr(f"{k}.{suffix}", f"{suffix} {k}".encode())
    found = rows(Flickr1k(), tmp_path, tmp_path)
    assert Counter(row["split"] for row in found) == {"train": 2, "validation": 1, "test": 5}
    assert found[0]["text"] == [f"en{k} of 0" for k in range(5)]
    judged = [row for row in found if row["split"] == "test"]
    assert [row["text"] for row in judged] == [[f"en{k} of 3"] for k in range(5)]
    assert [row["zh"] for row in judged] == [[f"zh_human{k} of 3"] for k in range(5)]
    assert {row["photo"] for row in judged} == {"3"}
    assert {row["image"] for row in judged} == {b"jpg 3"}
    assert len({row["id"] for row in found}) == 8


def test_fewclue(tmp_path):
    folder = tmp_path / "fewclue"
    folder.mkdir()
    for task, line in (
        ("eprstmt", {"sentence": "物流很快", "label": "Positive"}),
        ("ocnli", {"sentence1": "甲", "sentence2": "乙", "label": "-"}),
    ):
        with tarfile.open(folder / f"{task}.tar.xz", "w:xz") as archive:
            names = ["train_0", "train_few_all", "dev_0", "dev_few_all", "test_public", *["unlabeled"] * (task == "eprstmt")]
            for k, name in enumerate(names):
                rest = {key: value for key, value in line.items() if key != "label"} if name == "unlabeled" else line
                data = "".join(json.dumps({**rest, "id": i}, ensure_ascii=False) + "\n" for i in range(k + 1)).encode()
                member = tarfile.TarInfo(f"{task}/{name}.json")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    found = rows(Fewclue(draw=0, unlabelled=True), tmp_path, tmp_path)
    assert Counter(row["split"] for row in found) == {"train": 1, "validation": 3, "test": 5, "unlabelled": 6}
    assert {row["text"] for row in found} == {"物流很快"}
    assert [row["label"] for row in found] == ["Positive"] * 9 + [None] * 6
    pairs = rows(Fewclue(task="ocnli"), tmp_path, tmp_path)
    assert pairs[0] == {"id": "train-0", "split": "train", "text": ["甲", "乙"], "label": None}
    with pytest.raises(ValueError, match="has no unlabelled texts: leave unlabelled out"):
        rows(Fewclue(task="ocnli", unlabelled=True), tmp_path, tmp_path)


@pytest.mark.real
@REAL
def test_the_real_sets(tmp_path):
    clips = rows(Esc10(), None, tmp_path)
    assert Counter(row["fold"] for row in clips) == dict.fromkeys("12345", 80)
    assert Counter(Counter(row["label"] for row in clips).values()) == {40: 10}
    by_recording: dict[str, set] = {}
    for row in clips:
        by_recording.setdefault(row["group"], set()).add(row["fold"])
    assert all(len(folds) == 1 for folds in by_recording.values())
    for corpus, sizes, classes in (("banking77", (9002, 1001, 3080), 77), ("clinc150", (15000, 3000, 4500), 150)):
        found = rows(Intents(corpus=corpus), None, tmp_path)
        assert Counter(row["split"] for row in found) == dict(zip(("train", "validation", "test"), sizes))
        assert len({row["intent"] for row in found}) == classes
    assert Counter(row["split"] for row in rows(Phrasebank(), None, tmp_path)) == {"train": 3484, "validation": 388, "test": 968}
    drawn = rows(Emoji(), None, tmp_path)
    assert Counter(row["domain"] for row in drawn if row["split"] == "test") == {
        "noto": 272,
        "emojitwo": 272,
        "emojitwo, seen": 921,
    }
    photos = rows(Flickr1k(), None, tmp_path)
    assert Counter(row["split"] for row in photos) == {"train": 753, "validation": 113, "test": 625}
    for task, classes, test in (("eprstmt", 2, 610), ("tnews", 15, 2010), ("csldcp", 67, 1784), ("ocnli", 3, 2520)):
        found = rows(Fewclue(task=task), None, tmp_path)
        assert len({row["label"] for row in found} - {None}) == classes
        assert Counter(row["split"] for row in found)["test"] == test
