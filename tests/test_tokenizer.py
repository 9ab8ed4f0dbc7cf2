"""A tokenizer from a manifest's texts, and Chinese from there to a prediction."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import call, refused, settings, write
from transformers import AutoConfig, AutoTokenizer

from mmkt.model import Model

GOOD, BAD = "好棒喜欢快美", "差烂坏慢丑退"


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Chinese reviews whose sentiment is in one character of several; test has a character that no other split has."""
    random, rows = np.random.default_rng(0), []
    for k in range(120):
        good = k % 2 == 0
        words = [*random.choice(list("这个物流手机的我了是在很"), 6), *random.choice(list(GOOD if good else BAD), 2)]
        split = "train" if k < 80 else "validation" if k < 100 else "test"
        text = "".join(random.permutation(words)) + ("龘" if split == "test" else "，good phone")
        rows.append({"id": str(k), "split": split, "text": text, "label": "正面" if good else "负面"})
    return write(rows, tmp_path_factory.mktemp("reviews") / "manifest.parquet")


def test_a_tokenizer_reads_the_splits_it_is_given(capfd, reviews, tmp_path):
    out = tmp_path / "body"
    status, said, err = call(capfd, "tokenizer", reviews, "--out", out, "--width", 32, "--max-tokens", 40, "--json")
    assert status == 0, err
    found = json.loads(said)
    assert found["texts"] == 80
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert found["vocabulary"] == len(tokenizer)
    # every Chinese character is a token, words of other scripts are cut into pieces, what training lacks is unknown
    assert tokenizer.tokenize("很好，Phone龘") == ["很", "好", "，", "phone", "[UNK]"]
    ids = tokenizer("很好", "慢")
    assert tokenizer.convert_ids_to_tokens(ids["input_ids"]) == ["[CLS]", "很", "好", "[SEP]", "慢", "[SEP]"]
    assert ids["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    config = AutoConfig.from_pretrained(out)
    assert (config.hidden_size, config.max_position_embeddings, config.vocab_size) == (32, 40, len(tokenizer))
    both = tmp_path / "both"
    assert call(capfd, "tokenizer", reviews, "--out", both, "--splits", "train", "test")[0] == 0
    assert AutoTokenizer.from_pretrained(both).tokenize("龘") == ["龘"]
    small = tmp_path / "small"
    assert call(capfd, "tokenizer", reviews, "--out", small, "--vocabulary", 20)[0] == 0
    assert len(AutoTokenizer.from_pretrained(small)) < len(tokenizer)


def test_what_cannot_be_is_refused(capfd, reviews, tmp_path):
    words = ["tokenizer", reviews, "--out", tmp_path / "x"]
    assert "no column 'txt' (did you mean 'text'?)" in refused(capfd, *words, "--column", "txt")
    assert "the split 'training' is empty" in refused(capfd, *words, "--splits", "training")
    assert "3 heads do not divide a width of 256" in refused(capfd, *words, "--heads", 3)
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine.txt").write_text("keep")
    assert "is not empty" in refused(capfd, *words)
    assert (tmp_path / "x/mine.txt").read_text() == "keep"


def test_rows_without_splits_are_all_read(capfd, tmp_path):
    rows = [{"id": "a", "text": ["一", "二"]}, {"id": "b", "text": None}, {"id": "c", "text": ["三"]}]
    status, said, err = call(capfd, "tokenizer", write(rows, tmp_path / "m.parquet"), "--out", tmp_path / "body")
    assert status == 0, err
    assert "from 3 texts (all rows: none has a split)" in said


def test_chinese_from_a_manifest_to_a_prediction(capfd, reviews, config_file, tmp_path):
    assert call(capfd, "tokenizer", reviews, "--out", tmp_path / "body", "--width", 32, "--max-tokens", 40)[0] == 0
    data = settings(reviews, tmp_path / "body", tmp_path / "run")
    data["model"]["encoders"] = {"text": data["model"]["encoders"]["text"] | {"weights": "random"}}
    data["model"]["heads"], data["objectives"] = {"label": "classify"}, {"label": {"name": "classify", "task": "label"}}
    data["train"] |= {"steps": 120, "evaluate_every": 120, "save_every": 120}
    status, said, err = call(capfd, "train", config_file(data), "--json")
    assert status == 0, err
    figures = {row["metric"]: row["value"] for row in json.loads(said)["rows"] if row["group"] == "all"}
    assert figures["accuracy"] > 0.9
    model = Model.from_pretrained(tmp_path / "run/best")
    found = model.predict([{"text": "手机很好喜欢"}, {"text": "物流太慢了差"}])
    assert [row["label"]["prediction"] for row in found] == ["正面", "负面"]
