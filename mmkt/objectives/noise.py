"""Cross-entropy of rows under Gaussian noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor

from mmkt import adversary
from mmkt.crafting import Crafting
from mmkt.parts import ConfigError, nearest
from mmkt.threat import gaussian
from mmkt.types import Batch, Outputs, Phase, Resources

if TYPE_CHECKING:
    from mmkt.learner import Learner
    from mmkt.model import Model


class Noise(Crafting):
    """Training for randomised smoothing (Cohen et al., 2019): CE(f(x + σ ⊙ ε), y), ε normal and drawn anew, one σ a modality.

    It goes in the place of ``classify``: noisy rows take the clean ones' place before the forward, unlabelled ones too, so that
    every objective of the phase sees them. Smooth with the same σ (``evaluate.smoothing``). What is drawn depends on the seed,
    the step and the row alone. In evaluation nothing is added.
    """

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str],
        outputs: Mapping[str, int],
        domains: Sequence[str],
        *,
        task: str,
        sigma: dict[str, float],
        share: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ):
        """Remember the settings.

        Args:
            dim: unused.
            modalities: of the model.
            outputs: unused.
            domains: unused.
            task: a classification.
            sigma: by modality, the standard deviation, in the units of its raw numbers (a text's are token embeddings).
            share: of the rows that get noise in a step, drawn anew; the others stay as they are.

        Raises:
            ValueError: noise of no size, or of a modality that the model has not.
        """
        unknown = [m for m in sigma if m not in modalities]
        if unknown:
            found = f"there is no modality {unknown[0]!r}{nearest(unknown[0], modalities)}"
            raise ValueError(f"sigma.{unknown[0]}: {found}; the model has {', '.join(modalities)}")
        super().__init__(adversary.Adversary(task, gaussian(sigma), modalities, share=share, labelled=False))

    def prepare(self, learner: Learner, resources: Resources) -> None:
        """Draw the seed.

        Raises:
            ConfigError: the task is no classification, or a modality has no raw numbers.
        """
        try:
            super().prepare(learner, resources)
        except ConfigError as error:
            raise ConfigError([(path.replace("threats", "sigma"), words) for path, words in error.problems]) from error

    def begin(self, learner: Learner, phase: Phase) -> None:
        """Before a phase.

        Raises:
            ValueError: the model is sharded, or another objective would craft from rows that are no longer clean.
        """
        super().begin(learner, phase)
        others = self.others(learner)
        if others:
            raise ValueError(f"noise: {others[0]} crafts from the same rows, which have noise already: train with one of the two")

    def craft(self, learner: Learner, batch: Batch) -> Batch:
        """Add the noise."""
        victim = self.adversary.victim(learner.model, batch)
        points = {m: ball.gaussian(victim.seed, 0) for m, ball in victim.balls.items()}
        return adversary.put(learner.model, batch, adversary.moved(victim, points))

    def forward(self, model: Model, batch: Batch, outputs: Outputs) -> Tensor:
        """Sum over the labelled rows, ()."""
        return self.supervised(outputs.logits[self.task], batch).sum()
