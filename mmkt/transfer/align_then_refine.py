"""Align the embedder first, then fine-tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mmkt.transfer._layerwise import rates
from mmkt.types import Phase, Transfer, Until

if TYPE_CHECKING:
    from mmkt.learner import Learner


class AlignThenRefine(Transfer):
    """ORCA (Shen et al., 2023): the embedder of a new modality learns to give what the body knows, then everything trains.

    The first phase minimises the objective ``match`` alone. A lower distance is not a better start (García-de-Herreros et al.,
    2024), so it ends early; the steps it spares are the second phase's.
    """

    def __init__(
        self,
        *,
        objective: str = "match",
        embedder: list[str] | None = None,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.3,
        patience: Annotated[int, Field(ge=1)] = 3,
        drop: Annotated[float, Field(ge=0, lt=1)] = 0.01,
        lr: dict[str, Annotated[float, Field(gt=0)]] = {},  # noqa: B006 - never changed
        layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ):
        """Remember the settings.

        Args:
            objective: the name of the objective that aligns.
            embedder: patterns of what trains on it; by default the first stage of the encoder of the objective's modality.
            share: of the steps that align, at the most.
            patience: logs in a row without a lower loss after which aligning ends.
            drop: by which share a loss has to be lower to count.
            lr: pattern → factor on ``train.lr``, in the second phase.
            layer_decay: as in ``full``, in the second phase.
        """
        self.objective, self.embedder, self.share = objective, embedder, share
        self.until, self.lr, self.layer_decay = Until(patience, drop), lr, layer_decay

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """Two: align, refine.

        Raises:
            ValueError: there is no such objective, no other one, or not enough steps.
        """
        others = [name for name in learner.objectives if name != self.objective]
        if self.objective not in learner.objectives or not others:
            found = ", ".join(learner.objectives)
            raise ValueError(
                f"objective: {self.objective!r} has to be one of the objectives, and not the only one; found {found}"
            )
        if steps < 2:
            raise ValueError(f"two phases need two steps or more, found {steps}: raise train.steps")
        first = min(steps - 1, max(1, round(self.share * steps)))
        refine = Phase("refine", steps - first, lr=rates(learner, self.layer_decay, self.lr), objectives=others)
        return [Phase("align", first, self._embedder(learner), objectives=[self.objective], until=self.until), refine]

    def _embedder(self, learner: Learner) -> list[str]:
        if self.embedder is not None:
            return self.embedder
        m = getattr(learner.objectives[self.objective], "modality", None)
        if m is None:
            raise ValueError(f"embedder: the objective {self.objective!r} is of no one modality: say which parameters align")
        return [f"encoders.{m}.{name}" for name in learner.model.encoders[m].stages()[0]]
