"""Learning rates by depth, and what lies on top of the encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmkt.learner import Learner


def rates(learner: Learner, decay: float, lr: Mapping[str, float]) -> dict[str, float]:
    """Factors by parameter name: each stage of an encoder has ``decay`` times the rate of the one above it.

    The top stage has the factor 1 (Howard and Ruder, 2018; ELECTRA, Clark et al., 2020).

    Args:
        learner: whose encoders say their stages.
        decay: 1 leaves ``lr`` as it is.
        lr: pattern → factor, multiplied with the stage's.
    """
    if decay == 1:
        return dict(lr)
    found = dict(lr)
    for m, encoder in learner.model.encoders.items():
        stages = encoder.stages()
        for k, names in enumerate(stages):
            for name in names:
                whole = f"encoders.{m}.{name}"
                found[whole] = decay ** (len(stages) - 1 - k) * learner.factor(whole, lr)
    return found
