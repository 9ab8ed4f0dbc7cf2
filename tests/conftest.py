"""Tiny models and a tiny trimodal data set, made on the spot."""

from __future__ import annotations

import copy
import gc
import io
import os

gc.disable()  # until all is imported: nothing of it is garbage
os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries read it
os.environ["OMP_NUM_THREADS"] = "1"  # two tests run at a time: more threads than cores wait for one another

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmkt import cli
from mmkt.config import check, override
from mmkt.experiment import Experiment
from mmkt.parts import Parts

torch.set_num_threads(1)
os.fsync = lambda handle: None  # no test takes the power away

WORDS = ["red", "blue", "round", "square", "small", "large", "loud", "quiet", "what", "is", "it", "the"]


# Files that take minutes with few tests: they start first, so that no worker is left with one of them at the end.
LONG = (
    "test_readme",
    "test_distributed",
    "test_conformance",
    "test_launchers",
    "test_cli",
    "test_train",
    "test_stop",
    "test_transfer_study",
    "test_strangers",
    "test_desk",
    "test_transfer",
    "test_adapters_model",
    "test_encoders_hf",
)


def pytest_collection_finish():
    gc.enable()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A BERT of two layers, 32 wide, with a tokenizer of a dozen words."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def wav(array: np.ndarray, rate: int = 8000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, array, rate, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def rows_of_three(count: int, seed: int = 0) -> list[dict]:
    """Rows whose label is 4·bright + 2·high + large: one bit from the picture, one from the sound, one from the text."""
    random = np.random.default_rng(seed)
    rows = []
    codes = np.concatenate([random.permutation(8) for _ in range(-(-count // 8))])  # every class in every split
    for k in range(count):
        bright, high, large = (int(codes[k]) >> shift & 1 for shift in (2, 1, 0))
        picture = (random.uniform(0, 100, (16, 16)) + 150 * bright).astype(np.uint8)
        seconds = np.arange(int(random.integers(1200, 2400))) / 8000
        sound = 0.3 * np.sin(2 * np.pi * (1500 if high else 300) * seconds) + 0.01 * random.standard_normal(len(seconds))
        words = [*random.choice(["what", "is", "it", "the"], int(random.integers(1, 5))), "large" if large else "small"]
        rows.append(
            {
                "id": f"r{k}",
                "split": "train" if k < count * 0.6 else "validation" if k < count * 0.8 else "test",
                "domain": ["indoor", "outdoor"][k % 2],
                "group": f"g{k % 5}",
                "text": " ".join(random.permutation(words)),
                "image": png(picture),
                "audio": wav(sound),
                "kind": f"k{4 * bright + 2 * high + large}",
                "tags": [name for name, on in (("bright", bright), ("high", high), ("large", large)) if on],
                "size": float(10 * large + bright + random.normal(0, 0.1)),
            }
        )
    return rows


def write(rows: list[dict], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory) -> Path:
    return write(rows_of_three(120), tmp_path_factory.mktemp("tiny") / "manifest.parquet")


def settings(manifest: Path, bert: Path, run: Path) -> dict:
    """A trimodal experiment that takes a second or two."""
    return {
        "seed": 0,
        "run": str(run),
        "data": {"manifest": str(manifest), "batch_size": 12},
        "model": {
            "dim": 32,
            "encoders": {
                "text": {"name": "hf_text", "model": str(bert)},
                "image": {"name": "timm_image", "model": "test_efficientnet_gn", "weights": "random", "size": 32, "channels": 1},
                "audio": {
                    "name": "spectrogram",
                    "rate": 8000,
                    "seconds": 0.5,
                    "mels": 16,
                    "width": 32,
                    "layers": 1,
                    "heads": 2,
                },
            },
            "fusion": "concat",
            "heads": {"kind": "classify"},
        },
        "objectives": {"kind": {"name": "classify", "task": "kind"}},
        "train": {"steps": 6, "lr": 3e-3, "log_every": 1, "evaluate_every": 3},
        "evaluate": {"resamples": 20, "page": False},
        "trackers": [],
        "threads": 1,
    }


def experiment(data: dict, *overrides: str) -> Experiment:
    return check(Experiment, override(data, overrides), Parts())


@pytest.fixture(scope="module", autouse=True)
def settled():
    """Libraries' half a million objects are looked through once, and not at the end of every training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate's state is shared in a process: every test starts without."""
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def tiny_settings(tiny_manifest, tiny_bert, tmp_path) -> dict:
    return settings(tiny_manifest, tiny_bert, tmp_path / "run")


@pytest.fixture
def config_file(tmp_path):
    """Writes settings as an experiment file."""

    def make(data: dict, name: str = "experiment.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return make


def call(capfd, *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command, in this process."""
    capfd.readouterr()
    try:
        cli.main([str(word) for word in words])
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        AcceleratorState._reset_state()
        PartialState._reset_state()
    out, err = capfd.readouterr()
    return status, out, err


def refused(capfd, *words: object) -> str:
    status, out, err = call(capfd, *words)
    assert status == 2
    assert "error: " in err
    assert "Traceback" not in err + out
    return err


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_manifest, tiny_bert) -> Path:
    """A trained run's best checkpoint."""
    from mmkt import launch

    folder = tmp_path_factory.mktemp("trained")
    launch.train(check(Experiment, settings(tiny_manifest, tiny_bert, folder / "run"), Parts()))
    AcceleratorState._reset_state()
    PartialState._reset_state()
    return folder / "run/best"


@pytest.fixture(scope="session")
def answers_of():
    """Makes a classifier's answers to a hundred rows, of which the first so many are right."""
    from mmkt.types import Predictions

    def make(share: float, n: int = 100, **columns) -> Predictions:
        label = np.arange(n) % 2
        said = np.where(np.arange(n) < round(share * n), label, 1 - label)
        logits = list(np.eye(2, dtype=np.float32)[said])
        table = pa.table({"t.label": label, "t.prediction": said, "t.logits": logits, **columns})
        return Predictions(table, {"t": "classify"}, {"t": {"classes": [0, 1]}})

    return make


def with_rows(tiny_settings: dict, tmp_path: Path, change) -> dict:
    rows = rows_of_three(40)
    for k, row in enumerate(rows):
        change(k, row)
    changed = copy.deepcopy(tiny_settings)
    changed["data"]["manifest"] = str(write(rows, tmp_path / "bad.parquet"))
    return changed
