"""How many operations a second a GPU can do at most: what model FLOPs utilisation (MFU) is a share of."""

from __future__ import annotations

import re

import torch
from accelerate import Accelerator

# 10¹² operations a second of dense matrix products, by a word of the device's name and the kind of number. From NVIDIA's data
# sheets of each card (those of sparse matrices are twice as high). The first line whose words are all in the name counts.
PEAKS: dict[tuple[str, ...], dict[str, float]] = {
    ("H100", "PCIe"): {"fp32": 51, "tf32": 378, "bf16": 756, "fp16": 756},
    ("H100", "NVL"): {"fp32": 60, "tf32": 417, "bf16": 835, "fp16": 835},
    ("H100",): {"fp32": 67, "tf32": 494, "bf16": 989, "fp16": 989},
    ("H200", "NVL"): {"fp32": 60, "tf32": 417, "bf16": 835, "fp16": 835},
    ("H200",): {"fp32": 67, "tf32": 494, "bf16": 989, "fp16": 989},
    ("GH200",): {"fp32": 67, "tf32": 494, "bf16": 989, "fp16": 989},
    ("A100",): {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312},
    ("L40S",): {"fp32": 91.6, "tf32": 183, "bf16": 362, "fp16": 362},
    ("L4",): {"fp32": 30.3, "tf32": 60, "bf16": 121, "fp16": 121},
    ("A10",): {"fp32": 31.2, "tf32": 62.5, "bf16": 125, "fp16": 125},
    ("T4",): {"fp32": 8.1, "fp16": 65},
}


def peak(device: str, number: str) -> float | None:
    """Operations a second of a card; None of one that is not in the table.

    Args:
        device: its name, as torch says it.
        number: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
    """
    words = set(re.split(r"[\s-]+", device))
    found = next((speeds for names, speeds in PEAKS.items() if words.issuperset(names)), {})
    return found[number] * 1e12 if number in found else None


def peak_of(accelerator: Accelerator) -> float | None:
    """Of the card that this process trains on, in the precision that it does; None on a CPU."""
    if accelerator.device.type != "cuda":
        return None
    number = accelerator.mixed_precision
    if number == "no":
        number = "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return peak(torch.cuda.get_device_name(accelerator.device), number)
