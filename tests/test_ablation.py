"""Ablations: cells, rates chosen on validation over all seeds, verdicts, what is refused, what a kill leaves."""

from __future__ import annotations

import csv
import html.parser
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import call, refused, rows_of_three, settings, write

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import robust_arms

from mmkt import report
from mmkt.config import check, read
from mmkt.parts import ConfigError, Parts
from mmkt.statistics import Difference
from mmkt.stored import load
from mmkt.studies import ablate, ablation_report, costs
from mmkt.studies.ablation import Ablation
from mmkt.studies.ablation_cells import Cell, Key, Task
from mmkt.studies.ablation_plots import critical_difference
from mmkt.studies.ablation_results import Line, Ranks, gather, pareto
from mmkt.studies.costs import Cost
from mmkt.studies.runs import WORKSHOP
from mmkt.study import Ablation as File

costs.ROUNDS, costs.STEPS = 1, 2  # what a step takes is not the point here
FUSIONS = ["concat", "sum", {"name": "merged", "heads": 2, "layers": 1}]


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory, tiny_bert) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    manifest = write(rows_of_three(80), folder / "rows.parquet")
    config = settings(manifest, tiny_bert, folder / "run")
    config["train"] = {"steps": 4, "lr": 0.01, "evaluate_every": 2}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    return folder / "experiment.yaml"


def file_of(experiment: Path, **changes) -> dict:
    return {
        "experiment": str(experiment),
        "run": str(experiment.parent / "runs"),
        "features": str(experiment.parent / "features"),
        "factors": {"model.fusion": FUSIONS},
        "lr": [0.03, 1e-6],
        "seeds": [0, 1],
        "resamples": 200,
    } | changes


def made(file: dict) -> Ablation:
    return Ablation(check(File, file, Parts()))


@pytest.fixture(scope="module")
def finished(experiment_file):
    file = file_of(
        experiment_file,
        run=str(experiment_file.parent / "finished"),
        encoders="alone",
        alone=["train.steps=3"],
        factors={
            "fusion": {
                "concat": ["model.fusion=concat"],
                "text alone": ["model.fusion={name: unimodal, modality: text}"],
                "image alone": ["model.fusion={name: unimodal, modality: image}"],
                "drawn": ["model.fusion=concat", "transfer.frozen=['encoders.*', fusion]"],
            }
        },
        ensembles={"both": ["text alone", "image alone"]},
    )
    return ablate.carry_out(check(File, file, Parts()))


def test_rates_are_chosen_on_validation_over_all_seeds_and_test_is_read_once(finished):
    for cell in finished.cells:
        lr, scores = finished.chosen(cell), finished.scores(cell)
        assert set(scores) == {0.03, 1e-6}
        assert all(len(values) == 2 for values in scores.values())
        assert np.mean(scores[lr]) == max(np.mean(values) for values in scores.values())
        for key in finished.sweep(cell):
            assert (finished.folder(key) / "best" / "evaluation-test").exists() == (key.lr == lr)
    home = Path(finished.study.run)
    times = {file: file.stat().st_mtime_ns for name in ("*/**/*.jsonl", "**/*.safetensors") for file in home.glob(name)}
    ablate.carry_out(finished.study)
    assert {file: file.stat().st_mtime_ns for file in times} == times  # nothing was trained, nor evaluated, again
    assert not list(home.rglob("last/*.safetensors"))


def test_its_runs_can_be_attacked(finished, tmp_path, monkeypatch):
    """``scripts/robust_arms.py`` finds every label at the rate that it chose; encoders are run, though training read features."""
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(finished.study.model_dump(mode="json")))
    with pytest.raises(SystemExit, match=r"--arms: .* has no 'concta'; it has concat, drawn, "):
        robust_arms.of_study(str(file), ["concta"], None)
    runs = robust_arms.of_study(str(file), ["concat", "drawn"], None)
    assert list(runs) == [("concat", 0), ("concat", 1), ("drawn", 0), ("drawn", 1)]
    assert runs["concat", 1] == finished.folder(Key(finished.cells[0], finished.chosen(finished.cells[0]), 1))
    threats = "{image: {eps: 0.1}, text: {norm: l2, db: -10}}"
    asked = f"evaluate.robustness={{rows: 6, attacks: {{fgsm: {{name: fgsm}}}}, curve: [], threats: {threats}}}"
    attacks = robust_arms.attack(runs["concat", 0], [asked, "evaluate.page=false"])
    assert list(robust_arms.conditions(attacks)) == ["none", "image", "text", "joint", robust_arms.GAP]
    monkeypatch.setattr(robust_arms.subprocess, "run", None)  # typed again, it reads what lies there
    assert robust_arms.attack(runs["concat", 0], [asked, "evaluate.page=false"]) == attacks


def test_its_table_says_what_its_files_say(finished):
    results = gather(finished)
    (lines,) = results.lines.values()
    assert [line.mean for line in lines] == sorted((line.mean for line in lines), reverse=True)
    by = {line.cell.label: line for line in lines}
    assert set(by) == {"concat", "text alone", "image alone", "drawn", "both"}
    for line in lines:
        if line.cell.label == "both":
            continue
        for key, value in zip(finished.finals(line.cell), line.values):
            rows = report.read(finished.folder(key) / "best" / "evaluation-test" / "metrics.jsonl")
            assert [r.value for r in rows if (r.metric, r.group) == ("accuracy", "all")] == [value]
            table = load(finished.folder(key), "test").table
            right = np.array(table["kind.prediction"].to_pylist()) == np.array(table["kind.label"].to_pylist())
            assert right.mean() == pytest.approx(value)
        assert line.subsets["audio+image+text"] == pytest.approx(line.mean)
        assert len(line.subsets) == 8
        assert line.curve.keys() == {2, 4}
        base = by["concat"].values
        assert (line.against is None) == (line.cell.label == "concat")
        if line.against is not None:
            assert line.against.mean == pytest.approx(np.mean(np.subtract(line.values, base)))
            assert line.verdict == "sighting"
    assert by["drawn"].cost.trained < by["concat"].cost.trained  # the fusion's own numbers do not train
    assert by["drawn"].cost.numbers == by["concat"].cost.numbers


def test_an_ensemble_averages_its_members_probabilities_seed_by_seed(finished):
    (lines,) = gather(finished).lines.values()
    found = next(line for line in lines if line.cell.label == "both")
    cells = [cell for cell in finished.cells if cell.label in ("text alone", "image alone")]
    for seed in (0, 1):
        probabilities = []
        for cell in cells:
            table = load(finished.folder(finished.finals(cell)[seed]), "test").table
            logits = np.array(table["kind.logits"].to_pylist(), dtype=np.float64)
            e = np.exp(logits - logits.max(1, keepdims=True))
            probabilities.append(e / e.sum(1, keepdims=True))
        classes = load(finished.folder(finished.finals(cells[0])[seed]), "test").vocabularies["kind"]["classes"]
        said = np.array(classes)[np.mean(probabilities, axis=0).argmax(1)]
        assert (said == np.array(table["kind.label"].to_pylist())).mean() == pytest.approx(found.values[seed])
    assert np.isnan(found.lr)


def test_encoders_are_trained_alone_and_then_rest(finished):
    from safetensors.torch import load_file

    home = Path(finished.study.run)
    tensors = load_file(home / "encoders/experiment/model.safetensors")
    assert {name.split(".")[1] for name in tensors} == {"text", "image", "audio"}
    for m in ("text", "image", "audio"):
        best = load_file(home / f"alone-{m}" / "best" / "model.safetensors")
        assert {name.split(".")[1] for name in best if name.startswith("encoders.")} == {m}
        assert all((x == tensors[name]).all() for name, x in best.items() if name.startswith("encoders."))
    words = " ".join(ablation_report.summary(gather(finished)))
    assert "image: trained by itself on kind (accuracy" in words
    assert "16 trainings" in words


def test_its_report(finished, capfd):
    results = gather(finished)
    page = ablation_report.write(results, latex=True)
    parser = html.parser.HTMLParser()
    text = page.read_text()
    parser.feed(text)
    assert text.count("<svg") >= 4
    assert "http" not in text.replace("http://www.w3.org", "").replace("https://matplotlib.org", "")
    home = page.parent
    rows = list(csv.DictReader((home / "results.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == [line.cell.label for line in next(iter(results.lines.values()))]
    found = json.loads((home / "results.json").read_text())
    assert found["tried"] == 16
    assert found["lines"][0]["mean"] == pytest.approx(float(rows[0]["mean"]))
    tex = (home / "report.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 5
    assert "| concat |" in (home / "report.md").read_text()
    (home / "file.yaml").write_text(yaml.safe_dump(finished.study.model_dump(mode="json")))
    status, out, _ = call(capfd, "ablate", home / "file.yaml", "--report", "--json")
    assert status == 0
    assert json.loads(out)["lines"][0]["mean"] == found["lines"][0]["mean"]


@pytest.mark.parametrize(("kind", "trainings"), [("fusion", 400), ("robust", 27)])
@pytest.mark.parametrize("data", ["digits", "numerals"])
def test_shipped_ablations(kind, trainings, data):
    found = Ablation(read(File, Path(f"configs/study/{kind}_{data}.yaml")))
    assert sum(len(found.sweep(cell)) for cell in found.cells) >= trainings
    assert found.baseline == "concat"
    assert found.study.encoders == "alone"


@pytest.mark.parametrize(("changes", "words"), [
    ({"factors": {"model.fusoin": ["concat"]}}, r"model.fusoin: there is no setting 'fusoin'; did you mean 'fusion'"),
    ({"factors": {"model.fusion": ["concat", "gatde"]}}, "gatde.*did you mean 'gated'"),
    ({"factors": {"model.dim": [32, "wide"]}}, "model.dim.*valid integer"),
    ({"factors": {"model.fusion": []}}, "factors.model.fusion: is empty"),
    ({"factors": {"model.fusion": ["sum", "sum"]}}, "stands for two combinations"),
    ({"factors": {"fusion": {"a b": ["model.fusion=sum"], "a_b": ["model.fusion=max"]}}}, r"\(a b\) and \(a_b\) have"),
    ({"lr": []}, "lr: .*at least 1 item"),
    ({"rates": {"gated": [0.1]}}, "rates.gated: there is no 'gated' in the study; allowed: concat, sum"),
    ({"baseline": "concta"}, "baseline: there is no 'concta' in the study; did you mean 'concat'"),
    ({"modalities": [["text", "smell"]]}, "modalities: there is no 'smell'; allowed: audio, image, text"),
    ({"seeds": [0]}, "seeds: 1 leaves no interval: give two or more"),
    ({"seeds": [1, 1]}, "seeds: .* has a seed twice"),
    ({"ensembles": {"both": ["sum", "summ"]}}, "ensembles.both: there is no 'summ'"),
    ({"factors": {"train.lr": [0.1, 0.2]}}, r"factors .lr 0.1.: train.lr is set by the study .lr., not here"),
    ({"data": {"a": [], "b": ["data.test=validation"]}}, "data.test: .* has validation, .* test: call splits alike"),
    ({"metric": "kind/mae"}, "metric: 'mae' does not judge kind"),
    ({"settings": ["data.validation=null"]}, "data.validation: .*is null"),
    ({"factors": {"train.steps": [4, 8]}}, "train.steps: .*has 8, steps 4 has 4: cells are compared at an equal budget"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_trains(experiment_file, changes, words):
    with pytest.raises(ConfigError, match=words):
        made(file_of(experiment_file) | {"run": "nowhere"} | changes)
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(("changes", "words"), [
    ({"settings": ["model.encoders.image.augment=true"]}, r"\(concat\) every encoder rests in this study, but image: its"),
    ({"factors": {"model.fusion": ["concat", "multiplicative"]}}, r"\(multiplicative\) model.fusion: multiplicative takes two"),
    ({"modalities": [["text", "image"], ["text"]], "factors": {"model.fusion": ["concat", "crossmodal"]}},
     r"\(crossmodal \(text\)\) model.fusion: crossmodal takes two or more modalities, found 1"),
    ({"factors": {"model.fusion": ["concat", {"name": "tensor", "limit": 10}]}}, r"\(tensor limit=10\) model.fusion: .*lowrank"),
])  # fmt: skip
def test_mistakes_that_building_shows_are_told_before_anything_trains(experiment_file, changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        ablate.carry_out(check(File, file_of(experiment_file, run=str(tmp_path / "run")) | changes, Parts()))
    assert not list(tmp_path.glob("run/*seed*"))


def test_splits_that_a_seed_draws_are_refused(experiment_file, tmp_path):
    rows = [row | {"split": None, "group": None} for row in rows_of_three(80)]
    data = [f"data.manifest={write(rows, tmp_path / 'rows.parquet')}"]
    with pytest.raises(ConfigError, match="the splits are drawn anew by every seed"):
        ablate.carry_out(check(File, file_of(experiment_file, run=str(tmp_path / "run"), settings=data), Parts()))


def test_one_modality_is_a_task_too(experiment_file, tmp_path):
    file = file_of(experiment_file, run=str(tmp_path), modalities=[["image"]], lr=[0.03], seeds=[0], intervals=False)
    (lines,) = gather(ablate.carry_out(check(File, file | {"factors": {"model.fusion": ["concat"]}}, Parts()))).lines.values()
    assert len(lines) == 1


def test_other_parts_wait_for_the_first_ones_encoders(experiment_file, tmp_path):
    file = file_of(experiment_file, run=str(tmp_path), encoders="alone")
    with pytest.raises(ConfigError, match=r"encoders: are made by --part 1/2: start it first"):
        ablate.carry_out(check(File, file, Parts()), part=(2, 2))


def test_a_label_keeps_its_settings(experiment_file, tmp_path):
    file = file_of(
        experiment_file, run=str(tmp_path), factors={"fusion": {"a": ["model.fusion=concat"], "b": ["model.fusion=sum"]}}
    )
    made(file).begin()
    other = made(file | {"factors": {"fusion": {"a": ["model.fusion=concat"], "b": ["model.fusion=max"]}}})
    with pytest.raises(ConfigError, match=r"factors \(b\): was .*sum.* give another label"):
        other.refuse_other()


def test_a_command_that_cannot_be(experiment_file, capfd, tmp_path, config_file):
    assert "there is no config" in refused(capfd, "ablate", tmp_path / "nothing.yaml")
    path = config_file(file_of(experiment_file, run=str(tmp_path / "r")))
    assert "--part takes I/N" in refused(capfd, "ablate", path, "--part", "3/2")


def test_a_folder_of_another_study_is_refused_and_a_longer_one_goes_on(experiment_file, tmp_path):
    file = file_of(experiment_file, run=str(tmp_path / "run"), factors={"model.fusion": ["concat", "sum"]}, lr=[0.03])
    file |= {"seeds": [0], "intervals": False, "subsets": False}
    ablate.carry_out(check(File, file, Parts()))
    with pytest.raises(ConfigError, match=r"settings: the study in .* was begun with"):
        ablate.carry_out(check(File, file | {"settings": ["model.dim=16"]}, Parts()))
    more = ablate.carry_out(check(File, file | {"factors": {"model.fusion": ["concat", "sum", "max"]}}, Parts()))
    assert len(next(iter(gather(more).lines.values()))) == 3


def _run(file: dict) -> None:
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()
    WORKSHOP.kept.clear()
    os.setpgrp()
    ablate.carry_out(check(File, file, Parts()))
    os._exit(0)


def outcome(file: dict) -> list:
    results = gather(made(file))
    (lines,) = results.lines.values()
    assert not results.unfinished
    return sorted((line.cell.label, line.lr, line.values, sorted(line.subsets.items()), line.against) for line in lines)


def test_killed_at_any_moment_a_study_ends_with_the_same_table(experiment_file, tmp_path):
    file = file_of(
        experiment_file, factors={"model.fusion": ["concat", "sum"]}, lr=[0.03], encoders="alone", alone=["train.steps=3"]
    )
    context = multiprocessing.get_context("fork")
    whole = file | {"run": str(tmp_path / "whole"), "features": str(tmp_path / "f1")}
    ablate.carry_out(check(File, whole, Parts()))
    killed = file | {"run": str(tmp_path / "killed"), "features": str(tmp_path / "f2")}
    home = tmp_path / "killed"
    moments = [  # while an encoder trains, in the middle of the sweep, while the chosen are tested
        lambda: (home / "alone-image" / "metrics.jsonl").exists(),
        lambda: len(list(home.glob("*seed*/metrics.jsonl"))) >= 2,
        lambda: len(list(home.glob("*seed*/best/evaluation-test"))) >= 1,
    ]
    for moment in moments:
        child = context.Process(target=_run, args=(killed,))
        child.start()
        until = time.monotonic() + 90
        while not moment() and child.is_alive():
            assert time.monotonic() < until
            time.sleep(0.002)
        assert child.is_alive(), "it ended before it could be killed"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    ablate.carry_out(check(File, killed, Parts()))
    assert outcome(killed) == outcome(whole)


def test_parameters_are_matched_within_two_percent(experiment_file, tmp_path):
    file = file_of(experiment_file, run=str(tmp_path), match="model.dim", lr=[0.01], settings=["model.dim=160"])
    study = made(file | {"factors": {"model.fusion": ["concat", "sum", {"name": "merged", "heads": 2, "layers": 1}]}})
    apart = {label: ablate._trained(study, Cell(study.tasks[0], label)) for label in study.labels}
    ablate._inspect(study)
    sizes = {label: ablate._trained(study, Cell(study.tasks[0], label)) for label in study.labels}
    for label, size in sizes.items():
        assert abs(size / sizes["concat"] - 1) <= 0.02
        assert label == "concat" or abs(apart[label] / sizes["concat"] - 1) > 0.1
    coarse = made(file | {"settings": [], "factors": {"model.fusion": ["concat", "tensor"]}})
    with pytest.raises(
        ConfigError, match=r"match: \(tensor\) trains .* at the nearest, model.dim=\d+; concat .*: over 2 % apart"
    ):
        ablate._inspect(coarse)


def test_several_tasks_are_ranked(experiment_file, tmp_path):
    file = file_of(
        experiment_file,
        run=str(tmp_path),
        modalities=[["text", "image"]],
        data={"first": [], "second": ["data.subset.share=0.8"]},
        factors={"model.fusion": ["concat", "sum"], "model.dim": [16]},
        lr=[0.03],
        seeds=[0],
        intervals=False,
        subsets=False,
    )
    results = gather(ablate.carry_out(check(File, file, Parts())))
    assert len(results.lines) == 2
    assert results.ranks is not None
    assert results.ranks.values.shape == (2, 2)
    assert {line.cell.label for line in next(iter(results.lines.values()))} == {"concat, dim 16", "sum, dim 16"}
    titles = [sheet.title for sheet in ablation_report.sheets(results)]
    assert "Over all tasks" in titles
    page = ablation_report.write(results).read_text()
    assert "Critical-difference diagram" in page


def line(label: str, mean: float, step: float, against: Difference | None = None, p: float = 1.0) -> Line:
    cost = Cost(10, 20, 5.0, step, 100)
    rest = ({0.1: [mean]}, {1: mean}, {}, cost, against, p)
    return Line(Cell(Task("", ()), label), 0.1, False, [mean] * 5, mean, 0.01, mean - 0.1, mean + 0.1, *rest)


def test_the_pareto_front_and_what_a_verdict_says():
    lines = [line("a", 0.9, 3), line("b", 0.8, 4), line("c", 0.7, 1), line("d", 0.6, 2)]
    assert [x.cell.label for x in pareto(lines)] == ["a", "c"]
    unclear = Difference(0.01, -0.01, 0.03, 0.3, 5, 40.0, 0.4)
    assert ablation_report.needed(line("a", 0.9, 1, unclear, 0.9)) == " (40 seeds would be needed)"
    assert "too few test rows" in ablation_report.needed(line("a", 0.9, 1, unclear._replace(needed=np.inf), 0.9))
    clear = Difference(0.1, 0.05, 0.15, 0.001, 5, 3.0, 2.0)
    assert line("a", 0.9, 1, clear, 0.01).verdict == "gain"
    assert line("a", 0.9, 1, clear, 0.2).verdict == "not distinguishable"  # the correction takes it back


def test_the_diagram_joins_what_is_closer_than_the_critical_difference():
    from mmkt.ranks import friedman

    values = np.array([[3.0, 2.9, 1.0], [3.1, 3.0, 1.1], [2.9, 3.0, 1.2], [3.2, 3.0, 0.9]])
    found = friedman(values)
    figure = critical_difference(Ranks(["a", "b", "c"], [], values, found, 0.6, np.zeros((3, 3))))
    bars = [line.get_xdata() for line in figure.axes[0].lines if line.get_linewidth() == 2.5]
    assert len(bars) == 1
    assert sorted(bars[0]) == sorted(found.ranks[:2])


def test_a_key_names_its_folder(experiment_file):
    study = made(file_of(experiment_file, factors={"fusion": {"a b/c": ["model.fusion=concat"], "d": ["model.fusion=sum"]}}))
    assert study.folder(Key(study.cells[0], 0.03, 1)).name == "a_b_c-lr0.03-seed1"
