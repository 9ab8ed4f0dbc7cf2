"""All nine points for every fusion of the room; deliberately wrong ones, each caught by the point meant for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import call, refused

from mmkt.conformance import Broken, Case, examine, find
from mmkt.conformance.points import POINTS
from mmkt.conformance.processes import alone_and_together
from mmkt.conformance.tasks import solves
from mmkt.parts import Parts

FUSIONS = sorted(Parts().files("fusion"))
WRONG = Path(__file__).parent / "wrong"


@pytest.fixture(scope="module", autouse=True)
def fresh_dynamo():
    """Dynamo keeps what it compiled: hundreds of graphs of one walk."""
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_keeps_every_point_of_one_process(name):
    case = find("fusion", name)
    for point, check in POINTS.items():
        for variant in case.variants() if point != 6 else [case]:
            try:
                words = check(variant)
            except Broken as broken:
                pytest.fail(f"point {point}, {variant.about}: {broken}")
            assert not words or point == 3  # a fusion of ours declares everything


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_solves_what_it_can_and_fails_what_it_cannot(name):
    assert solves(find("fusion", name))


def wrong(name: str) -> Case:
    return find("fusion", name, plugins=[str(WRONG)])


@pytest.fixture(scope="module")
def processes() -> dict[str, str | None]:
    """One job of two processes for all of them, the wrong ones too."""
    return alone_and_together(
        [*(find("fusion", name) for name in FUSIONS), *(wrong(n) for n in ("unused_weight", "local_balance"))]
    )


def test_two_processes_give_what_one_gives(processes):
    assert {name: fault for name, fault in processes.items() if fault and name in FUSIONS} == {}
    assert len(processes) == len(FUSIONS) + 2


def test_what_two_processes_would_not_give_is_found(processes):
    assert "spare.weight receives no gradient in a process" in processes["unused_weight"]
    assert "in two processes" in processes["local_balance"]


@pytest.mark.parametrize(
    ("name", "point", "says"),
    [
        ("listed_factors", 1, "a tensor (17, 16) that trains but is no registered parameter"),
        ("unused_weight", 1, "spare.weight receives no gradient"),
        ("mixed_rows", 2, "row 0 in a batch of one"),
        ("blind_to_order", 3, "declares that the order of the modalities matters"),
        ("secret_order", 3, "declares symmetric"),
        ("read_padding", 4, "with other tokens in padding"),
        ("silent_zeros", 5, "silent zeros?"),
        ("reads_stand_in", 5, "it declares exact, but"),
        ("branches", 6, "torch.compile needs one whole graph"),
        ("boastful", 8, "params = 'D**2' is 256 with D = 16, M = 3, L = 5; it has 272"),
    ],
)
def test_a_wrong_one_is_caught_by_its_point(name, point, says):
    case, caught = wrong(name), {}
    for number, check in POINTS.items():
        try:
            check(case)
        except Broken as broken:
            caught[number] = str(broken)
    assert says in caught.pop(point)
    # by the same fault: weights in a list don't come along, a missing one's padding is read, mixing rows takes products
    allowed = {"listed_factors": {3, 8}, "read_padding": {5}, "mixed_rows": {5, 8}}.get(name, set())
    assert set(caught) <= allowed, caught


def test_interactions_that_are_declared_and_not_there_are_found():
    with pytest.raises(Broken, match=r"declares to model interactions, but reaches 0\.\d+ on XOR"):
        solves(wrong("boastful"))


def test_check_part_of_a_plugins_fusion(capfd, monkeypatch, tmp_path):
    lab = tmp_path / "my_lab/fusion"
    lab.mkdir(parents=True)
    (lab / "my_fusion.py").write_text((WRONG / "fusion/silent_zeros.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("mmkt.conformance.alone_and_together", lambda cases: {"my_fusion": None})  # one job is enough, above
    status, out, _ = call(capfd, "check-part", "fusion", "my_lab.my_fusion", "--json")
    findings = json.loads(out)["findings"]
    assert status == 1
    assert [f["point"] for f in findings if f["status"] == "broken"] == [5]
    assert len(findings) == 9
    assert "there is no 'my_fussion'" in refused(capfd, "check-part", "fusion", "my_lab.my_fussion")
    assert "fusion.dropout: should be less than 1" in refused(capfd, "check-part", "fusion", "gated", "dropout=2")


def test_a_fusion_that_cannot_be_built_is_broken_in_words():
    case = find("fusion", "merged", ["heads=5"])
    found = examine(case, points=(1, 6, 8))
    assert [f.status for f in found] == ["broken"] * 3
    assert "the width 16 does not divide by 5 heads" in found[0].words


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated", "merged", "lowrank"])
def test_inductor_gives_the_eager_answer(name):
    from mmkt.conformance.cases import rows, same, together

    whole = find("fusion", name).build().eval()
    parts = rows(tuple(whole.space.modalities))
    with torch.no_grad():
        eager = together(*whole.fuse(parts, 8))
        whole.fusion = torch.compile(whole.fusion, fullgraph=True)
        same(eager, together(*whole.fuse(parts, 8)), "compiled by inductor")
