"""A module imports only from lower floors, and rooms on one floor never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent / "mmkt"
FLOORS = [
    ["types", "parts", "distributed", "doctor", "workshop", "generators", "modes"],
    ["config", "catalogue", "launcher", "arguments"],
    ["threat"],
    ["experiment", "schema", "pretrained", "checkpoint"],
    ["layers", "push", "kept", "ball", "goal", "raw"],
    ["victim"],
    ["queries", "adversary", "overfitting", "worst"],
    ["substitution", "crafting"],
    [
        "study",
        "search_file",
        "measures",
        "games",
        "calibration",
        "data",
        "encoders",
        "fusion",
        "heads",
        "objectives",
        "adapters",
        "transfer",
        "averages",
        "metrics",
        "corruptions",
        "attacks",
    ],
    ["space", "score", "report", "ranking", "plots"],
    [
        "model",
        "feature_store",
        "page",
        "vectors",
        "subsets",
        "statistics",
        "ranks",
        "stored",
        "missing",
        "robustness",
        "robust_accuracy",
        "certified",
    ],
    ["feature_maker"],
    ["feature_cache"],
    ["retrieval", "zero_shot", "few_shot", "prompts", "preparation", "feed", "learner", "card", "start"],
    ["perturbed", "surrogate"],
    [
        "optim",
        "averaging",
        "run",
        "resume",
        "resting",
        "predictions",
        "siege",
        "smoothing",
        "stop",
        "sharding",
        "copies",
        "peaks",
        "probes",
        "texts",
        "profiling",
    ],
    [
        "asked",
        "exhibit",
        "attacked",
        "selection",
        "telemetry",
        "resources",
        "compare",
        "dry_run",
        "batch_size",
        "planning",
        "runs",
        "conformance",
    ],
    ["across", "evaluation_plots"],
    ["evaluation_page"],
    ["train", "evaluate"],
    ["launch", "ensemble"],
    ["folds", "find_lr", "soup", "studies", "embed", "calibrate", "tokenizer", "candidates", "verify"],
    ["transferability"],
    ["study_commands", "tuning_commands"],
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(tree: ast.Module) -> set[str]:
    """Rooms of mmkt that a module imports, names under TYPE_CHECKING left out."""
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in guarded or not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mmkt"):
            continue
        parts = node.module.split(".")
        found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names if alias.name != "__version__"}
    return found


def wrong(room: str, tree: ast.Module) -> list[str]:
    return [other for other in imports(tree) if other != room and FLOOR[other] >= FLOOR[room]]


@pytest.mark.parametrize("file", sorted(HOME.rglob("*.py")), ids=lambda f: str(f.relative_to(HOME)))
def test_floors(file):
    room = file.relative_to(HOME).parts[0].removesuffix(".py")
    if room != "__init__":
        assert not wrong(room, ast.parse(file.read_text()))


def test_the_check_can_fail():
    assert wrong("fusion", ast.parse("from mmkt.heads.classify import Classify")) == ["heads"]
    assert wrong("layers", ast.parse("def f():\n    from mmkt import train")) == ["train"]
    assert not wrong("fusion", ast.parse("if TYPE_CHECKING:\n    from mmkt.model import Model"))
