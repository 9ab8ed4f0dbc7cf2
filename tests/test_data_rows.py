import io
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from conftest import experiment
from PIL import Image
from torch.utils.data import DataLoader

from mmkt.data.cache import Cache
from mmkt.data.collate import Collate
from mmkt.data.decode import DecodeError, Limits
from mmkt.data.labels import labels
from mmkt.data.manifest import ManifestError, from_rows
from mmkt.data.media import MediaError
from mmkt.data.rows import Draw, Rows, load
from mmkt.data.sampling import Stream, TrainSampler
from mmkt.launch import build
from mmkt.types import Processor

MODALITIES = ["text", "image", "audio"]
COLUMNS = {"text": "caption", "image": "scan", "audio": "clip"}


class Letters(Processor):
    kind = "text"

    def __init__(self, pairs=False):
        self.pairs = pairs

    def __call__(self, item, view=None):
        words = item if isinstance(item, list) else [item]
        codes = torch.tensor([ord(c) for word in words for c in [*word, "|"]])
        return {"input_ids": codes[torch.randperm(len(codes))] if view else codes}

    def pad(self, items):
        ids = [item["input_ids"] for item in items]
        return {"input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)}

    def whole(self, cell):
        return self.pairs and not any(isinstance(part, list) for part in cell)


class Pixels(Processor):
    kind = "image"

    def __call__(self, item, view=None):
        x = torch.from_numpy(np.array(item)).permute(2, 0, 1) / 255
        if view:
            x = x + torch.rand(1) + np.random.rand() + random.random()
        return {"pixels": x}

    def pad(self, items):
        return {"pixels": torch.stack([item["pixels"] for item in items])}


class Samples(Processor):
    kind = "audio"
    rate = 8000

    def __call__(self, item, view=None):
        return {"samples": item * (1 + torch.rand(1)) if view else item}

    def pad(self, items):
        return {"samples": torch.nn.utils.rnn.pad_sequence([item["samples"] for item in items], batch_first=True)}


PROCESSORS = {"text": Letters(), "image": Pixels(), "audio": Samples()}
RNG = np.random.default_rng(0)


def png(value=None):
    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8) if value is None else value).save(out, "PNG")
    return out.getvalue()


def wav(n=40):
    out = io.BytesIO()
    soundfile.write(out, RNG.uniform(-1, 1, n).astype(np.float32), 8000, "FLOAT", format="WAV")
    return out.getvalue()


def manifest(n=12):
    rows = [
        {"id": f"r{i}", "caption": "word " * (1 + i % 3), "scan": [png() for _ in range(i % 4)], "clip": wav(30 + i)}
        for i in range(n)
    ]
    rows[1]["caption"], rows[2]["caption"], rows[3]["clip"] = None, "", None
    return from_rows(rows)


def same(a, b):
    flat_a, spec_a = torch.utils._pytree.tree_flatten(a)
    flat_b, spec_b = torch.utils._pytree.tree_flatten(b)
    return spec_a == spec_b and all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(flat_a, flat_b))


def test_absence_and_lists():
    rows = Rows(manifest(), COLUMNS, PROCESSORS, seed=0, train=False)
    assert len(rows) == 12
    assert [list(rows[Draw(i, 0, 0)].inputs) for i in range(5)] == [
        ["text", "audio"],
        ["image", "audio"],
        ["image", "audio"],
        ["text", "image"],
        ["text", "audio"],
    ]
    assert [len(rows[Draw(i, 0, 0)].inputs["image"]) for i in (1, 2, 3)] == [1, 2, 3]
    assert rows[Draw(5, 0, 0)].key == Draw(5, 0, 0)


def test_a_pair_is_one_item():
    pairs = from_rows([{"caption": ["ab", "c"]}, {"caption": ["d"]}, {"caption": []}, {"caption": [None, ""]}])
    whole = Rows(pairs, {"text": "caption"}, {"text": Letters(pairs=True)}, seed=0, train=False)
    assert [len(whole[Draw(i, 0, 0)].inputs.get("text", [])) for i in range(4)] == [1, 1, 0, 0]
    assert whole[Draw(0, 0, 0)].inputs["text"][0]["input_ids"].tolist() == [ord(c) for c in "ab|c|"]
    several = Rows(pairs, {"text": "caption"}, {"text": Letters()}, seed=0, train=False)
    assert [len(several[Draw(i, 0, 0)].inputs.get("text", [])) for i in range(4)] == [2, 1, 0, 0]


CAPTIONS = ["one", "two", "three", "four"]


def captions(**settings):
    """Rows with four captions, with one in a list, and with none."""
    cells = [*([CAPTIONS] * 3), ["alone"], None]
    table = from_rows([{"id": f"r{k}", "caption": cell, "scan": png()} for k, cell in enumerate(cells)])
    columns = {"text": "caption", "image": "scan"}
    return Rows(table, columns, PROCESSORS, **{"seed": 0, "train": True, "one_of": ["text"], **settings})


def said(item, view=None):
    """The captions of an item, their letters sorted: the processor shuffles them in training."""
    inputs = (item.views[view] if view else item.inputs).get("text", [])
    return ["".join(sorted(map(chr, x["input_ids"].tolist()))) for x in inputs]


def letters(caption):
    return "".join(sorted(caption + "|"))


def test_one_of_draws_every_caption_about_equally_often():
    rows = captions(dropout={"image": 0.5}, views=("weak",), cache=Cache(1e9))
    found = [rows[Draw(0, draw, 0)] for draw in range(1000)]
    counts = Counter(said(item)[0] for item in found)
    assert counts.keys() == set(map(letters, CAPTIONS))
    assert all(abs(n / 1000 - 0.25) < 4 * (0.25 * 0.75 / 1000) ** 0.5 for n in counts.values()), counts
    assert all(len(said(item)) == 1 and said(item, "weak") == said(item) for item in found), "a view shows the same item"
    first, second = ([said(rows[Draw(row, draw, 0)]) for draw in range(200)] for row in (0, 1))
    assert 20 < sum(map(list.__eq__, first, second)) < 80, "rows draw independently: a quarter of 200 agree"


def test_one_of_depends_on_seed_draw_row_alone():
    draws = [Draw(row, draw, 0) for draw in range(20) for row in range(5)]
    first = [said(captions()[draw]) for draw in draws]
    again = captions(cache=Cache(1e9))
    assert [said(again[draw]) for draw in reversed(draws)] == first[::-1], "any order, any process, cached or not"
    assert [said(again[draw]) for draw in draws] == first
    workers = DataLoader(captions(), batch_sampler=[draws[:50], draws[50:]], num_workers=2, collate_fn=list)
    assert [said(item) for items in workers for item in items] == first
    assert [said(captions(seed=1)[draw]) for draw in draws] != first
    assert [said(captions(dropout={"image": 0.3})[draw]) for draw in draws] == first, "dropout draws for itself"


def test_one_of_in_evaluation_takes_the_first_and_without_it_all_are_joined():
    draws = [Draw(row, 7, 0) for row in range(5)]
    evaluated, joined = captions(train=False, cache=Cache(1e9)), captions(train=False, one_of=())
    for _ in range(2):
        assert [said(evaluated[draw]) for draw in draws] == [[letters("one")]] * 3 + [[letters("alone")], []]
    assert [len(said(joined[draw])) for draw in draws] == [4, 4, 4, 1, 0], "the control"
    strings = from_rows([{"caption": f"word {k}"} for k in range(4)])
    for train in (True, False):
        plain, chosen = (Rows(strings, {"text": "caption"}, PROCESSORS, seed=0, train=train, one_of=n) for n in ([], ["text"]))
        assert all(same(plain[Draw(k, 3, 0)], chosen[Draw(k, 3, 0)]) for k in range(4)), "a cell without a list"


def test_one_of_several_pairs_and_plain_items():
    """Alternatives that are pairs, through a processor that draws nothing: the cache must not mix them up."""
    pairs = from_rows([{"caption": [["ab", "c"], ["d", "ef"]]}, {"caption": [["g", "h"]]}])
    processor = Letters(pairs=True)
    processor.draws = False
    rows = Rows(pairs, {"text": "caption"}, {"text": processor}, seed=0, train=True, one_of=["text"], cache=Cache(1e9))
    found = {rows[Draw(0, draw, 0)].inputs["text"][0]["input_ids"].sum().item() for draw in range(20)}
    assert found == {sum(map(ord, words)) for words in ("ab|c|", "d|ef|")}
    assert len(rows[Draw(1, 0, 0)].inputs["text"]) == 1
    both = Rows(pairs, {"text": "caption"}, {"text": processor}, seed=0, train=True)
    assert len(both[Draw(0, 0, 0)].inputs["text"]) == 2


def test_one_of_checks_every_alternative_and_its_name():
    table = from_rows([{"caption": ["fine", "too long"]}, {"caption": ["fine", "fine"]}])
    rows = Rows(table, {"text": "caption"}, PROCESSORS, seed=0, train=True, one_of=["text"], limits=Limits(characters=5))
    assert list(rows.unreadable(0)) == ["caption"]
    assert rows.unreadable(1) == {}
    with pytest.raises(ValueError, match="one_of names the modality 'txt' \\(did you mean 'text'\\?\\)"):
        captions(one_of=["txt"])


def states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def test_augmentation_depends_on_seed_draw_row_view_alone():
    rows = Rows(manifest(), COLUMNS, PROCESSORS, seed=0, train=True, views=("weak", "strong"))
    before = states()
    first = rows[Draw(5, 2, 0)]
    assert states() == before
    torch.manual_seed(99)
    random.seed(99)
    rows[Draw(7, 2, 0)]
    assert same(rows[Draw(5, 2, 0)], first)
    assert set(first.views) == {"weak", "strong"}
    base = first.inputs["image"][0]["pixels"]
    assert not torch.equal(first.views["weak"]["image"][0]["pixels"], base)
    assert not torch.equal(first.views["weak"]["image"][0]["pixels"], first.views["strong"]["image"][0]["pixels"])
    assert not torch.equal(rows[Draw(5, 3, 0)].inputs["image"][0]["pixels"], base)
    other = Rows(manifest(), COLUMNS, PROCESSORS, seed=1, train=True)
    assert not torch.equal(other[Draw(5, 2, 0)].inputs["image"][0]["pixels"], base)
    for generator in (torch.rand, np.random.rand, lambda _: random.random()):  # all three were seeded, and restored
        before = states()
        generator(1)
        assert states() != before


def test_evaluation_is_plain_and_touches_no_generator(monkeypatch):
    monkeypatch.setattr("mmkt.data.rows._seeded", lambda seed: pytest.fail("a generator was touched"))
    picture = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rows = Rows(from_rows([{"scan": png(picture)}]), {"image": "scan"}, {"image": Pixels()}, seed=0, train=False, views=("weak",))
    item = rows[Draw(0, 0, 0)]
    assert item.views == {}
    assert (item.inputs["image"][0]["pixels"] * 255).round().int().permute(1, 2, 0).tolist() == picture.tolist()


def test_dropout_rates_and_never_the_last():
    p = {"text": 0.6, "image": 0.3, "audio": 0.5}
    cells = [
        {"id": "r", "caption": "x", "scan": png(), "clip": wav()},
        {"id": "s", "caption": None, "scan": png(), "clip": wav()},
    ]
    rows = Rows(from_rows(cells), COLUMNS, PROCESSORS, seed=0, train=True, dropout=p, views=("weak",))
    n = 4000
    for row, present in ((0, MODALITIES), (1, ["image", "audio"])):
        items = [rows._kept(Draw(row, i, 0), present) for i in range(n)]
        assert all(items)
        product = np.prod([p[m] for m in present])
        for m in present:
            rate = np.mean([m not in kept for kept in items])
            expected = p[m] - product / len(present)
            assert abs(rate - expected) < 4 * (expected * (1 - expected) / n) ** 0.5
    item = next(item for i in range(50) if len((item := rows[Draw(0, i, 0)]).inputs) == 1)
    assert list(item.views["weak"]) == list(item.inputs)
    certain = Rows(from_rows(cells), COLUMNS, PROCESSORS, seed=0, train=True, dropout=dict.fromkeys(COLUMNS, 1.0))
    kept = [list(certain[Draw(0, i, 0)].inputs) for i in range(300)]
    assert all(len(k) == 1 for k in kept)
    assert all(60 < sum(k == [m] for k in kept) < 140 for m in MODALITIES)
    evaluated = Rows(from_rows(cells), COLUMNS, PROCESSORS, seed=0, train=False, dropout=p)
    assert all(len(evaluated[Draw(0, i, 0)].inputs) == 3 for i in range(20))


def test_a_dropped_modality_is_not_decoded():
    cells = from_rows([{"caption": "x", "scan": b"no image"}])
    columns = {"text": "caption", "image": "scan"}
    rows = Rows(cells, columns, PROCESSORS, seed=0, train=True, dropout={"image": 1.0})
    assert list(rows[Draw(0, 0, 0)].inputs) == ["text"]
    with pytest.raises(DecodeError, match="row '0', column 'scan': no image format"):
        Rows(cells, columns, PROCESSORS, seed=0, train=True)[Draw(0, 0, 0)]


def test_errors_name_row_and_column(tmp_path):
    rows = from_rows([{"id": "r17", "scan": "gone.png"}, {"id": "r18", "caption": "x" * 9}], tmp_path)
    made = Rows(rows, {"text": "caption", "image": "scan"}, PROCESSORS, seed=0, train=False, limits=Limits(characters=8))
    with pytest.raises(MediaError, match=r"row 'r17', column 'scan': cannot read the file .*gone\.png"):
        made[Draw(0, 0, 0)]
    with pytest.raises(DecodeError, match="row 'r18', column 'caption': the text has 9 characters"):
        made[Draw(1, 0, 0)]


def test_columns_are_checked():
    with pytest.raises(ManifestError, match=r"no column 'captoin' \(did you mean 'caption'\?\): it has .*scan"):
        Rows(manifest(), {"text": "captoin"}, PROCESSORS, seed=0, train=False)
    empty = from_rows([{"caption": "a", "clip": None}, {"caption": "b", "clip": ""}])
    with pytest.raises(ManifestError, match=r"modality 'audio' \(column 'clip'\) is absent from every row"):
        Rows(empty, {"text": "caption", "audio": "clip"}, PROCESSORS, seed=0, train=False)
    with pytest.raises(ValueError, match="dropout names the modality 'txt' \\(did you mean 'text'\\?\\)"):
        Rows(manifest(), COLUMNS, PROCESSORS, seed=0, train=True, dropout={"txt": 0.1})


def test_things_in_memory(tmp_path):
    array = RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png(array))
    rows = Rows(None, COLUMNS, PROCESSORS, seed=0, train=False)
    pictures = [Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1), png(array), str(tmp_path / "a.png")]
    made = rows.item({"image": pictures, "text": "hi"}, row=3)
    assert made.key == Draw(3, 0, 0)
    assert list(made.inputs) == ["text", "image"]
    assert len(made.inputs["image"]) == 5
    assert all(torch.equal(item["pixels"], made.inputs["image"][0]["pixels"]) for item in made.inputs["image"])
    sound = RNG.uniform(-1, 1, 100).astype(np.float32)
    items = rows.item({"audio": [sound, torch.from_numpy(sound), (sound, 8000), (sound, 4000)], "text": None}).inputs
    assert [len(item["samples"]) for item in items["audio"]] == [100, 100, 100, 200]
    assert list(items) == ["audio"]
    with pytest.raises(ValueError, match="this row names the modality 'imge' \\(did you mean 'image'\\?\\)"):
        rows.item({"imge": array})
    with pytest.raises(DecodeError, match="row 2, column 'scan': a floating-point image lies in"):
        rows.item({"image": array / 9}, row=2)


def test_labels():
    def label(value):
        if value not in (None, "a", "b"):
            raise ValueError("the classes are a, b")
        return torch.tensor(0 if value is None else "ab".index(value))

    got, labelled = labels(from_rows([{"y": "b"}, {"y": None}, {"y": "a"}]), "y", label)
    assert got.tolist() == [1, 0, 0]
    assert labelled.tolist() == [True, False, True]
    numbers = from_rows([{"y": 2.5}, {"y": float("nan")}])
    got, labelled = labels(numbers, "y", lambda v: torch.tensor([0.0 if v is None else v]))
    assert got.tolist() == [[2.5], [0.0]]
    assert labelled.tolist() == [True, False]
    wrong = from_rows([{"id": f"r{i}", "y": "a" if i == 2 else f"x{i}"} for i in range(9)])
    message = "column 'y': row 'r0' has 'x0'; row 'r1' has 'x1'; row 'r3' .*; row 'r5' has 'x5' and 3 more: the classes are a, b"
    with pytest.raises(ManifestError, match=message):
        labels(wrong, "y", label)


def collate(n=12):
    y = torch.arange(n), torch.arange(n) % 2 == 0
    return Collate(MODALITIES, PROCESSORS, {"task": y}, torch.arange(n) * 10, torch.full((n,), -1))


def test_collate_places_items():
    rows = Rows(manifest(), COLUMNS, PROCESSORS, seed=0, train=True, views=("weak",))
    batch = collate()([rows[Draw(i, 0, k)] for k, i in enumerate((3, 0, 1, 6))])
    assert {m: present.tolist() for m, present in batch.present.items()} == {
        "text": [True, True, False, True],
        "image": [True, False, True, True],
        "audio": [False, True, True, True],
    }
    assert batch.inputs["image"]["items"].tolist() == [[0, 1, 2], [-1, -1, -1], [3, -1, -1], [4, 5, -1]]
    assert batch.inputs["image"]["pixels"].shape == (6, 3, 4, 4)
    assert torch.equal(batch.inputs["image"]["pixels"][5], rows[Draw(6, 0, 3)].inputs["image"][1]["pixels"])
    assert batch.inputs["audio"]["items"].tolist() == [[-1], [0], [1], [2]]
    assert batch.row.tolist() == [3, 0, 1, 6]
    assert batch.stream.tolist() == [0, 1, 2, 3]
    assert batch.domain.tolist() == [30, 0, 10, 60]
    assert batch.labels["task"].tolist() == [3, 0, 1, 6]
    assert batch.labelled["task"].tolist() == [False, True, False, True]
    assert torch.equal(batch.views["weak"]["image"]["items"], batch.inputs["image"]["items"])
    assert batch.size == 4
    for tensor in torch.utils._pytree.tree_leaves(batch):
        assert isinstance(tensor, torch.Tensor)


def test_collate_leaves_out_what_no_row_has():
    rows = Rows(manifest(), COLUMNS, PROCESSORS, seed=0, train=False)
    batch = collate()([rows[Draw(i, 0, 0)] for i in (0, 4)])
    assert list(batch.inputs) == ["text", "audio"]
    assert batch.present["image"].tolist() == [False, False]
    assert batch.views == {}


def by_draw(world, workers):
    """Each row's inputs over some steps, by draw, from all ranks."""
    found = {}
    for rank in range(world):
        stream = Stream("all", np.arange(12), 8)
        rows = Rows(manifest_once, COLUMNS, PROCESSORS, seed=4, train=True, dropout={"text": 0.5, "audio": 0.5})
        sampler = TrainSampler([stream], seed=4, rank=rank, world=world, stop=4)
        for step, items in enumerate(DataLoader(rows, batch_sampler=sampler, num_workers=workers, collate_fn=list)):
            for item in items:
                found[step, item.key] = item.inputs
    return found


manifest_once = manifest()


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (4, 0), (4, 1)])
def test_rank_world_and_workers_change_nothing(world, workers):
    alone = by_draw(1, 0)
    assert len(alone) == 32
    found = by_draw(world, workers)
    assert found.keys() == alone.keys()
    assert all(same(found[key], alone[key]) for key in alone)


def test_batches_through_workers_are_batches():
    rows = Rows(manifest_once, COLUMNS, PROCESSORS, seed=4, train=True)
    loaders = [
        DataLoader(
            rows,
            batch_sampler=TrainSampler([Stream("all", np.arange(12), 5)], seed=0, stop=3),
            num_workers=w,
            collate_fn=collate(),
        )
        for w in (0, 2)
    ]
    for a, b in zip(*loaders, strict=True):
        assert type(a).__name__ == "Batch"
        assert same(a, b)


def test_the_cache_decodes_once_and_changes_nothing(monkeypatch):
    calls = []
    once = manifest()  # its media are random
    monkeypatch.setattr("mmkt.data.rows.load", lambda cell, *rest: calls.append(1) or load(cell, *rest))
    cache = Cache(1e9)
    for train in (True, False, True):
        settings = {"seed": 4, "train": train, "views": ("weak",), "dropout": {"text": 0.5}}
        kept, plain = (Rows(once, COLUMNS, PROCESSORS, cache=m, **settings) for m in (cache, None))
        for epoch in (0, 1):
            draws = [Draw(row, epoch, 0) for row in range(12)]
            items, decoded = [kept[draw] for draw in draws], len(calls)
            assert all(same(item, plain[draw]) for item, draw in zip(items, draws)), (train, epoch)
            del calls[decoded:]
    calls.clear()
    everything = [kept[Draw(row, epoch, 0)] for row in range(12) for epoch in (0, 1)]
    assert everything
    assert not calls, "the third dataset finds all that the first has decoded"


@pytest.mark.parametrize("value", [torch.rand(50, 50), Image.new("RGB", (80, 40)), "x" * 9_600, [{"a": torch.rand(60)}] * 25])
def test_the_cache_stays_within_its_size(value):
    cache = Cache(25_000)
    for key in range(10):
        cache.get(key, lambda: value)
    kept = [key for key in range(10) if cache.get(key, lambda: None) is not None]
    assert kept == [0, 1], "about 10,000 bytes each; what came first stays"


def test_rows_and_collate_go_to_workers_that_are_no_forks(tiny_settings):
    """A study's processes are spawned, and so are the data workers of those."""
    setup = build(experiment(tiny_settings))
    source, collate = setup.feed._rows(True), setup.feed.collate
    draws = [Draw(k, 0, 0) for k in range(3)]
    there, sent = pickle.loads(pickle.dumps((source, collate)))
    one, two = collate([source[draw] for draw in draws]), sent([there[draw] for draw in draws])
    assert torch.equal(one.inputs["image"]["pixels"], two.inputs["image"]["pixels"])
    assert torch.equal(one.inputs["text"]["input_ids"], two.inputs["text"]["input_ids"])
