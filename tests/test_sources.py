"""Sources: the worlds of numerals and their ceilings, digits' official splits, anybody's folder."""

from __future__ import annotations

import csv
import io
import itertools
import os
import time
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import png, wav
from PIL import Image

from mmkt.data.espeak import Utterance, speak
from mmkt.data.manifest import read
from mmkt.data.questions import QUESTIONS
from mmkt.data.sources.digits import Digits
from mmkt.data.sources.folder import Folder
from mmkt.data.sources.mnist import Mnist
from mmkt.data.sources.numerals import CEILINGS, KINDS, VOICES, Numerals, answer

# ---------------------------------------------------------------- numerals


def bayes(worlds: list[dict], seen: tuple[str, ...]) -> float:
    """Accuracy of the best predictor that sees some of a world, by enumeration."""
    answers = defaultdict(Counter)
    for world in worlds:
        answers[tuple(world[name] for name in seen)][world["answer"]] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(worlds)


def test_ceilings_by_enumeration():
    worlds = [
        {"text": kind, "image": w, "audio": s, "answer": answer(kind, w, s)}
        for kind, w, s in itertools.product(KINDS, range(10), range(10))
    ]
    for size in range(4):
        for seen in itertools.combinations(("audio", "image", "text"), size):
            assert bayes(worlds, seen) == pytest.approx(CEILINGS["+".join(seen)]), seen
    assert max(CEILINGS[m] for m in ("text", "image", "audio")) < 0.4


def test_four_kinds_alone_would_give_one_modality_half():
    """Why there are six: the negative control of the ceilings."""
    kinds = ("written", "spoken", "larger", "smaller")
    worlds = [{"image": w, "answer": answer(kind, w, s)} for kind, w, s in itertools.product(kinds, range(10), range(10))]
    assert bayes(worlds, ("image",)) >= 0.5


@pytest.fixture(scope="module")
def numerals(tmp_path_factory) -> Path:
    return Numerals(rows=120, validation=40, test=60).prepare(tmp_path_factory.mktemp("numerals"), None)


def test_numerals_are_what_their_labels_say(numerals):
    rows = read(numerals).table.to_pylist()
    assert Counter(row["split"] for row in rows) == {"train": 120, "validation": 40, "test": 60}
    for row in rows:
        assert row["answer"] == answer(row["domain"], row["written"], row["spoken"])
        assert row["question"] in QUESTIONS[row["domain"]][row["split"]]
        assert row["group"] in VOICES[row["split"]]


def test_nothing_is_shared_between_splits(numerals):
    rows = read(numerals).table.to_pylist()
    for column in ("question", "scan", "clip", "group"):
        seen = [{row[column] for row in rows if row["split"] == split} for split in VOICES]
        assert not any(a & b for a, b in itertools.combinations(seen, 2)), column
    wordings = [set(itertools.chain(*(kinds[split] for kinds in QUESTIONS.values()))) for split in VOICES]
    assert not any(a & b for a, b in itertools.combinations(wordings, 2))
    assert sum(map(len, wordings)) == sum(len(kinds[split]) for kinds in QUESTIONS.values() for split in VOICES)


def test_the_same_seed_makes_the_same_bytes(tmp_path, numerals):
    again = Numerals(rows=120, validation=40, test=60).prepare(tmp_path / "a", None)
    other = Numerals(rows=120, validation=40, test=60, seed=1).prepare(tmp_path / "b", None)
    assert again.read_bytes() == numerals.read_bytes()
    assert other.read_bytes() != numerals.read_bytes()


def test_breathy_voices_do_not_hear_the_clock():
    words = [Utterance("seven", voice, 160, 50) for voice in itertools.chain(*VOICES.values())]
    first = list(speak(words))
    time.sleep(1.1)  # espeak would seed its noise by the second
    again = list(speak(words))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], first[1]), "another voice is another sound"


# ---------------------------------------------------------------- digits


@pytest.fixture
def small_digits(tmp_path) -> Path:
    """As the real set is laid out, with two speakers and scans whose first pixel is their label."""
    folder = tmp_path / "digits"
    folder.mkdir()
    y = np.arange(6000) % 10
    scans = np.zeros((6000, 16, 16), np.uint8)
    scans[:, 0, 0], scans[:, 1, 1] = y, np.arange(6000) % 251
    for name in ("mnist", "usps"):
        np.savez(folder / f"{name}.npz", x_train=scans, y_train=y, x_test=scans[:100], y_test=y[:100])
    with zipfile.ZipFile(folder / "fsdd_audio.zip", "w") as archive, (folder / "fsdd_meta.csv").open("w") as file:
        meta = csv.writer(file)
        meta.writerow(["file", "label", "speaker", "take", "split", "samples"])
        for digit, speaker, take in itertools.product(range(10), ("ann", "bob"), range(12)):
            archive.writestr(f"{digit}_{speaker}_{take}.wav", wav(np.full(100, digit / 20)))
            meta.writerow([f"{digit}_{speaker}_{take}.wav", digit, speaker, take, "", 100])
    (folder / "digit_words.csv").write_text("digit,en,zh,de,fr\n" + "".join(f"{d},w{d},z{d},d{d},f{d}\n" for d in range(10)))
    return folder


def test_digits_pair_by_label_in_the_official_split(small_digits, tmp_path):
    rows = pq.read_table(Digits(copies=2, language="zh").prepare(tmp_path / "out", small_digits)).to_pylist()
    assert Counter(row["split"] for row in rows) == {"train": 10 * 2 * 2 * 2, "validation": 100, "test": 100}
    import io

    from PIL import Image

    for row in rows:
        assert np.asarray(Image.open(io.BytesIO(row["image"])))[0, 0] == row["digit"]
        assert row["text"] == f"z{row['digit']}"
        take = int(row["id"].split("-")[2])
        assert row["split"] == ("test" if take <= 4 else "validation" if take <= 9 else "train")


def test_digits_leave_one_speaker_out(small_digits, tmp_path):
    rows = pq.read_table(Digits(leave_out="bob").prepare(tmp_path / "out", small_digits.parent)).to_pylist()
    assert {row["group"] for row in rows if row["split"] == "test"} == {"bob"}
    assert {row["group"] for row in rows if row["split"] != "test"} == {"ann"}
    with pytest.raises(ValueError, match="leave_out is one of ann, bob"):
        Digits(leave_out="carl").prepare(tmp_path / "out", small_digits)


def test_digits_say_what_is_missing(small_digits, tmp_path, monkeypatch):
    monkeypatch.delenv("MMKT_DATA", raising=False)
    with pytest.raises(ValueError, match="prepare digits --from DIR"):
        Digits().prepare(tmp_path / "out", None)
    (small_digits / "mnist.npz").unlink()
    with pytest.raises(ValueError, match=r"no file mnist\.npz"):
        Digits().prepare(tmp_path / "out", small_digits)


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("MMKT_DATA"), reason="MMKT_DATA names no folder of real data sets")
def test_the_real_digits(tmp_path):
    rows = pq.read_table(Digits(copies=1).prepare(tmp_path / "out", None)).to_pylist()
    assert Counter(row["split"] for row in rows) == {"train": 2400, "validation": 300, "test": 300}
    assert len({row["group"] for row in rows}) == 6


# ---------------------------------------------------------------- folder


def pictures(folder: Path, *names: str) -> None:
    random = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(random.integers(0, 255, (4, 4), dtype=np.uint8)))


def test_folder_with_and_without_splits(tmp_path):
    pictures(tmp_path / "a", "cat/1.png", "cat/2.png", "dog/deep/1.png", ".hidden/x.png")
    rows = read(Folder().prepare(tmp_path / "out", tmp_path / "a")).table.to_pylist()
    assert {row["id"]: row["label"] for row in rows} == {"cat/1.png": "cat", "cat/2.png": "cat", "dog/deep/1.png": "dog"}
    assert all(row["split"] is None and Path(row["image"]).is_file() for row in rows)
    pictures(
        tmp_path / "b", "train/cat/1.png", "val/dog/1.png", "test/cat/2.png", "train/dog/3.png", "val/cat/9.png", "test/dog/1.png"
    )
    rows = read(Folder().prepare(tmp_path / "out2", tmp_path / "b")).table.to_pylist()
    assert Counter(row["split"] for row in rows) == {"train": 2, "validation": 2, "test": 2}


def test_folder_refuses(tmp_path):
    pictures(tmp_path / "one", "cat/1.png")
    pictures(tmp_path / "flat", "1.png")
    pictures(tmp_path / "mixed", "cat/1.png", "dog/1.png")
    (tmp_path / "mixed/dog/1.wav").write_bytes(b"")
    pictures(tmp_path / "hollow", "cat/1.png", "dog/1.png")
    (tmp_path / "hollow/emu").mkdir()
    for name, says in (
        ("one", "two or more"),
        ("flat", "no class folder"),
        ("mixed", "say kind=image"),
        ("hollow", "emu has no"),
    ):
        with pytest.raises(ValueError, match=says):
            Folder().prepare(tmp_path / "out", tmp_path / name)
    with pytest.raises(ValueError, match="--from DIR"):
        Folder().prepare(tmp_path / "out", None)
    with pytest.warns(UserWarning, match="1 files of other kinds"):
        Folder(kind="image").prepare(tmp_path / "out", tmp_path / "mixed")


def test_mnist_alone(tmp_path):
    random, folder = np.random.default_rng(0), tmp_path / "digits"
    folder.mkdir()
    scans = {name: random.integers(0, 255, (n, 28, 28), dtype=np.uint8) for name, n in (("x_train", 50), ("x_test", 20))}
    labels = {"y_train": np.arange(50) % 10, "y_test": np.arange(20) % 10}
    np.savez(folder / "mnist.npz", **scans, **labels)
    rows = pq.read_table(Mnist(rows=20, validation=10).prepare(tmp_path / "out", tmp_path)).to_pylist()
    assert Counter(row["split"] for row in rows) == {"train": 20, "validation": 10, "test": 20}
    for row, (name, k) in zip((rows[3], rows[20], rows[35]), (("train", 3), ("train", 40), ("test", 5))):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), scans[f"x_{name}"][k])
        assert row["digit"] == labels[f"y_{name}"][k]
    assert len(pq.read_table(Mnist(rows=None, validation=10).prepare(tmp_path / "all", tmp_path))) == 70
    with pytest.raises(ValueError, match="rows: 45 and validation: 10 are more than 50 scans"):
        Mnist(rows=45, validation=10).prepare(tmp_path / "out", tmp_path)
