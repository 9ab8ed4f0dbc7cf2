"""Stopping in good order and being cut off: signals, time limits, a lost process, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState
from conftest import experiment, settings

from mmkt import launch, stop
from mmkt.stop import RESUME_ME, Stop, Stopped, seconds
from mmkt.telemetry import CLOCK

HOME = Path(__file__).parent.parent


def losses(run: Path) -> list[tuple]:
    """What is logged, without figures of the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(sorted((k, v) for k, v in line.items() if k not in CLOCK)) for line in lines]


def launched(world: int, *words: object) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, str(HOME / "scripts/train.py"), *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def light(data: dict) -> dict:
    """Without the encoders whose libraries take seconds to import."""
    data["model"]["encoders"] = {"audio": data["model"]["encoders"]["audio"]}
    return data


def until(process: subprocess.Popen, run: Path, lines: int) -> None:
    """Wait for a number of lines in the run's log."""
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: subprocess.Popen) -> int:
    _, err = process.communicate(timeout=200)
    sys.stderr.write(err[-3000:])
    return process.returncode


LONG = ["train.steps=90", "train.evaluate_every=30", "train.log_every=3", "data.dropout={text: 0.3}", "model.space.dropout=0.1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_manifest, tiny_bert) -> Path:
    """The run that was not stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    launch.train(experiment(settings(tiny_manifest, tiny_bert, run), *LONG))
    AcceleratorState._reset_state()
    PartialState._reset_state()
    return run


def test_a_run_stopped_by_sigterm_and_resumed_is_the_run_that_was_not(tiny_settings, config_file, tmp_path, whole):
    file, cut = config_file(tiny_settings), tmp_path / "cut"
    process = launched(1, file, *LONG, f"run={cut}", "--json")
    until(process, cut, 3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == RESUME_ME, err[-3000:]
    assert "type the same command with --resume" in err
    assert "Traceback" not in err
    step = json.loads(out)["stopped"]["step"]
    assert 0 < step < 90
    assert json.loads((cut / "last/state.json").read_text())["progress"]["total"] == step
    launch.train(experiment(tiny_settings, *LONG, f"run={cut}"), resume=True)
    assert losses(cut) == losses(whole)


def test_max_time_stops_and_resumes_to_the_same(tiny_settings, tmp_path, whole):
    cut = experiment(tiny_settings, *LONG, f"run={tmp_path / 'cut'}")
    with pytest.raises(Stopped) as stopped:
        launch.train(cut, max_time=0.01)
    assert stopped.value.step == 3  # the first flush
    assert launch.train(cut, resume=True)
    assert losses(tmp_path / "cut") == losses(whole)


def test_the_first_ctrl_c_asks_and_a_later_one_ends(monkeypatch):
    class Asked:
        times = 0

        def set_trigger(self):
            self.times += 1

    asked, before = Asked(), signal.getsignal(signal.SIGINT)
    with Stop(asked):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the echo of a launcher
        assert asked.times == 2
        monkeypatch.setattr(stop, "ECHO", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_durations():
    assert [seconds(t) for t in ("3h30m", "90m", "45s", "1:30:00", "2h")] == [12600, 5400, 45, 5400, 7200]
    for text in ("", "3", "0s", "h", "1:75:00", "-5m", "3h 30m", "soon"):
        with pytest.raises(ValueError, match="--max-time takes 3h30m"):
            seconds(text)


def test_two_processes_stop_at_the_same_step(tiny_settings, config_file):
    """The launcher passes SIGTERM on; each process may hear it at another step."""
    process = launched(2, config_file(light(tiny_settings)), "train.steps=5000", "train.evaluate_every=5000")
    run = Path(tiny_settings["run"])
    until(process, run, 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode
    assert err.count("stopped at step") == 1
    state = json.loads((run / "last/state.json").read_text())
    assert f"stopped at step {state['progress']['total']} of 5000" in err


# ---------------------------------------------------------------- a lost process


def test_a_killed_process_ends_the_other(tiny_settings, config_file):
    process = launched(2, config_file(light(tiny_settings)), "train.steps=5000", "train.evaluate_every=5000")
    until(process, Path(tiny_settings["run"]), 3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode
    assert time.monotonic() - start < 60
    assert "error: another process of this run is gone" in err
    assert not Path(f"/proc/{children[0]}").exists()


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_leaves_the_checkpoint_before(tiny_settings, config_file, monkeypatch, capsys):
    """The disk is full in the middle of the second save."""
    import errno

    import mmkt
    from mmkt import checkpoint, cli

    plain, calls = checkpoint.save_file, []

    def full(tensors, file):
        calls.append(file)
        if len(calls) > 4:  # the first evaluation writes one file, the first save three
            Path(file).write_bytes(b"cut")
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        plain(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", full)
    file = config_file(tiny_settings)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(file), "train.patience=9"])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "error: the disk is full" in err
    assert "--resume" in err
    assert "Traceback" not in err
    run = Path(tiny_settings["run"])
    assert mmkt.load(run / "best").predict([{"text": "it is large"}])
    assert json.loads((run / "last/state.json").read_text())["progress"]["total"] == 3
    monkeypatch.undo()
    AcceleratorState._reset_state()
    PartialState._reset_state()
    assert launch.train(experiment(tiny_settings, "train.patience=9"), resume=True)


FULL = """
import sys, torch
from pathlib import Path
from mmkt import checkpoint
folder = Path(sys.argv[1])
for value, size in ((1.0, 1000), (2.0, 1_000_000)):
    with checkpoint.atomic(folder / "a") as new:
        checkpoint.write_tensors(new / "x", {"x": torch.full((size,), value)})
"""
SMALL = """mount -t tmpfs -o size=256k none "$1" || exit 77
"$2" -c "$3" "$1"
"$2" -c "from pathlib import Path; from mmkt import checkpoint; print(checkpoint.read_tensors(Path('$1') / 'a/x')['x'].sum())"
ls "$1"
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="this system has no unshare, to mount a small disk without privileges")
def test_a_small_disk_that_is_really_full(tmp_path):
    words = ["unshare", "-rm", "sh", "-c", SMALL, "sh", str(tmp_path), sys.executable, FULL]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode in (1, 77) and "mmkt" not in done.stderr:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert "CheckpointError: the disk is full" in done.stderr
    assert done.stdout.split() == ["tensor(1000.)", "a"]
