import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image
from rich.console import Console

from mmkt.data.check import EXAMPLES, check, render
from mmkt.data.kinds import kinds
from mmkt.data.manifest import ManifestError, from_rows

RNG = np.random.default_rng(0)


def png():
    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def wav():
    out = io.BytesIO()
    soundfile.write(out, RNG.uniform(-1, 1, 80), 8000, format="WAV")
    return out.getvalue()


@pytest.fixture
def manifest(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(png())
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "cut.png").write_bytes((tmp_path / "7.png").read_bytes()[:100])
    files = ["0.png", "1.png", "2.png", "cut.png", "copy.png", "5.png", None, "1.png"]
    texts = ["a  dog", "a cat", "yes", "no", "a dog\n", "yes", "bird", "a fish"]
    rows = [
        {
            "id": f"r{i}",
            "split": "train" if i < 4 else "test",
            "group": ["g0", "g1", "g2", "g0", "g3", "g1", None, None][i],
            "domain": "eu" if i % 2 else "us",
            "image": files[i],
            "text": texts[i],
            "label": ["x", "y", "x", None, "x", "z", "y", "y"][i],
            "tags": [["p"], ["p", "q"], [], None, ["q"], [], [], []][i],
            "score": [0.5, 1.5, None, 2.0, 3.0, float("nan"), 1.0, 1.0][i],
        }
        for i in range(8)
    ]
    return from_rows(rows, tmp_path)


def test_everything_is_found(manifest):
    report = check(manifest, {"image": "image", "text": "text"}, ["label", "tags", "score"])
    assert report.rows == 8
    assert report.splits == {"train": 4, "test": 4}
    assert report.domains == {"train": {"us": 2, "eu": 2}, "test": {"us": 2, "eu": 2}}
    assert report.groups == {"train": 3, "test": 2}
    assert report.classes["label"] == {"train": {"(unlabelled)": 1, "x": 2, "y": 1}, "test": {"x": 1, "y": 2, "z": 1}}
    assert report.classes["tags"] == {"train": {"(unlabelled)": 1, "p": 2, "q": 1}, "test": {"q": 1}}
    assert report.classes["score"]["train"] == {"labelled": 3, "(unlabelled)": 1, "mean": 4 / 3, "least": 0.5, "most": 2.0}
    assert report.missing == {"image": {"train": 0, "test": 1}, "text": {"train": 0, "test": 0}}
    assert [(cell.row, cell.column) for cell in report.unreadable] == [("r3", "image")]
    assert "truncated" in report.unreadable[0].message
    assert report.duplicates == {
        "image": [["r0", "r4"], ["r1", "r7"]],
        "text": [["r0", "r4"], ["r2", "r5"]],
        "whole row": [["r0", "r4"]],
    }
    assert report.straddling == {"g1": ["train", "test"]}
    assert json.loads(json.dumps(report.as_dict()))["duplicates"]["whole row"] == [["r0", "r4"]]
    problems = "\n".join(report.problems)
    for expected in (
        "row 'r3', column 'image': ",
        "'image': 2 contents",
        "'whole row': 1 contents",
        "group 'g1'",
        "'train' lacks: z",
    ):
        assert expected in problems
    assert "'text'" not in problems
    console = Console(file=io.StringIO(), width=200)
    render(report, console)
    printed = console.file.getvalue()
    assert "label label" in printed
    assert "problem: row 'r3'" in printed


def test_without_content_no_file_is_read(manifest, tmp_path):
    for path in tmp_path.iterdir():
        path.unlink()
    report = check(manifest, {"image": "image", "text": "text"}, content=False)
    assert report.unreadable == []
    assert report.duplicates == {"image": [], "text": [["r0", "r4"], ["r2", "r5"]], "whole row": []}
    console = Console(file=io.StringIO(), width=200)
    render(report, console)
    assert "media were not read" in console.file.getvalue()


def test_a_clean_manifest_has_no_problems():
    rows = [{"split": ["train", "test"][i % 2], "clip": wav(), "text": "same"} for i in range(6)]
    report = check(from_rows(rows), {"clip": "audio", "text": "text"})
    assert report.problems == []
    assert report.duplicates["text"] == [[str(i) for i in range(6)]]
    console = Console(file=io.StringIO(), width=200)
    render(report, console)
    assert "no problems found" in console.file.getvalue()


def test_repeats_within_a_split_are_no_leak():
    data = wav()
    rows = [{"split": "train", "clip": data}, {"split": "train", "clip": data}, {"split": "test", "clip": wav()}]
    report = check(from_rows(rows), {"clip": "audio"})
    assert report.duplicates == {"clip": []}
    assert report.problems == []


def test_one_text_column_is_the_whole_row_and_splits_must_be_named():
    report = check(from_rows([{"split": "train", "text": "a"}, {"split": "test", "text": "a"}, {"text": "b"}]), {"text": "text"})
    assert any("'text': 1 contents stand in several splits" in problem for problem in report.problems)
    assert any("1 rows have no split" in problem for problem in report.problems)
    with pytest.raises(ManifestError, match="no column 'txt'"):
        check(from_rows([{"text": "a"}]), {"txt": "text"})


def test_kinds():
    jpeg = io.BytesIO()
    Image.new("L", (2, 2)).save(jpeg, "JPEG")
    rows = [
        {
            "caption": "a.png of x",
            "sentence1": "s",
            "remark": "plain",
            "scan": None,
            "photo": jpeg.getvalue(),
            "clip": wav(),
            "pages": ["pack.zip::1.TIFF"],
            "voice": {"bytes": None, "path": "x.flac"},
            "label": 3,
        },
        {"scan": "sub/a.JPG"},
    ]
    expected = {
        "caption": "text",
        "sentence1": "text",
        "scan": "image",
        "photo": "image",
        "clip": "audio",
        "pages": "image",
        "voice": "audio",
    }
    assert kinds(from_rows(rows)) == expected
    assert kinds(from_rows(rows), ["remark"]) == {**expected, "remark": "text"}


def test_a_report_names_some_and_counts_all():
    n = EXAMPLES + 3
    rows = [{"split": ("train", "test")[k % 2], "group": f"g{k // 2}", "text": f"t{k // 2}"} for k in range(2 * n)]
    rows += [{"split": ("train", "test")[k % 2], "group": None, "text": "often"} for k in range(300)]
    report = check(from_rows(rows), {"text": "text"})
    assert (report.repeated, report.straddled) == ({"text": n + 1}, n)
    assert len(report.duplicates["text"]) == len(report.straddling) == EXAMPLES
    assert report.duplicates["text"][1] == ["2", "3"]
    assert f"'text': {n + 1} contents stand in several splits, e.g. rows 0, 1" in report.problems
    assert f"and {n - 5} more groups are in several splits" in report.problems


def test_checking_without_content_imports_no_torch():
    code = "import sys; from mmkt.data import check, kinds; print([m for m in ('torch', 'PIL', 'soundfile') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
