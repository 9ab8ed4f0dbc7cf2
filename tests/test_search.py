"""Searches: the space and its mistakes, pruning, resuming, the report; the test split stays shut."""

from __future__ import annotations

import gc
import html.parser
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from conftest import call, refused, write

from mmkt import config, launch
from mmkt.config import check, override, read
from mmkt.evaluate import evaluate
from mmkt.parts import ConfigError, Parts
from mmkt.run import Run
from mmkt.search_file import Choices, Range, Search, space_of
from mmkt.studies import search_report
from mmkt.studies.search import HyperSearch
from mmkt.studies.search_optuna import Trials
from mmkt.studies.search_trial import Outcome

HOME = Path(__file__).parent.parent
GOOD, HOPELESS, STEPS = 0.1, 1e-7, 4
SEED = 3  # with it a hopeless trial comes after the good one, in a bracket that prunes


def rows() -> list[dict]:
    """The label is the sign of a vector's first number. Test rows are poison: vectors that no encoder takes, wrong labels."""
    random, found = np.random.default_rng(0), []
    for k in range(100):
        split, vector = "train" if k < 60 else "validation" if k < 80 else "test", random.normal(size=4)
        text = "up" if vector[0] > 0 else "down"
        if split == "test":
            vector, text = vector[:3], "down" if text == "up" else "up"
        found.append({"id": f"r{k}", "split": split, "a": vector.tolist(), "label": text})
    return found


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Training collects garbage at its end, which takes longer than these trainings: what is imported by now is left out."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    data = {
        "data": {"manifest": str(write(rows(), folder / "rows.parquet")), "batch_size": 20},
        "model": {"dim": 8, "encoders": {"a": "features"}, "heads": {"label": "classify"}},
        "objectives": {"label": {"name": "classify", "task": "label"}},
        "train": {"steps": STEPS, "lr": GOOD, "evaluate_every": 1, "log_every": 1, "schedule": "constant", "warmup": 0},
        "evaluate": {"resamples": 10},
        "trackers": [],
        "threads": 1,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(data))
    return folder / "experiment.yaml"


RATES = {"train.lr": {"low": HOPELESS, "high": GOOD, "log": True}, "model.space.dropout": [0.0, 0.1, 0.2]}


def search_of(experiment: Path, run: Path | str, **changes) -> dict:
    return {"experiment": str(experiment), "run": str(run), "space": RATES, "trials": 2, "startup": 3} | changes


def made(data: dict) -> HyperSearch:
    return HyperSearch(check(Search, data, Parts()))


def told(study: HyperSearch) -> list[tuple]:
    return [(one.number, one.outcome, tuple(one.settings.items())) for one in study.open(reading=True).ended()]


# ---------------------------------------------------------------- the space


@pytest.mark.parametrize("file", sorted((HOME / "configs/search").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_searches(file):
    assert HyperSearch(read(Search, file)).space


@pytest.mark.parametrize(("space", "words"), [
    ({}, "space: is empty"),
    ({"train.lr": []}, "space.train.lr: has no choices"),
    ({"train.lr": [0.1, 0.1]}, "space.train.lr: has a choice twice: 0.1"),
    ({"train.lr": 0.1}, "space.train.lr: should be a list of choices"),
    ({"train.lr": {}}, "space.train.lr: should be a list of choices"),
    ({"train.lr": {"low": 1, "hihg": 2}}, "space.train.lr.hihg: there is no setting 'hihg'; did you mean 'high'"),
    ({"train.lr": {"low": 0.1, "high": 0.1}}, "space.train.lr: low should be below high, found 0.1 and 0.1"),
    ({"train.lr": {"low": 0, "high": 0.1, "log": True}}, "space.train.lr: with log, low should be above 0, found 0"),
    ({"train.lr": {"low": 0.1, "high": 0.4, "log": True, "step": 0.1}}, "log and step don't go together"),
    ({"model.dim": {"low": 8, "high": 30, "step": 8}}, "high should be some steps above low, found 8 to 30 in steps of 8"),
    ({"train.lrr": [0.1]}, r"space.train.lrr=0.1: train.lrr: there is no setting 'lrr'; did you mean 'lr'"),
    ({"model.space.dropout": {"low": 0.0, "high": 1.5}}, r"space.model.space.dropout=1.5: model.space.dropout: .*less than 1"),
    ({"model.fusion": ["concat", {"name": "gatd"}]}, r"model.fusion: there is no 'gatd'.*did you mean 'gated'"),
    ({"model.fusion": ["concat"], "model.fusion.width": [8]}, "space.model.fusion: model.fusion.width lies in it"),
    ({"seed": [1, 2]}, "space.seed: seed cannot be searched: it would choose luck"),
    ({"data": [{"batch_size": 3}]}, "space.data: data.source cannot be searched: trials would be judged on other rows"),
    ({"train.select": ["loss"]}, "train.select cannot be searched: is the search's metric"),
])  # fmt: skip
def test_mistakes_are_told_before_the_first_trial(experiment, space, words):
    with pytest.raises(ConfigError, match=words):
        made(search_of(experiment, "nowhere", space=space))
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(("changes", "words"), [
    ({"settings": ["data.validation=null"]}, "data.validation: is null"),
    ({"metric": "label/acuracy"}, "metric: 'acuracy' does not judge label; did you mean 'accuracy'"),
    ({"trials": 0}, "trials: .*greater than or equal to 1"),
    ({"settings": ["train.lrr=1"]}, "train.lrr: there is no setting"),
    ({"storage": "mysql"}, "storage: .*'journal' or 'sqlite'"),
])  # fmt: skip
def test_mistakes_beside_the_space(experiment, changes, words):
    with pytest.raises(ConfigError, match=words):
        made(search_of(experiment, "nowhere", **changes))


def test_without_optuna_a_search_says_what_to_type(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'pip install "mmkt\[search\]"'):
        made(search_of(experiment, "nowhere"))


def test_a_command_line_changes_the_space(experiment):
    words = [
        "space.train.lr.high=0.5",
        "space.model.space.dropout=null",
        "space.model.fusion=[sum, {name: gated, gates: softmax}]",
    ]
    space = space_of(check(Search, override(search_of(experiment, "x"), words), Parts()))
    assert space == {
        "train.lr": Range(HOPELESS, 0.5, True, None, False),
        "model.fusion": Choices(("sum", "{name: gated, gates: softmax}")),
    }
    whole = space_of(check(Search, search_of(experiment, "x", space={"model.dim": {"low": 8, "high": 32, "step": 8}}), Parts()))
    assert whole["model.dim"].whole
    assert all(isinstance(x, int) for x in whole["model.dim"][:2])


@pytest.mark.parametrize(
    "value", [1e-05, 3, "no", "1e-3", "a: b", None, True, [1, "x"], {"name": "tensor", "width": 8, "x": [1e-7]}]
)
def test_what_is_written_is_read_as_the_same(value):
    assert override({}, [f"key={config.written(value)}"]) == {"key": value}


# ---------------------------------------------------------------- carrying out


@pytest.fixture(scope="module")
def finished(experiment) -> HyperSearch:
    study = made(search_of(experiment, experiment.parent / "finished"))
    study.carry_out()
    return study


def test_trials_are_runs_judged_on_validation_and_test_stays_shut(finished):
    folders = sorted(finished.folder.glob("trial-*"))
    assert [folder.name for folder in folders] == [f"trial-{k:04d}" for k in range(2)]
    for folder in folders:
        settings = json.loads((folder / "config.json").read_text())
        assert settings["evaluate"]["split"] == "validation"
        assert not list(folder.rglob("evaluation-test"))
        assert not list((folder / "last").glob("*.safetensors"))
        assert (folder / "best/model.safetensors").is_file()
    best = finished.folder_of(search_report.gather(finished).best[0].number) / "best"
    with pytest.raises(ValueError):  # its rows are poison: had anything read them, no trial would have ended
        evaluate(str(best), ["evaluate.split=test"])


def test_the_same_command_trains_nothing_again(finished):
    times = {file: file.stat().st_mtime_ns for file in finished.folder.rglob("*.jsonl")}
    before = told(finished)
    made(finished.search.model_dump(mode="json")).carry_out()
    assert told(finished) == before
    assert {file: file.stat().st_mtime_ns for file in finished.folder.rglob("*.jsonl")} == times


class Killed(BaseException):
    pass


def killed():
    raise Killed


def stopped():
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(("end", "step"), [(stopped, 3), (killed, 1), (killed, 3)])
def test_a_search_that_was_cut_off_becomes_the_one_that_was_not(experiment, finished, tmp_path, monkeypatch, capfd, end, step):
    """The second trial is cut off: asked to stop, killed before anything was saved, killed after."""
    file, plain, ended = tmp_path / "search.yaml", Run.log, []
    file.write_text(yaml.safe_dump(search_of(experiment, tmp_path / "cut"), sort_keys=False))

    def log(self, values):
        plain(self, values)
        if self.folder.name == "trial-0001" and values["step"] == step and "loss" in values and not ended:
            ended.append(end())

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        if end is stopped:
            status, _, err = call(capfd, "search", file)
            assert status == 75
            assert "stopped in trial 1 at step 3 of 4, which is saved; 1 of 2 trials have ended" in err
            assert "type the same command again" in err
        else:
            patch.setattr("mmkt.studies.search_trial.distributed.wait", lambda: None)
            with pytest.raises(Killed):
                call(capfd, "search", file)
    assert len(told(made(search_of(experiment, tmp_path / "cut")))) == 1
    status, out, _ = call(capfd, "search", file, "--json")
    assert status == 0
    again = made(search_of(experiment, tmp_path / "cut"))
    assert told(again) == told(finished)
    steps = [json.loads(line)["step"] for line in (again.folder_of(1) / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert [one["number"] for one in json.loads(out)["trials"]] == [0, 1]


def test_a_hopeless_trial_is_pruned_and_a_good_one_is_not(experiment, tmp_path):
    space = {"train.lr": [GOOD, HOPELESS, 2e-7, 3e-7]}
    study = made(search_of(experiment, tmp_path / "run", space=space, trials=3, startup=8, seed=SEED))
    study.carry_out()
    trials = [one for one in study.open(reading=True).ended() if one.twin is None]
    states = {float(one.settings["train.lr"]): one.outcome.state for one in trials}
    assert states[GOOD] == "complete"
    pruned = [one for one in trials if one.outcome.state == "pruned"]
    assert pruned
    for one in pruned:
        log = (study.folder_of(one.number) / "metrics.jsonl").read_text().splitlines()
        values = [json.loads(line)["validation/label/accuracy"] for line in log if "validation" in line]
        assert len(values) == one.evaluations < STEPS
        assert one.outcome.value == values[-1]
        assert not list((study.folder_of(one.number) / "last").glob("*.safetensors"))


@pytest.mark.parametrize("pruning", [True, False])
def test_pruning_spares_the_good_and_can_be_turned_off(tmp_path, pruning):
    """Trials of nine evaluations that are good from the first on, or hopeless to the last."""
    (tmp_path / "run").mkdir()
    data = search_of(Path("e"), "x", space={"x": [1]}, trials=20, startup=20, pruning=pruning, min_evaluations=2)
    trials = Trials(tmp_path / "run", check(Search, data, Parts()), {"x": Range(0, 1, False, None, False)}, True)
    while todo := trials.next():
        value = float(float(todo[1]["x"]) > 0.6)
        stops = any(trials.hopeless(k, value, 9) for k in range(1, 10))
        trials.tell(Outcome("pruned") if stops else Outcome("complete", value))
    states = {(one.settings["x"] > 0.6, one.outcome.state) for one in trials.ended()}
    assert states == {(True, "complete"), (False, "complete")} | ({(False, "pruned")} if pruning else set())
    assert all(one.evaluations >= 2 for one in trials.ended())


def test_a_trial_that_ends_in_nan_fails_and_the_search_goes_on(experiment, tmp_path):
    data = search_of(experiment, tmp_path / "run", space={"train.lr": [1e30, GOOD]}, trials=4, storage="sqlite")
    study = made(data | {"settings": ["train.clip=null"]})
    study.carry_out()
    ended = {one.settings["train.lr"]: one.outcome for one in study.open(reading=True).ended()}
    assert ended["1.0e+30"].state == "failed"
    assert "not finite" in ended["1.0e+30"].why
    assert ended["0.1"].state == "complete"
    results = search_report.gather(study)
    assert len(results.trials) == 4  # of which two had the settings of another
    assert len(list(study.folder.glob("trial-*"))) == 2
    assert "not finite" in (search_report.write(results).parent / "report.md").read_text()


def test_what_cannot_be_built_ends_a_search_only_at_its_start(experiment, tmp_path, monkeypatch):
    plain, bad = launch.train, set()

    def train(settings, **words):
        if Path(settings.run).name in bad:
            raise ConfigError("cannot be built")
        return plain(settings, **words)

    monkeypatch.setattr(launch, "train", train)
    bad.add("trial-0000")
    study = made(search_of(experiment, tmp_path / "run", trials=2))
    with pytest.raises(ConfigError, match="cannot be built"):
        study.carry_out()
    bad.clear()
    bad.add("trial-0001")
    study.carry_out()
    assert [one.outcome.state for one in study.open(reading=True).ended()] == ["complete", "failed"]


def test_a_search_is_continued_unchanged_or_not_at_all(experiment, finished, tmp_path, capfd):
    data = finished.search.model_dump(mode="json")
    for changes, words in (
        ({"space": RATES | {"train.lr": [0.1]}}, "another space.train.lr"),
        ({"settings": ["model.dim=16"]}, "another experiment settings.model.dim"),
        ({"storage": "sqlite"}, "another storage"),
    ):
        with pytest.raises(ConfigError, match=f"{words}.*run=OTHER"):
            made(data | changes).carry_out()
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(data))
    assert "there is no search in" in refused(capfd, "search", tmp_path / "search.yaml", f"run={tmp_path / 'none'}", "--report")
    assert not (tmp_path / "none").exists()
    with finished._first(), pytest.raises(ConfigError, match="another mmkt search is at work"):
        made(data).carry_out()


# ---------------------------------------------------------------- the sampler's memory and the report


def driven(folder: Path, value, trials: int, **changes) -> Trials:
    """A search without training: trials get the value of their settings."""
    folder.mkdir()
    space = {"x": Range(0, 1, False, None, False), "y": Range(0, 1, False, None, False), "z": Choices(("a", "b"))}
    search = check(Search, search_of(Path("e"), folder, space={"x": [1]}, trials=trials, **changes), Parts())
    found = Trials(folder, search, space, True)
    while todo := found.next():
        found.tell(Outcome("complete", value({name: text if name == "z" else float(text) for name, text in todo[1].items()})))
    return found


@pytest.mark.parametrize(("name", "value"), [("x", lambda s: s["x"] ** 2), ("z", lambda s: 0.1 * s["y"] + (s["z"] == "a"))])
def test_importance_finds_what_matters(tmp_path, name, value):
    shares = driven(tmp_path / "run", value, 30, startup=30).importance()
    assert max(shares, key=shares.get) == name
    assert shares[name] > 0.7


def test_importance_says_why_there_is_none(tmp_path):
    assert "9 trials trained to the end, and it takes 10" in driven(tmp_path / "few", lambda s: s["x"], 9).importance()
    assert "the same value" in driven(tmp_path / "flat", lambda s: 1.0, 12).importance()


def test_the_sampler_learns_and_does_not_depend_on_where_it_was_stopped(tmp_path):
    def value(s):
        return -((s["x"] - 0.3) ** 2)

    found = driven(tmp_path / "whole", value, 30, startup=8)
    first, last = ([one.outcome.value for one in found.ended()[part]] for part in (slice(8), slice(20, 30)))
    assert np.mean(last) > np.mean(first)
    part = driven(tmp_path / "part", value, 13, startup=8)
    with (tmp_path / "part/trials.journal").open("a") as file:
        file.write('{"op_code":4,"wor')  # a power cut
    rest = Trials(tmp_path / "part", found.search, part.space, True)
    while todo := rest.next():
        rest.tell(Outcome("complete", value({"x": float(todo[1]["x"])})))
    assert [one.settings for one in rest.ended()] == [one.settings for one in found.ended()]
    assert rest.study.get_trials()[5].state == optuna.trial.TrialState.COMPLETE


def test_the_report(finished, tmp_path, capfd):
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(finished.search.model_dump(mode="json"), sort_keys=False))
    status, out, _ = call(capfd, "search", tmp_path / "search.yaml", "--report", "--json")
    assert status == 0
    found = json.loads(out)
    assert found == json.loads((finished.folder / "results.json").read_text())
    assert sum(found["counts"].values()) == found["asked"] == 2
    complete = [one for one in found["trials"] if one["state"] == "complete"]
    best = next(one for one in complete if one["number"] == found["best"])
    assert best["value"] == max(one["value"] for one in complete)
    assert found["evaluate"] == f"mmkt evaluate {finished.folder_of(best['number'])}/best evaluate.split=test"
    assert f"train.lr={best['settings']['train.lr']}" in found["train"]
    assert found["importance"] is None
    text, page = ((finished.folder / name).read_text() for name in ("report.md", "report.html"))
    for words in (
        "Nothing was trained or judged on the split test",
        "optimistic: it is the best of 2 trials",
        "No importances",
        found["evaluate"],
    ):
        assert words in text
        assert words in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched
    html.parser.HTMLParser().feed(page)
    status, out, _ = call(capfd, "search", tmp_path / "search.yaml", "--report")
    assert "optimistic" in out


# ---------------------------------------------------------------- several processes

WORKER = """
import json, sys
from pathlib import Path
from mmkt import cli, distributed, launch

plain = launch.train

def train(config, **words):
    file = Path(sys.argv[2]) / f"{Path(config.run).name}-{distributed.rank()}.json"
    file.write_text(json.dumps([config.settings(), words["listener"].trials is None]))
    return plain(config, **words)

launch.train = train
cli.main(["search", sys.argv[1], "--json"])
"""


@pytest.mark.slow
def test_two_processes_apply_the_same_settings(experiment, tmp_path):
    data = search_of(experiment, tmp_path / "run", space={"train.lr": [GOOD, HOPELESS, 2e-7, 3e-7]}, trials=3)
    data |= {"startup": 8, "seed": SEED}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "seen").mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "worker.py"), str(tmp_path / "search.yaml"), str(tmp_path / "seen")],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)  # rank 0 alone prints
    assert found["counts"] == {"complete": 2, "pruned": 1, "failed": 0}
    trained = [one for one in found["trials"] if one["same as"] is None]
    assert len(list((tmp_path / "seen").iterdir())) == 2 * len(trained)
    for one in trained:
        first, second = (json.loads((tmp_path / f"seen/trial-{one['number']:04d}-{rank}.json").read_text()) for rank in (0, 1))
        assert first[0] == second[0]
        assert first[0]["train"]["lr"] == float(one["settings"]["train.lr"])
        assert (first[1], second[1]) == (False, True)  # rank 0 alone has the storage
        if one["state"] == "complete":  # had they trained apart, the saved model (rank 0's) would not be the one that was judged
            log = (tmp_path / f"run/trial-{one['number']:04d}/metrics.jsonl").read_text().splitlines()
            assert one["value"] == max(json.loads(line).get("validation/label/accuracy", 0) for line in log)
