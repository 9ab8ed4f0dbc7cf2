"""A model and the weighted objectives it is trained on, in one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmkt import generators
from mmkt.distributed import total, world_size
from mmkt.experiment import Experiment
from mmkt.model import Model, matches
from mmkt.parts import ConfigError, Parts, nearest
from mmkt.types import Batch, Objective, Phase


class Learner(nn.Module):
    """Σ weight · objective: what the loop differentiates, and all that DDP or FSDP2 sees.

    Args:
        model: what is trained.
        objectives: by name.
        weights: by objective.
        terms: weights of the terms that the fusion brings; its own where not named.

    Raises:
        ConfigError: a term that the fusion does not bring, or one that is named as an objective is.
    """

    objectives: Any  # nn.ModuleDict of Objective

    def __init__(
        self,
        model: Model,
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float] | None = None,
        terms: Mapping[str, float] | None = None,
    ):
        super().__init__()
        self.model, self.objectives = model, nn.ModuleDict(objectives)
        self.weights = dict.fromkeys(objectives, 1.0) | dict(weights or {})
        self.terms = dict(model.fusion.terms) | dict(terms or {})
        for name in self.terms:
            if name not in model.fusion.terms:
                allowed = ", ".join(model.fusion.terms) or "none"
                raise ConfigError([(f"terms.{name}", f"the fusion brings no such term; it brings {allowed}")])
            if name in self.weights:
                raise ConfigError([(f"objectives.{name}", "the fusion brings a term of this name: give the objective another")])
        self.active = tuple(objectives)

    @classmethod
    def from_config(cls, config: Experiment, model: Model, domains: Sequence[str], plugins: Sequence[str] = ()) -> Learner:
        """Build the objectives of a checked config around a model."""
        parts, objectives = Parts(plugins), {}
        outputs = {task: head.outputs(head.vocabulary) for task, head in model.heads.items()}
        for name, spec in config.objectives.items():
            if spec.get("task") is not None and spec["task"] not in outputs:
                problem = f"there is no task {spec['task']!r}{nearest(spec['task'], outputs)}; allowed: {', '.join(outputs)}"
                raise ConfigError([(f"objectives.{name}.task", problem)])
            try:
                objectives[name] = parts.build("objectives", spec, config.model.dim, model.modalities, outputs, domains)
            except ValueError as error:
                raise ConfigError([(f"objectives.{name}", str(error))]) from error
        if not objectives:
            raise ConfigError([("objectives", "needs one or more")])
        return cls(model, objectives, {n: spec["weight"] for n, spec in config.objectives.items()}, config.terms)

    def parts(self) -> list[tuple[str, Objective]]:
        """The phase's objectives, by name."""
        return [(name, self.objectives[name]) for name in self.active]

    def counts(self, batches: Sequence[Batch]) -> Tensor:
        """How many items each objective speaks for, then how many rows there are: (objectives + 1,) float.

        Over all ranks and the accumulated batches.
        """
        return total(self.own_counts(batches))

    def own_counts(self, batches: Sequence[Batch]) -> Tensor:
        """As ``counts``, of this rank alone."""
        items = [torch.stack([o.count(b) for b in batches]).sum() for _, o in self.parts()]
        rows = torch.full((), sum(b.size for b in batches), device=batches[0].row.device)
        return torch.stack([x.to(torch.float32) for x in (*items, rows)])

    def forward(self, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one batch.

        Args:
            batch: this rank's rows.
            counts: (objectives + 1,), the global denominators from ``counts``.

        Returns:
            The loss (), scaled so that the mean of its gradients over ranks is the gradient of the global mean; and
            each objective's part of its global mean, then each term (objectives + terms,), detached.
        """
        outputs = self.model(batch)
        if outputs.terms.keys() != self.terms.keys():
            found, declared = (", ".join(names) or "none" for names in (outputs.terms, self.terms))
            raise ConfigError(
                [("model.fusion", f"it brings the terms {found}, but its class declares {declared}: terms = {{name: weight}}")]
            )
        world = world_size()
        loss, means = torch.zeros((), device=counts.device), []
        for k, (name, objective) in enumerate(self.parts()):
            mean = objective(self.model, batch, outputs) / counts[k].clamp(min=1)
            loss = loss + self.weights[name] * world * mean
            means.append(mean.detach())
        share = batch.size * world / counts[-1]  # of a mean over these rows; where batches differ, as theirs do
        for name, weight in self.terms.items():
            term = outputs.terms[name]
            loss = loss + weight * share * term
            means.append(term.detach() * share / world)
        return loss, torch.stack(means)

    def weight(self, name: str) -> float:
        """Of an objective or of a fusion's term."""
        return self.weights[name] if name in self.weights else self.terms[name]

    def named(self) -> dict[str, nn.Parameter]:
        """Parameters by the names that patterns speak of: the model's without prefix, then ``objectives.…``."""
        return {name.removeprefix("model."): p for name, p in self.named_parameters()}

    def matching(self, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
        """Parameters that a pattern names."""
        return {name: p for name, p in self.named().items() if any(matches(name, pattern) for pattern in patterns)}

    def by_modality(self) -> dict[str, list[nn.Parameter]]:
        """What trains for one modality alone, in its encoder and its projection into the shared space; of those that have any."""
        found = {
            m: [
                p
                for name, p in self.named().items()
                if p.requires_grad and name.startswith((f"encoders.{m}.", f"space.project.{m}."))
            ]
            for m in self.model.modalities
        }
        return {m: some for m, some in found.items() if some}

    @staticmethod
    def factor(name: str, lr: Mapping[str, float]) -> float:
        """On ``train.lr``: of the last pattern that matches a parameter's name, 1 where none does."""
        return next((factor for pattern, factor in reversed(list(lr.items())) if matches(name, pattern)), 1.0)

    def trained_in(self, phase: Phase) -> set[str]:
        """Names of the parameters that a phase trains; bodies under an adapter never do."""
        return set(self.matching(phase.train)) - set(self.matching(phase.frozen)) - self.model.held

    def begin(self, phase: Phase) -> dict[str, nn.Parameter]:
        """Freeze and unfreeze as a phase says; returns what trains, by name.

        Raises:
            ConfigError: for a pattern that matches no parameter, an unknown objective, or nothing left to train.
        """
        named = self.named()
        for pattern in (*phase.train, *phase.frozen, *phase.lr):
            if not any(matches(name, pattern) for name in named):
                tops = sorted({".".join(name.split(".")[:2]) for name in named})
                raise ConfigError([("transfer", f"the pattern {pattern!r} matches no parameter; there are {', '.join(tops)}")])
        unknown = [name for name in phase.objectives or () if name not in self.objectives]
        if unknown:
            raise ConfigError([("transfer", f"there is no objective {unknown[0]!r}; allowed: {', '.join(self.objectives)}")])
        self.active = tuple(self.objectives) if phase.objectives is None else tuple(phase.objectives)
        wanted = self.trained_in(phase)
        for name, parameter in named.items():
            parameter.requires_grad_(name in wanted)
            parameter.grad = None
        self.train()
        trains = {name: p for name, p in named.items() if p.requires_grad}
        if not trains:
            raise ConfigError([("transfer", f"nothing trains in the phase {phase.name!r}")])
        for _, objective in self.parts():
            objective.begin(self, phase)
        return trains

    def sizes(self) -> dict[str, tuple[int, int]]:
        """By part (an encoder, a head, an objective, the space, the fusion): how many numbers it has, how many train."""
        found: dict[str, tuple[int, int]] = {}
        for name, p in self.named().items():
            depth = 2 if name.split(".")[0] in ("encoders", "heads", "objectives") else 1
            part = ".".join(name.split(".")[:depth])
            every, trains = found.get(part, (0, 0))
            found[part] = every + p.numel(), trains + p.numel() * p.requires_grad
        return found

    def words(self, phase: Phase) -> str:
        """What a phase trains, once it has begun: how many numbers of how many, by part."""
        sizes = self.sizes()
        total, trains = (sum(size[k] for size in sizes.values()) for k in (0, 1))
        of = ", ".join(f"{part} {count:,}" for part, (_, count) in sizes.items() if count)
        on = "" if phase.objectives is None else f" on {', '.join(phase.objectives)}"
        return f"phase {phase.name} ({phase.steps:,} steps{on}): {trains:,} of {total:,} numbers train: {of}"

    def unreached(self, batch: Batch) -> list[str]:
        """What trains but no objective reaches, penalties left out, from one dry forward and backward that leaves no trace."""
        buffers = {name: b.clone() for name, b in self.named_buffers()}
        active, self.active = self.active, tuple(name for name, objective in self.parts() if objective.serves)
        if not self.active:
            self.active = active
            return [name for name, p in self.named().items() if p.requires_grad]
        with generators.untouched():
            loss, _ = self(batch, self.counts([batch]))
            loss.backward()
        self.active = active
        missed = [name for name, p in self.named().items() if p.requires_grad and p.grad is None]
        self.zero_grad()
        with torch.no_grad():
            for name, b in self.named_buffers():
                b.copy_(buffers[name])
        return missed
