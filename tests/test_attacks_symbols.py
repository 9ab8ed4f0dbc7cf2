"""Attacks that change tokens, letters, words and which modalities there are."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmkt.attacks.absent import Absent
from mmkt.attacks.characters import Characters
from mmkt.attacks.hotflip import Hotflip, _Lexicon
from mmkt.attacks.synonyms import Synonyms
from mmkt.data import manifest as manifests
from mmkt.data.collate import Collate
from mmkt.data.rows import Rows
from mmkt.encoders.hf_text import HfText
from mmkt.feed import Feed
from mmkt.fusion.concat import Concat
from mmkt.heads.classify import Classify
from mmkt.layers.letters import alike, beside
from mmkt.layers.thesaurus import Neighbours, read
from mmkt.layers.vocabulary import vocabulary
from mmkt.layers.words import cased, split
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.space import SharedSpace
from mmkt.texts import texts_of
from mmkt.threat import Threat
from mmkt.types import Encoded
from mmkt.victim import Victim
from mmkt.worst import Worst

STARTS = ["play", "film", "movie", "great", "good", "bad", "was", "the", "runs", "Great", "run"]
PIECES = [
    "##ing",
    "##ed",
    "##er",
    "[unused1]",
    "!",
    "7",
    "好",
    "坏",
    "电",
    "影",
    "己",
    "已",
    "大",
    "太",
    *"abcdefghijklmnopqrstuvwxyz",
]
PIECES += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
TEXTS = ["the film was great!", "a bad movie", "playing the good film", "great 7 runs", "好电影", "the film the film the film"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A BERT with WordPiece, so that words have beginnings and continuations."""
    folder = tmp_path_factory.mktemp("pieces")
    names = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *STARTS, *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(names, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=len(names), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


def model_of(folder, modalities=("text",), seed=0, **settings) -> Model:
    torch.manual_seed(seed)
    encoders = {m: HfText({}, None, model=str(folder), **settings) for m in modalities}
    for encoder in encoders.values():
        torch.nn.init.normal_(encoder.body.get_input_embeddings().weight)
    space = SharedSpace(16, {m: e.width for m, e in encoders.items()})
    head = Classify(16, {"classes": [0, 1, 2]})
    return Model(encoders, space, Concat(16, modalities, {"y": 3}), {"y": head}).eval()


def batch_of(model, rows, first=0):
    """Rows whose labels are what the model says of them."""
    processors = {m: e.processor() for m, e in model.encoders.items()}
    source = Rows(None, {m: m for m in model.modalities}, processors, seed=0, train=False)
    numbers = torch.arange(first + len(rows))
    labels = {"y": (torch.zeros(len(numbers), dtype=torch.long), torch.ones(len(numbers), dtype=torch.bool))}
    collate = Collate(model.modalities, processors, labels, numbers, numbers)
    batch = collate([source.item(cells, first + k) for k, cells in enumerate(rows)])
    with torch.no_grad():
        return batch._replace(labels={"y": model(batch).logits["y"].argmax(1)})


def strings(rows, m="text"):
    cells = [row.get(m) for row in rows]
    return {m: [t for c in cells if c is not None for t in (c if isinstance(c, list) else [c])]}


def victim_of(model, rows, moves, first=0, seed=0) -> Victim:
    texts = strings(rows) if moves == "texts" else {}
    return Victim(model, batch_of(model, rows, first), "y", {"text": None}, moves=moves, texts=texts, seed=seed)


def margin(victim, points):
    return victim.goal.loss("margin", victim.logits(points))


def damerau(a: str, b: str) -> int:
    """Optimal string alignment."""
    d = {(i, j): max(i, j) for i in range(len(a) + 1) for j in range(len(b) + 1) if not i or not j}
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
        if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
            d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a), len(b)]


ROWS = [{"text": text} for text in TEXTS]


def allowed_swaps(tokenizer, encoder, ids):
    """Every swap that HotFlip may make in a text, by rules of its own: whole classes of this vocabulary, and a read-back."""
    latin, han = set(STARTS) | set("abcdefghijklmnopqrstuvwxyz"), set("好坏电影己已大太")
    classes = [latin, han, {p for p in PIECES if p.startswith("##")}]
    process, tokens = encoder.processor(), tokenizer.convert_ids_to_tokens(ids)
    for place, token in enumerate(tokens):
        for other in next((c for c in classes if token in c), set()) - {token}:
            new = list(ids)
            new[place] = tokenizer.convert_tokens_to_ids(other)
            if process(tokenizer.decode(new[1:-1]))["input_ids"][0].tolist() == new:
                yield new


def test_one_flip_is_the_best_of_all(pieces):
    model = model_of(pieces)
    encoder = model.encoders["text"]
    for k, row in enumerate(ROWS[:4]):
        victim = victim_of(model, [row], "tokens", first=k)
        ids = victim.clean["text"][0].tolist()
        exact = max(
            float(margin(victim, {"text": torch.tensor([new])})) for new in allowed_swaps(encoder.tokenizer, encoder, ids)
        )
        every = float(margin(victim, Hotflip(flips=1, candidates=None)(victim)))
        few = float(margin(victim, Hotflip(flips=1, candidates=2)(victim)))
        clean = float(margin(victim, victim.clean))
        assert every == pytest.approx(max(exact, clean), abs=1e-5)
        assert few <= every + 1e-5
        assert every > clean + 1e-3


def test_flips_keep_to_their_budget_and_their_sort(pieces):
    model = model_of(pieces)
    tokenizer = model.encoders["text"].tokenizer
    victim = victim_of(model, ROWS, "tokens")
    clean, before = victim.clean["text"].clone(), margin(victim, victim.clean)
    found = Hotflip(flips=2)(victim)["text"]
    assert torch.equal(victim.clean["text"], clean)  # not in place
    changed = found != clean
    assert changed.sum(1).max() == 2
    assert (margin(victim, {"text": found}) >= before - 1e-6).all()
    assert (margin(victim, {"text": found}) > before).sum() >= 5
    known = vocabulary(tokenizer)
    for old, new in zip(clean[changed].tolist(), found[changed].tolist(), strict=True):
        assert known.sort[old] == known.sort[new] >= 0
        assert old not in tokenizer.all_special_ids
    process = model.encoders["text"].processor()
    for ids, real in zip(found, victim.batch.inputs["text"]["attention_mask"].bool(), strict=True):
        core = ids[real].tolist()
        assert process(tokenizer.decode(core[1:-1]))["input_ids"][0].tolist() == core


def test_the_estimate_is_the_first_order(pieces):
    """A small step towards another token's embedding moves the loss by as small a share of the estimate."""
    model = model_of(pieces).double()
    victim = victim_of(model, ROWS[:1], "tokens")
    encoder, ids = model.encoders["text"], victim.clean["text"]
    embedded = encoder.embed(ids).detach()
    slope = victim.slope({"text": embedded}, "ce")
    lexicon = _Lexicon.of(victim, "text")
    gains = {swap: gain for gain, swap in lexicon.best(0, ids[0], slope.gradients["text"][0], None)}
    token = encoder.tokenizer.convert_tokens_to_ids("bad")
    for place in (1, 2, 4):
        step = torch.zeros_like(embedded)
        step[0, place] = 1e-4 * (encoder.embed(torch.tensor(token)).detach() - embedded[0, place])
        moved = float(victim.slope({"text": embedded + step}, "ce").losses - slope.losses)
        assert 1e-4 * gains[place * len(lexicon.sort) + token] == pytest.approx(moved, rel=0.05, abs=1e-7)


def test_swaps_that_are_read_otherwise_are_left_out(pieces, monkeypatch):
    """ "films" is film + s; run + s would be read as "runs", which is a piece by itself."""
    from mmkt import queries

    model, tried = model_of(pieces), []
    tokenizer = model.encoders["text"].tokenizer

    def noted(victim, points, asked, real=queries.margins):
        tried.extend(tuple(tokenizer.convert_ids_to_tokens(query.value)) for query in asked)
        return real(victim, points, asked)

    monkeypatch.setattr(queries, "margins", noted)
    Hotflip(flips=1, candidates=None)(victim_of(model, [{"text": "the films"}], "tokens"))
    assert ("[CLS]", "the", "movie", "##s", "[SEP]") in tried
    assert ("[CLS]", "the", "run", "##s", "[SEP]") not in tried

    batch = batch_of(model, [{"text": "the films"}])  # run + s as it comes: what is no text's ids keeps to whole words
    batch.inputs["text"]["input_ids"][0, 2] = tokenizer.convert_tokens_to_ids("run")
    tried.clear()
    Hotflip(flips=1, candidates=None)(Victim(model, batch, "y", {"text": None}, moves="tokens"))
    assert {tokens[3] for tokens in tried} == {"##s"}
    assert ("[CLS]", "the", "movie", "##s", "[SEP]") in tried


def test_what_a_piece_is(pieces):
    tokenizer = model_of(pieces).encoders["text"].tokenizer
    known, place = vocabulary(tokenizer), tokenizer.get_vocab()
    sort = {token: int(known.sort[k]) for token, k in place.items()}
    assert sort["play"] == sort["film"] != sort["##ing"] == sort["##ed"] >= 0
    assert sort["好"] not in (sort["play"], sort["##ing"], -1)
    assert {sort[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[unused1]", "!", "7")} == {-1}
    assert known.whole[place["film"]]
    assert not known.whole[place["##ing"]]


@pytest.mark.parametrize("edits", [1, 3])
def test_letters_keep_to_their_budget(pieces, edits):
    victim = victim_of(model_of(pieces), ROWS, "texts")
    before = margin(victim, victim.clean)
    ways = ["swap", "delete", "insert", "neighbour", "alike"]
    found = Characters(edits=edits, ways=ways)(victim)
    far = [damerau(a, b) for a, b in zip(TEXTS, found["text"], strict=True)]
    assert max(far) == min(edits, max(far))
    assert max(far) >= 1
    after = margin(victim, found)
    assert (after >= before - 1e-6).all()
    assert (after > before + 1e-3).sum() >= 4
    assert Characters(edits=edits, ways=ways)(victim) == found  # drawn by the row, not by chance


def test_each_way_of_letters():
    one = {"swap": "iflm", "delete": "flm", "neighbour": "fulm", "alike": "fi1m"}
    attacks = {way: Characters(ways=[way], tries=None) for way in (*one, "insert")}
    word = SimpleNamespace(pieces=("film",), place=0)
    for way, attack in attacks.items():
        made = {edit[0] for edit in attack._drawn(word, None)}
        assert {damerau("film", new) for new in made} == {1}
        assert way == "insert" or one[way] in made
    assert "fgilm" in {edit[0] for edit in attacks["insert"]._drawn(word, None)}
    han = SimpleNamespace(pieces=("大", "己"), place=0)
    assert {0: "己", 1: "大"} in attacks["swap"]._drawn(han, None)
    assert {0: "太"} in attacks["alike"]._drawn(han, None)
    assert beside("a") == "sqz"
    assert beside("好") == ""
    assert "0" in alike("O")
    assert set(alike("已")) == set("己巳")


def test_a_character_changes_places_once(pieces):
    """Swaps are of characters apart from one another, else two of them would be more than two edits."""
    model, moved = model_of(pieces), 0
    for k, text in enumerate(["好坏电影己已大太", "太大已己影电坏好", "电好影坏大己太已"]):
        found = Characters(edits=8, ways=["swap"])(victim_of(model, [{"text": text}], "texts", first=k))["text"][0]
        place = 0
        while place < len(text):
            if found[place] == text[place]:
                place += 1
                continue
            assert found[place : place + 2] == text[place : place + 2][::-1]
            place, moved = place + 2, moved + 1
    assert moved >= 3


def test_homophones():
    pytest.importorskip("pypinyin", reason="the extra chinese is not installed")
    from mmkt.layers.letters import homophones

    assert "事" in homophones("是")
    assert "是" not in homophones("是")
    assert "十" not in homophones("是")  # another tone
    assert homophones("x") == ""


def test_homophones_say_what_to_install(pieces, monkeypatch):
    from mmkt.layers import letters

    letters._sounds.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pypinyin", None)
    with pytest.raises(ValueError, match=r"pip install 'mmkt\[chinese\]'"):
        Characters()(victim_of(model_of(pieces), [{"text": "好电影"}], "texts"))
    Characters()(victim_of(model_of(pieces), [{"text": "the film"}], "texts"))  # nothing to sound alike


def test_words_of_a_thesaurus(pieces, tmp_path):
    file = tmp_path / "words.tsv"
    file.write_text("film\tmovie\trun\ngreat\tgood\tbad\n电影\t大\n好\t坏\n", encoding="utf-8")
    victim = victim_of(model_of(pieces), [*ROWS, {"text": "Great film"}], "texts")
    before = margin(victim, victim.clean)
    known, changed = read(file), 0
    found = Synonyms(edits=1, thesaurus=str(file))(victim)
    for old, new in zip(victim.clean["text"], found["text"], strict=True):
        was, now = (split(t, known) for t in (old, new))
        other = [(a, b) for a, b in zip(was, now, strict=True) if a != b] if len(was) == len(now) else [("电影", "大")]
        assert len(other) <= 1
        assert all(b.lower() in known[a.lower()] and a[0].isupper() == b[0].isupper() for a, b in other)
        changed += len(other)
    after = margin(victim, found)
    assert changed >= 3
    assert (after >= before - 1e-6).all()
    assert (after > before + 1e-3).any()


def test_one_substitution_of_the_most_important_word(pieces, tmp_path):
    """One row by hand: words ranked by what their deletion does, then the worst alternative of the first that makes it worse."""
    file = tmp_path / "words.json"
    options = {"film": ["movie", "run", "play"], "great": ["good", "bad"], "was": ["a"], "the": ["a"]}
    file.write_text(json.dumps(options))
    victim = victim_of(model_of(pieces), [{"text": "the film was great"}], "texts")
    words = ["the", "film", "was", "great"]
    clean = float(margin(victim, victim.clean))
    hurt = {k: float(margin(victim, {"text": [" ".join(w if j != k else "" for j, w in enumerate(words))]})) for k in range(4)}
    expected = "the film was great"
    for k in sorted(hurt, key=lambda k: -hurt[k]):
        new = [" ".join(w if j != k else other for j, w in enumerate(words)) for other in options[words[k]]]
        values = [float(margin(victim, {"text": [text]})) for text in new]
        if max(values) > clean:
            expected = new[values.index(max(values))]
            break
    assert Synonyms(edits=1, thesaurus=str(file))(victim)["text"] == [expected] != ["the film was great"]


def test_neighbours_by_hand(pieces):
    encoder = model_of(pieces).encoders["text"]
    near = Neighbours(encoder, 3, -1.0).of("film")
    place = encoder.tokenizer.get_vocab()
    rows = torch.nn.functional.normalize(encoder.body.get_input_embeddings().weight.detach(), dim=1)
    words = [w for w in [*STARTS, *"abcdefghijklmnopqrstuvwxyz"] if w not in ("film",)]
    ranked = sorted(words, key=lambda w: -float(rows[place[w]] @ rows[place["film"]]))
    assert near == ranked[:3]
    assert Neighbours(encoder, 3, 0.999).of("film") == []
    assert Neighbours(encoder, 3, -1.0).of("playing") == []
    found = Synonyms(edits=2, cosine=-1.0)(victim := victim_of(model_of(pieces), ROWS, "texts"))
    assert (margin(victim, found) >= margin(victim, victim.clean) - 1e-6).all()
    assert found["text"] != TEXTS


def test_pieces_of_text():
    assert split("It's 好电影, ok", {"电影"}) == ["It", "'", "s", " ", "好", "电影", ", ", "ok"]
    assert "".join(split("a\n b—c 7好")) == "a\n b—c 7好"
    assert [cased("movie", like) for like in ("Film", "FILM", "film", "I")] == ["Movie", "MOVIE", "movie", "Movie"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "film movie\n", "line 1 of"),
        ("a.json", '["film"]', "not an object"),
        ("a.json", '{"film": "movie"}', "not a list of words"),
        ("a.json", "{", "is no JSON"),
        ("a.tsv", "\n", "has no word"),
        (None, "", "there is no file"),
    ],
)
def test_thesauruses_that_are_refused(tmp_path, name, text, words):
    file = tmp_path / (name or "none.tsv")
    if name:
        file.write_text(text)
    with pytest.raises(ValueError, match=words):
        Synonyms(thesaurus=str(file))


SEVERAL = [{"text": ["the film", "was great"]}, {}, {"text": "a bad movie"}, {"text": ["good", "playing the film", "a run"]}]


@pytest.mark.parametrize("attack", [Hotflip(flips=2), Characters(edits=2, tries=8), Synonyms(edits=2, cosine=-1.0)])
def test_a_row_is_attacked_the_same_alone(pieces, attack):
    """Also where a row has several texts, whose budget is one, or none."""
    model = model_of(pieces)
    rows = ROWS[:4] + SEVERAL
    together = victim_of(model, rows, attack.moves)
    found, before = attack(together), margin(together, together.clean)
    assert (margin(together, found) > before + 1e-4).sum() >= 5
    place = 0
    for k, row in enumerate(rows):
        if not row:
            continue
        alone = victim_of(model, [row], attack.moves, first=k)
        own = attack(alone)["text"]
        count = len(own)
        theirs = found["text"][place : place + count]
        place += count
        if attack.moves == "texts":
            assert own == theirs
            assert sum(a != b for a, b in zip(own, alone.clean["text"], strict=True)) <= 2
        else:
            assert torch.equal(own, theirs[:, : own.shape[1]])
            assert (own != alone.clean["text"]).sum() <= 2


def test_texts_answer_as_their_ids(pieces):
    model = model_of(pieces)
    victim = victim_of(model, ROWS + SEVERAL, "texts")
    with torch.no_grad():
        clean = model(victim.batch).logits["y"]
    torch.testing.assert_close(victim.logits(victim.clean), clean)
    other = {"text": ["a bad run", *victim.clean["text"][1:]]}
    assert not torch.allclose(victim.logits(other)[0], clean[0])
    worst = Worst(victim)
    worst.offer(victim.clean, clean)
    worst.offer(other, victim.logits(other))
    assert worst.points["text"][1:] == victim.clean["text"][1:]
    assert worst.margin[0] == torch.maximum(margin(victim, other), margin(victim, victim.clean))[0]


def test_rows_that_are_wrong_already_stay(pieces):
    model = model_of(pieces)
    batch = batch_of(model, ROWS)
    batch = batch._replace(labels={"y": (batch.labels["y"] + 1) % 3})
    victim = Victim(model, batch, "y", {"text": None}, moves="texts", texts=strings(ROWS))
    assert Synonyms(cosine=-1.0)(victim)["text"] == TEXTS
    batch.labelled["y"] = torch.zeros(len(TEXTS), dtype=torch.bool)
    victim = Victim(model, batch, "y", {"text": None}, moves="tokens")
    assert torch.equal(Hotflip()(victim)["text"], victim.clean["text"])


THREE = [
    {"text": TEXTS[k % 6], "title": TEXTS[(k + 1) % 6], "note": TEXTS[(k + 2) % 6]}
    if k % 3
    else {"text": TEXTS[k % 6], "note": "bad"}
    for k in range(9)
] + [{"title": "a film"}]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_worst_modalities_to_miss(pieces, most):
    """Brute force: each row by itself, without each choice of its cells, through the whole model."""
    model = model_of(pieces, ("text", "title", "note"), seed=3)
    batch = batch_of(model, THREE)
    victim = Victim(model, batch, "y", dict.fromkeys(model.modalities), moves="presence")
    found = Absent(most=most)(victim)
    got, changed = margin(victim, found), 0
    for k, row in enumerate(THREE):
        values = []
        for count in range(min(most, len(row) - 1) + 1):
            for gone in itertools.combinations(row, count):
                one = batch_of(model, [{m: c for m, c in row.items() if m not in gone}])
                one = one._replace(labels={"y": batch.labels["y"][k : k + 1]})
                with torch.no_grad():
                    values.append(float(victim.goal._replace(labels=one.labels["y"])._margin(model(one).logits["y"])))
        assert float(got[k]) == pytest.approx(max(values), abs=1e-5)
        kept = [m for m in row if found[m][k]]
        assert kept
        assert len(row) - len(kept) <= most
        changed += len(row) != len(kept)
    assert changed >= 5
    assert all((found[m] <= batch.present[m]).all() for m in found)


def test_features_go_missing_too(pieces):
    model = model_of(pieces, ("text", "title"))
    batch = batch_of(model, [{"text": "the film", "title": "a run"}, {"text": "bad"}])
    with torch.no_grad():
        held = {"text": model.encode(batch)["text"]}
    victim = Victim(model, batch._replace(inputs=batch.inputs | held), "y", {"text": None}, moves="presence")
    gone = victim.logits({"text": torch.tensor([False, True])})
    with torch.no_grad():
        expected = model(batch_of(model, [{"title": "a run"}, {"text": "bad"}])).logits["y"]
    torch.testing.assert_close(gone, expected)
    assert set(Absent(most=2)(victim)) == {"text"}


def test_refusals(pieces):
    model = model_of(pieces)
    batch = batch_of(model, ROWS)
    ask = {"text": None}
    for threats, moves, words in [
        ({"text": Threat(eps=0.1)}, "tokens", "counts its edits"),
        (ask, "numbers", "how far numbers may move"),
        (ask, "texts", "needs the strings"),
        (ask, "presence", "only modality"),
        ({"texts": None}, "tokens", "did you mean 'text'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Victim(model, batch, "y", threats, moves=moves)
    with pytest.raises(ConfigError, match=r"batch's 6 items, found 1"):
        Victim(model, batch, "y", ask, moves="texts", texts={"text": ["one"]})
    with pytest.raises(ConfigError, match="pairs of sentences"):
        Victim(model_of(pieces, pairs=True), batch, "y", ask, moves="texts", texts=strings(ROWS))
    wide = model_of(pieces, windows=2, max_tokens=6)
    with pytest.raises(ConfigError, match="set windows: 1"):
        Victim(wide, batch_of(wide, ROWS), "y", ask, moves="tokens")
    held = batch._replace(inputs={"text": Encoded.of(torch.randn(6, 32))})
    with pytest.raises(ConfigError, match=r"leave out data\.features"):
        Victim(model, held, "y", ask, moves="tokens")
    victim = victim_of(model, ROWS, "texts")
    del model.encoders["text"].tokenizer
    with pytest.raises(ConfigError, match="give a thesaurus"):
        Synonyms()(victim)
    with pytest.raises(ConfigError, match="has no tokenizer: take an attack of texts"):
        Victim(model, batch, "y", ask, moves="tokens")


def test_letters_over_windows(pieces):
    model = model_of(pieces, windows=3, max_tokens=5)
    victim = victim_of(model, ROWS, "texts")
    found = Characters(edits=2, tries=6, ways=["delete", "swap"])(victim)
    assert (margin(victim, found) > margin(victim, victim.clean)).sum() >= 3


def test_texts_of_a_feed(trained):
    model = Model.from_pretrained(trained)
    manifest = manifests.read(model.config.data.manifest)
    feed = Feed(manifest, model, model.config.data, 0)
    batch = next(feed.evaluation(feed.rows("test")))
    texts = texts_of(feed, batch, ["text"])
    assert texts["text"] == [manifest.table["text"][k].as_py() for k in batch.row.tolist()]
    victim = Victim(model, batch, "kind", {"text": None}, moves="texts", texts=texts)
    torch.testing.assert_close(victim.logits(victim.clean), victim.logits({}), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="of image; those of text: text"):
        texts_of(feed, batch, ["image"])
