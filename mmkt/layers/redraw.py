"""A control for transfer: weights that share nothing with the pretrained ones but their statistics."""

from __future__ import annotations

import torch
from torch import nn


def redraw(module: nn.Module) -> None:
    """Draw every parameter anew from a normal distribution with its own mean and deviation, in place.

    What pretraining is worth beyond the scale of its weights (Lu et al., 2021, "statistics only"). Running statistics of
    batch norms start afresh: they are of the activations of weights that are gone.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            deviation = float(parameter.std(correction=0))
            parameter.normal_(float(parameter.mean()), deviation)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            layer.reset_running_stats()
