"""The model card that a run writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    figures = [row for row in rows if row.group == "all"]
    lines = ["---", _front(model, figures), "---", "", f"# {config.run}", ""]
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


def _front(model: Model, figures: Sequence[Row]) -> str:
    """The header that the Hub reads (model-card specification): licence, language, data, and figures as ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    config = model.config
    assert config is not None
    card, source = config.card, config.data.source or {}
    name = source.get("name") or Path(config.data.manifest).parent.name or "manifest"
    results = [
        EvalResult(
            task_type=config.model.heads[row.task]["name"],
            task_name=row.task,
            dataset_type=card.datasets[0] if card.datasets else name,
            dataset_name=name,
            dataset_split=row.split,
            metric_type=row.metric,
            metric_value=row.value,
        )
        for row in figures
        if math.isfinite(row.value)
    ]
    return ModelCardData(
        model_name=Path(config.run).name,
        library_name="mmkt",
        license=card.license,
        language=card.language or None,
        datasets=card.datasets or None,
        tags=["multimodal", *model.modalities, *card.tags],
        metrics=sorted({row.metric for row in figures}) or None,
        eval_results=results or None,
    ).to_yaml()


def _words(spec: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key}: {value}" if key != "name" else f"`{value}`" for key, value in (spec or {}).items())
