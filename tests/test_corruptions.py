"""Every corruption against what it says of itself, and the conditions that rows are evaluated under."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from conftest import call, refused, rows_of_three, write
from PIL import Image
from sklearn.metrics import accuracy_score

from mmkt import report, robustness
from mmkt.data.manifest import read
from mmkt.data.rows import Rows
from mmkt.data.sampling import Draw
from mmkt.evaluate import evaluate, feed_of
from mmkt.metrics.accuracy import Accuracy
from mmkt.model import Model
from mmkt.parts import ConfigError, Parts
from mmkt.predictions import predict, predict_changed
from mmkt.robustness import Condition
from mmkt.score import About

PARTS = Parts()
ALL = {name: PARTS.find("corruptions", name)() for name in PARTS.files("corruptions")}
RATE = 8000
TEXTS = "The quick brown fox, 42 of them! 快速的棕色狐狸跳过了懒狗。 Быстрая лиса"


def picture(side: int = 48) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 255, (side // 8 or 1, side // 8 or 1, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((side, side))


def sound(seconds: float = 0.5) -> torch.Tensor:
    time = torch.arange(int(seconds * RATE)) / RATE
    return 0.5 * torch.sin(2 * np.pi * 440 * time) * torch.exp(-time)


ITEMS = {"image": picture, "audio": sound, "text": lambda: TEXTS * 4}


def worse(name: str, severity: int, item=None, seed: int = 0):
    corruption = ALL[name]
    torch.manual_seed(seed)
    random.seed(seed)
    item = ITEMS[corruption.kind]() if item is None else item
    return corruption(item, corruption.levels[severity - 1], RATE if corruption.kind == "audio" else None)


def numbers(item) -> np.ndarray:
    if isinstance(item, str):
        return np.array([ord(c) for c in item])
    return np.asarray(item, dtype=float).ravel()


def distance(item, other) -> float:
    if isinstance(item, str):  # edits
        before = range(len(other) + 1)
        for k, a in enumerate(item, 1):
            row = [k]
            for j, b in enumerate(other, 1):
                row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
            before = row
        return before[-1]
    x, y = numbers(item), numbers(other)
    return abs(len(x) - len(y)) + float(np.square(x[: len(y)] - y[: len(x)]).mean())


@pytest.mark.parametrize("name", ALL)
def test_worse_by_severity_the_same_by_seed_and_never_in_place(name):
    corruption, item = ALL[name], ITEMS[ALL[name].kind]()
    assert len(corruption.levels) == 5
    assert corruption.kind in ITEMS
    before = numbers(item).copy()
    found = [[worse(name, s, item, seed) for s in (1, 2, 3, 4, 5)] for seed in range(6)]
    assert np.array_equal(numbers(item), before)
    harm = np.array([[distance(item, x) for x in some] for some in found]).mean(0)
    assert (np.diff(harm) > 0).all(), harm
    assert harm[0] > 0
    again = worse(name, 3, item, 2)
    assert np.array_equal(numbers(again), numbers(found[2][2]))
    if corruption.kind == "audio" and name != "speed":
        assert all(len(x) == len(item) and x.abs().max() <= 1 and x.isfinite().all() for some in found for x in some)
    if corruption.kind == "image":
        assert all(x.size == item.size and x.mode == "RGB" for some in found for x in some)


@pytest.mark.parametrize("name", ALL)
def test_what_is_tiny_or_empty_stays_an_item(name):
    small = {
        "image": [Image.new("RGB", (1, 1), "red"), Image.new("RGB", (2, 9))],
        "audio": [torch.zeros(1), torch.zeros(900), torch.full((1,), 0.5)],
        "text": ["", "a", "字", "42 …"],
    }[ALL[name].kind]
    for item in small:
        for severity in (1, 5):
            found = worse(name, severity, item)
            if isinstance(item, str):
                assert bool(found) == bool(item)
            elif isinstance(item, Image.Image):
                assert found.size == item.size
            else:
                assert len(found) >= 1
                assert found.isfinite().all()


def test_noise_is_as_loud_as_it_says():
    tone, noisy = sound(), worse("white_noise", 3)  # 10 dB
    assert 10 * torch.log10(tone.square().mean() / (noisy - tone).square().mean()) == pytest.approx(10, abs=0.3)
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    clean, grainy = (np.asarray(x, dtype=float) / 255 for x in (grey, worse("gaussian_noise", 2, grey)))
    assert (grainy - clean).std() == pytest.approx(0.12, rel=0.03)


def test_formulas_of_sounds():
    torch.manual_seed(0)
    clip = torch.randn(RATE).clamp(-3, 3) / 3
    cut = worse("clipping", 4, clip)  # the loudest fifth
    assert (cut != clip).float().mean() == pytest.approx(0.2, abs=0.002)
    assert cut.abs().max() == clip.abs().sort().values[round(0.8 * RATE) - 1]
    lost = torch.stack([(worse("dropouts", 3, clip, seed).view(-1, 160) == 0).all(1).float().mean() for seed in range(40)])
    assert lost.mean() == pytest.approx(0.3, abs=0.03)
    assert {len(worse("speed", 5, clip, seed)) for seed in range(8)} == {5334, 16000}  # half as fast again, half as fast
    click = torch.zeros(2 * RATE)
    click[0] = 0.5
    tail = worse("reverberation", 3, click).square()  # 60 dB in 0.7 s
    first, later = tail[800:1600].mean(), tail[800 + 2800 : 1600 + 2800].mean()  # 0.35 s apart
    assert 10 * torch.log10(first / later) == pytest.approx(30, abs=1.5)
    assert tail[1:].sum() == pytest.approx(float(tail[0]), rel=0.01)


def test_speed_is_as_fast_at_any_rate():
    """torchaudio's own would take a filter of gigabytes at 22,050 Hz."""
    clip = torch.sin(2 * torch.pi * 440 * torch.arange(22_050) / 22_050)
    torch.manual_seed(0)
    found = {len(ALL["speed"](clip, 0.4, 22_050)) for _ in range(8)}
    assert found == {15_750, 36_750}


def test_formulas_of_pictures():
    item = picture()
    pale = np.asarray(worse("contrast", 3, item), dtype=float)
    assert pale.std() == pytest.approx(0.2 * np.asarray(item, dtype=float).std(), rel=0.03)
    stream = io.BytesIO()
    item.save(stream, "JPEG", quality=15)
    assert np.array_equal(np.asarray(worse("jpeg", 3, item)), np.asarray(Image.open(stream)))
    hidden = (np.asarray(worse("occlusion", 3, Image.new("RGB", (60, 40), "white"))) == 127).all(2)
    assert hidden.mean() == pytest.approx(0.2, abs=0.01)
    rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
    assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    dot = Image.new("RGB", (101, 101))
    dot.putpixel((50, 50), (255, 255, 255))
    blurred = np.asarray(worse("gaussian_blur", 3, Image.fromarray(np.asarray(dot.resize((303, 303), 0)))), dtype=float)[..., 0]
    spread = np.sqrt((blurred.sum(0) * (np.arange(303) - 151) ** 2).sum() / blurred.sum())
    assert spread == pytest.approx(0.03 * 303, rel=0.12)  # 8 bits cut the edges off


def test_formulas_of_texts():
    long = TEXTS * 40
    letters = sum(c.isalpha() for c in long)
    assert len(long) - len(worse("deletions", 4, long)) == pytest.approx(0.2 * letters, rel=0.1)
    typed = worse("typos", 4, long)
    changed = [(a, b) for a, b in zip(long, typed, strict=True) if a != b]
    assert len(changed) == pytest.approx(0.2 * letters, rel=0.1)
    assert all(a.isalpha() and b.isalpha() and a.isupper() == b.isupper() for a, b in changed)
    assert {b for a, b in changed if a == "q"} == {"w", "a"}
    chinese = [(a, b) for a, b in changed if "一" <= a <= "鿿"]
    assert chinese
    assert all(abs(ord(a) - ord(b)) <= 3 for a, b in chinese)
    swapped = worse("swaps", 4, long)
    assert sorted(swapped) == sorted(long)
    assert [len(word) for word in swapped.split(" ")] == [len(word) for word in long.split(" ")]
    assert sum(a != b for a, b in zip(long, swapped)) > 0.2 * letters


def test_a_change_is_a_view_of_its_modality_alone_and_drawn_by_row(tiny_bert, trained):
    model = Model.from_pretrained(trained)
    manifest = read(model.config.data.manifest)
    processors = {m: encoder.processor() for m, encoder in model.encoders.items()}
    changes = {
        "a": {"image": lambda item, rate: ALL["gaussian_noise"](item, 0.3, rate)},
        "b": {"audio": lambda item, rate: ALL["white_noise"](item, float(rate == RATE), rate), "text": lambda item, _: item},
    }
    columns = {m: m for m in processors}
    rows = Rows(manifest, columns, processors, seed=0, train=False, changes=changes)
    plain = Rows(manifest, columns, processors, seed=0, train=False)
    torch.manual_seed(1)
    first = rows[Draw(5, 0, 0)]
    torch.manual_seed(2)
    rows[Draw(6, 0, 0)]
    again = rows[Draw(5, 3, 0)]
    assert set(first.views) == {"a", "b"}
    assert set(first.views["a"]) == {"image"}
    assert set(first.views["b"]) == {"audio", "text"}
    for m, key in (("image", "pixels"), ("audio", "waveform"), ("text", "input_ids")):
        assert torch.equal(first.inputs[m][0][key], plain[Draw(5, 0, 0)].inputs[m][0][key])
    assert torch.equal(first.views["a"]["image"][0]["pixels"], again.views["a"]["image"][0]["pixels"])
    assert not torch.equal(first.views["a"]["image"][0]["pixels"], first.inputs["image"][0]["pixels"])
    assert not torch.equal(first.views["a"]["image"][0]["pixels"], rows[Draw(6, 0, 0)].views["a"]["image"][0]["pixels"])
    assert torch.equal(first.views["b"]["text"][0]["input_ids"], first.inputs["text"][0]["input_ids"])


def test_changed_predictions(trained):
    """No change is the plain answer to the bit; a change of one modality is what a manifest with the changed item gives."""
    model = Model.from_pretrained(trained)
    feed, _ = feed_of(model, model.config, ["test"], PARTS)
    rows = feed.rows("test")
    changes = {
        "same": {"image": lambda item, _: item},
        "dark": {"image": lambda item, _: Image.new("RGB", item.size)},
    }
    found, plain = predict_changed(model, feed, rows, changes), predict(model, feed, rows)
    assert found["same"].table["kind.logits"].equals(plain.table["kind.logits"])
    assert not found["dark"].table["kind.logits"].equals(plain.table["kind.logits"])
    expected = model.predict([{"image": Image.new("RGB", (16, 16))} | texts(feed, int(row)) for row in rows])
    assert found["dark"].table["kind.prediction"].to_pylist() == [one["kind"]["prediction"] for one in expected]
    assert found["dark"].table["kind.confidence"].to_pylist() == pytest.approx(
        [one["kind"]["confidence"] for one in expected], abs=1e-5
    )


def texts(feed, row: int) -> dict:
    return {m: feed.manifest.table[m][row].as_py() for m in ("text", "audio")}


def test_plans():
    kinds = {"photo": "image", "scan": "image", "text": "text", "facts": "table"}
    passes = robustness.plan(kinds, ["jpeg", "typos"], [1, 5], PARTS)
    names = [list(some) for some in passes]
    assert names == [
        ["photo.jpeg@1", "photo.jpeg@5"],
        ["scan.jpeg@1", "scan.jpeg@5"],
        ["text.typos@1", "text.typos@5"],
        ["joint@1", "joint@5"],
    ]
    assert set(passes[-1]["joint@5"]) == {"photo", "scan", "text"}
    assert [Condition.of(name) for name in ("photo.jpeg@1", "joint@5")] == [
        Condition("photo", "jpeg", 1),
        Condition("joint", "", 5),
    ]
    assert len(robustness.plan(kinds, True, [1], PARTS)) == 2 * 5 + 3 + 1
    assert len(robustness.plan({"text": "text"}, True, [1], PARTS)) == 3  # nothing is joint
    with pytest.raises(ConfigError, match="clipping is of audio, and the model has photo \\(image\\)"):
        robustness.plan(kinds, ["clipping"], [1], PARTS)
    with pytest.raises(ConfigError, match="no 'jpg' in mmkt/corruptions; did you mean 'jpeg'"):
        robustness.plan(kinds, ["jpg"], [1], PARTS)
    with pytest.raises(ConfigError, match="there are none of table"):
        robustness.plan({"facts": "table"}, True, [1], PARTS)


def test_measured_by_hand(answers_of):
    clean = answers_of(0.8)
    under = {"a.x@1": 0.6, "a.x@2": 0.4, "a.y@1": 0.7, "a.y@2": 0.3, "joint@1": 0.5, "joint@2": 0.1}
    worse = {name: answers_of(value) for name, value in under.items()}
    rows = robustness.measure(clean, worse, {"t": [("accuracy", Accuracy())]}, about=About(), resamples=300)
    found = {(row.condition, row.metric): row for row in rows}
    assert found["a.x@2", "accuracy"].value == pytest.approx(0.4)
    assert found["a.x", "accuracy.relative"].value == pytest.approx(0.5 / 0.8)
    assert found["a", "accuracy.relative"].value == pytest.approx(0.5 / 0.8)
    assert found["joint", "accuracy.relative"].value == pytest.approx(0.3 / 0.8)
    one = found["joint", "accuracy.relative"]
    assert one.low < one.value < one.high
    assert robustness.relative(np.array([2.0]), np.array([8.0]), higher=False) == [0.25]
    sheet = next(robustness.sheets(rows))
    assert sheet.headings == ["corruption", "1", "2", "left"]
    assert [row[0] for row in sheet.rows] == ["a.x", "a.y", "joint"]


def test_the_command(trained, capfd, tmp_path):
    typed = [
        "evaluate",
        trained,
        "--out",
        tmp_path / "out",
        "evaluate.corruptions=[contrast,white_noise]",
        "evaluate.severities=[5]",
    ]
    status, out, err = call(capfd, *typed)
    assert status == 0, err
    assert "kind: accuracy by severity (n = 24)" in out
    rows = report.read(tmp_path / "out/corruptions.jsonl")
    assert {row.condition for row in rows} == {"image.contrast@5", "audio.white_noise@5", "joint@5", "image.contrast", "image",
                                               "audio.white_noise", "audio", "joint"}  # fmt: skip
    first = {row.condition: row.value for row in rows}
    call(capfd, *typed, "data.batch_size=7")
    assert {row.condition: row.value for row in report.read(tmp_path / "out/corruptions.jsonl")} == first
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "out/corrupted.parquet")
    one = table.filter(np.array(table["condition"].to_pylist()) == "joint@5")
    assert accuracy_score(one["kind.label"].to_pylist(), one["kind.prediction"].to_pylist()) == pytest.approx(first["joint@5"])
    assert "did you mean 'contrast'" in refused(capfd, "evaluate", trained, "evaluate.corruptions=[contrst]")
    assert "evaluate.severities" in refused(capfd, "evaluate", trained, "evaluate.severities=[6]")


def test_a_row_that_lacks_the_modality_is_no_other_row(trained, tmp_path):
    rows = rows_of_three(40)
    for row in rows[::2]:
        row["image"] = None
    manifest = write(rows, tmp_path / "some.parquet")
    found, _ = evaluate(
        str(trained), [f"data.manifest={manifest}", "evaluate.corruptions=[occlusion]"], out=str(tmp_path / "out")
    )
    there = found.predictions.table["has.image"].to_numpy()
    same = [
        [a == b for a, b in zip(found.predictions.table["kind.logits"].to_pylist(), some.table["kind.logits"].to_pylist())]
        for some in found.corrupted.values()
    ]
    assert not there.all()
    assert np.array(same)[:, ~there].all()
    assert not np.array(same)[:, there].any()
