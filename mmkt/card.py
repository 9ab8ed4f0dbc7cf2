"""The model card that a run writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mmkt.model import Model, parameter_count
from mmkt.types import Row


def model_card(model: Model, rows: Sequence[Row], environment: Mapping[str, Any]) -> str:
    """Markdown with the Hub's front matter: what the model is, what it was trained on, its figures.

    Args:
        model: with its config.
        rows: figures of the best checkpoint.
        environment: what ``run.environment`` gave.
    """
    config = model.config
    assert config is not None
    front = {"library_name": "mmkt", "tags": ["multimodal", *model.modalities]}
    figures = [row for row in rows if row.group == "all"]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {config.run}", ""]
    lines += [
        f"{', '.join(model.modalities)} → {', '.join(model.heads) or 'shared space'}, fused by `{config.model.fusion['name']}`.",
        "",
    ]
    lines += ["| part | settings | parameters |", "|---|---|---|"]
    for m, spec in config.model.encoders.items():
        lines.append(f"| encoder `{m}` | {_words(spec)} | {parameter_count(model.encoders[m]):,} |")
    lines.append(f"| fusion | {_words(config.model.fusion)} | {parameter_count(model.fusion):,} |")
    for task, spec in config.model.heads.items():
        lines.append(f"| head `{task}` | {_words(spec)} | {parameter_count(model.heads[task]):,} |")
    source = f" (source {_words(config.data.source)})" if config.data.source else ""
    lines += [
        "",
        f"Data: `{config.data.manifest}`{source}, fingerprint `{str(environment.get('data', ''))[:16]}`. Seed {config.seed}.",
    ]
    if figures:
        lines += ["", "| split | task | metric | value | 95 % interval | rows |", "|---|---|---|---|---|---|"]
        lines += [f"| {r.split} | {r.task} | {r.metric} | {r.value:.4f} | {r.low:.4f} to {r.high:.4f} | {r.n} |" for r in figures]
        lines += ["", "Intervals: bootstrap over rows; they don't hold the variance between seeds."]
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    lines += [
        "",
        "```python",
        "import mmkt",
        'model = mmkt.load("this folder")',
        "model.predict([{…}])  # " + ", ".join(model.modalities),
        "```",
    ]
    return "\n".join([*lines, "", f"Made with {versions}.", ""])


def _words(spec: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key}: {value}" if key != "name" else f"`{value}`" for key, value in (spec or {}).items())
