"""Randomised smoothing: what a model says most often under Gaussian noise, and how far nothing can change that."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmkt import distributed
from mmkt.certified import ABSTAINS, Certificates, Smoothing, lower_bound, radius
from mmkt.experiment import Smoothed
from mmkt.feed import Feed
from mmkt.model import Model
from mmkt.parts import ConfigError
from mmkt.perturbed import Words, task_and_rows
from mmkt.threat import gaussian
from mmkt.victim import Victim

WORDS = Words("evaluate.smoothing", "sigma", "what is said most often is a class", "no noise")


def plan(model: Model, feed: Feed, rows: np.ndarray, settings: Smoothed, seed: int) -> Smoothing:
    """What the settings ask for, with everything refused that cannot be.

    Raises:
        ConfigError: it cannot.
    """
    sigma = gaussian(settings.sigma, f"{WORDS.where}.{WORDS.limits}")
    task, some = task_and_rows(model, feed, rows, sigma, settings, seed, WORDS)
    least = math.floor(math.log(settings.alpha) / math.log(0.5)) + 1
    if settings.samples < least:
        words = f"{settings.samples} can show no class's half at alpha={settings.alpha:g}: give {least} or more, 1000 is usual"
        raise ConfigError([(f"{WORDS.where}.samples", words)])
    draws = settings.selection, settings.samples
    return Smoothing(task, some, settings.sigma, *draws, settings.alpha, settings.radii, seed)


def certify(
    model: Model, feed: Feed, how: Smoothing, device: torch.device, advance: Callable[[int], object] = id
) -> Certificates:
    """Cohen et al.'s CERTIFY: a class from some draws, a lower bound of its probability from others.

    What is drawn depends on the seed and the row alone, whatever its batch.

    Args:
        model: on its device, not sharded; left as it was.
        feed: of the rows.
        how: with what noise, and how often.
        device: of the model.
        advance: is told how many rows of this process had another draw.

    Returns:
        On every process, the whole.

    Raises:
        ConfigError: noise of no size, a modality that has no raw numbers, a task without classes, or features in their place.
    """
    threats, found = gaussian(how.sigma), []
    for batch in feed.evaluation(how.rows):
        batch = batch.to(device)
        victim = Victim(model, batch, how.task, threats, seed=how.seed)
        plain = victim.logits(victim.clean).argmax(1)
        said = counts(victim, 0, how.selection, advance).argmax(1)
        own = counts(victim, how.selection, how.samples, advance).gather(1, said[:, None])[:, 0].cpu().numpy()
        far = radius(lower_bound(own, how.samples, how.alpha))
        answer = np.where(far > 0, said.cpu().numpy(), ABSTAINS)
        row, label = batch.row.cpu().numpy(), batch.labels[how.task].cpu().numpy()
        found.append((row, Certificates(label, plain.cpu().numpy(), answer, far)))
    gathered = [part for parts in distributed.everyone(found) for part in parts]
    order = np.argsort(np.concatenate([rows for rows, _ in gathered]), kind="stable")
    return Certificates(*(np.concatenate(x)[order] for x in zip(*(part for _, part in gathered), strict=True)))


def counts(victim: Victim, first: int, number: int, advance: Callable[[int], object] = id) -> Tensor:
    """How often each class is said in the draws ``first`` … ``first + number``, (B, C) long."""
    found: Tensor | None = None
    for draw in range(first, first + number):
        logits = victim.logits({m: ball.gaussian(victim.seed, draw) for m, ball in victim.balls.items()})
        said = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        found = said if found is None else found + said
        advance(victim.batch.size)
    assert found is not None, "one draw or more"
    return found
