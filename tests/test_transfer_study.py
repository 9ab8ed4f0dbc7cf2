"""Transfer studies: rates chosen on validation, seeds, resuming, the table and its verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import rows_of_three, write

from mmkt.config import check, read
from mmkt.parts import ConfigError, Parts
from mmkt.studies.transfer_gain import Transfer
from mmkt.study import Study


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_bert) -> Path:
    folder = tmp_path_factory.mktemp("study")
    manifest = write(rows_of_three(80), folder / "rows.parquet")
    image = {"name": "borrow", "reads": "image", "body": str(tiny_bert), "size": 16, "channels": 1, "patch": 8}
    config = {
        "data": {"manifest": str(manifest), "batch_size": 12},
        "model": {"dim": 32, "encoders": {"image": image}, "heads": {"kind": "classify"}},
        "objectives": {"kind": {"name": "classify", "task": "kind"}},
        "train": {"steps": 6, "lr": 0.01, "evaluate_every": 2},
        "evaluate": {"resamples": 0},
        "trackers": [],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    return folder / "experiment.yaml"


def study_of(experiment: Path, **changes) -> dict:
    return {
        "experiment": str(experiment),
        "run": str(experiment.parent / "runs"),
        "sources": {"pretrained": [], "random": ["model.encoders.image.weights=random"]},
        "methods": {"fpt": ["transfer=fpt"], "full": ["transfer=full"]},
        "grids": [
            {"methods": ["full"], "lr": [0.01, 0.0001], "seeds": [0, 1]},
            {"methods": ["fpt"], "lr": [0.01], "seeds": [0], "fractions": [1.0, 0.5]},
        ],
        "lr": 0.01,
        "by": "kind",
        "thresholds": [0.2],
    } | changes


def made(study: dict) -> Transfer:
    return Transfer(check(Study, study, Parts()))


@pytest.mark.parametrize("file", sorted(Path("configs/study").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_studies(file):
    assert Transfer(read(Study, file)).grids


def test_a_study_chooses_on_validation_and_reads_test_once(experiment):
    transfer = made(study_of(experiment))
    transfer.carry_out()
    cells = list(transfer.grids)
    assert len(cells) == 6
    for cell in cells:
        lr = transfer.chosen(cell)
        values = {key.lr: transfer.value(key, "validation") for key in transfer.sweep(cell)}
        assert values[lr] == max(values.values())
        for key in transfer.sweep(cell):
            tested = (transfer.folder(key) / "best" / "evaluation-test").exists()
            assert tested == (key.lr in (lr, 0.01))  # the chosen one's, and the one rate's for all
        assert [key.seed for key in transfer.finals(cell)] == transfer.grids[cell].seeds
    times = {file: file.stat().st_mtime_ns for file in Path(transfer.study.run).rglob("*") if file.suffix == ".jsonl"}
    made(study_of(experiment)).carry_out()
    assert {file: file.stat().st_mtime_ns for file in times} == times  # nothing was trained again
    assert not list(Path(transfer.study.run).rglob("last/*.safetensors"))


@pytest.mark.parametrize(("changes", "words"), [
    ({"lr": 0.5}, "lr: 0.5 is in no grid; it is one of 0.0001, 0.01"),
    ({"metric": "kin/accuracy"}, "no task 'kin'; did you mean 'kind'"),
    ({"metric": "kind/mae"}, "metric: 'mae' does not judge kind"),
    ({"grids": [{"lr": [0.1], "sources": ["pretraind"]}]}, "grids.0.sources: there is no 'pretraind'; did you mean 'pretrained'"),
    ({"grids": [{"lr": [0.1]}, {"lr": [0.2]}]}, r"grids.1: the cell \\(pretrained, fpt\\) is in an earlier grid"),
    ({"grids": [{"lr": [0.1], "seeds": [1, 1]}]}, "grids.0.seeds: .* has a seed twice"),
    ({"sources": {"pretrained": ["model.encoders.image.wieghts=random"]}}, "wieghts.*did you mean 'weights'"),
    ({"settings": ["data.validation=null"]}, "data.validation: is null"),
])  # fmt: skip
def test_mistakes_in_a_study_are_told_before_the_first_run(experiment, changes, words):
    with pytest.raises(ConfigError, match=words.replace("\\\\", "\\")):
        made(study_of(experiment) | {"run": "nowhere"} | changes)
    assert not Path("nowhere").exists()
