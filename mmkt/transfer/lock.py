"""Locked towers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mmkt.types import Phase, Transfer

if TYPE_CHECKING:
    from mmkt.learner import Learner


class Lock(Transfer):
    """Locked tuning (LiT, Zhai et al., 2022): some towers stay as they are, the others learn to fit them.

    It is meant for the objective ``align``; in the paper the picture's tower is locked, here usually the text's.
    """

    def __init__(
        self,
        *,
        towers: Annotated[list[str], Field(min_length=1)],
        projection: bool = True,
        lr: dict[str, Annotated[float, Field(gt=0)]] = {},  # noqa: B006 - never changed
    ):
        """Remember the settings.

        Args:
            towers: modalities whose encoder is locked.
            projection: a locked tower's projection into the shared space trains; False locks it too, which is the paper's
                setting where the tower's own vectors are the space.
            lr: pattern → factor on ``train.lr``.
        """
        self.towers, self.projection, self.lr = towers, projection, lr

    def phases(self, learner: Learner, steps: int) -> list[Phase]:
        """One.

        Raises:
            ValueError: a tower is no modality of the model, or none is left to train.
        """
        known = learner.model.modalities
        for m in self.towers:
            if m not in known:
                raise ValueError(f"towers: there is no modality {m!r}; allowed: {', '.join(known)}")
        if set(self.towers) == set(known):
            raise ValueError(f"towers: {', '.join(self.towers)} are all of them: leave one out, or say transfer=probe")
        frozen = [f"encoders.{m}" for m in self.towers]
        if not self.projection:
            frozen += [f"space.project.{m}" for m in self.towers]
        names = learner.named()  # an encoder of vectors, or a space without projections, has nothing to lock
        frozen = [pattern for pattern in frozen if any(name.startswith(f"{pattern}.") for name in names)]
        return [Phase("lock", steps, frozen=frozen, lr=self.lr)]
