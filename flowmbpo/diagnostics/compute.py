"""What the updates of a run cost on this machine: counted FLOPs, and seconds as they pass."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from flowmbpo.diagnostics.interface import Diagnosis, Drawing, Effort, Row
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.json_documents import Document
from flowmbpo.parity.flops import ComputeCost, FlopCount, actor_pass, critic_pass, estimate_cost, model_pass
from flowmbpo.training.updates import CriticTargets, replayed_targets

REPEATS = 5


@dataclass(frozen=True)
class UpdateMeasurement(Document):
    """Forward and backward pass of one update at the config's own batch sizes, without the optimiser's step.

    An actor update encodes its start states and gives the critic its targets, as in training; a critic
    update is one minibatch. An adaptive horizon counts as the longest that it may be, without what decides it.
    """

    flops: int
    seconds: float


@dataclass(frozen=True)
class ComputeDiagnosis(Diagnosis):
    """Costs of one model, actor and critic update: counted, timed (median of 5), and estimated before the run."""

    derived = ("epoch_seconds", "reading")
    name: ClassVar[str] = "compute"
    cost: ComputeCost
    measured: dict[str, UpdateMeasurement]
    device: str
    threads: int
    rss_mb: float
    gpu_mb: float | None

    @property
    def epoch_seconds(self) -> float:
        """The updates of one epoch; environment steps and optimiser steps come on top."""
        return sum(self._seconds(name) for name in self.measured)

    def _seconds(self, name: str) -> float:
        return self.measured[name].seconds * self.cost.updates_per_epoch[name]

    @property
    def reading(self) -> str:
        """What most of an epoch's time goes into."""
        if not self.epoch_seconds:
            return "An epoch makes no updates."
        most = max(self.measured, key=self._seconds)
        share = self._seconds(most) / self.epoch_seconds
        return f"An epoch's updates take {self.epoch_seconds:.3g} s here, {share:.0%} of it in those of the {most}."

    def to_dict(self) -> dict[str, Any]:
        """The estimate's document, and `measured` beside it."""
        own = super().to_dict()
        return dict(own.pop("cost")) | own

    def rows(self) -> list[Row]:
        """One row per update, then the epoch."""
        counts = self.cost.updates_per_epoch
        memory = f"{self.rss_mb:,.0f} MB resident" + ("" if self.gpu_mb is None else f", {self.gpu_mb:,.0f} MB on GPU")
        costs = {name: f"{each.flops:.3g} FLOPs, {1e3 * each.seconds:.3g} ms" for name, each in self.measured.items()}
        return [
            ("network evaluations of a macro step", f"{self.cost.nfe} (an action: {self.cost.actor_nfe})"),
            ("compute index of an actor update", f"{self.cost.compute_index:g} network calls"),
            *((f"{name} update", f"{cost}, {counts[name]} per epoch") for name, cost in costs.items()),
            ("updates of an epoch", f"{self.cost.flops_per_epoch:.3g} FLOPs, {self.epoch_seconds:.3g} s"),
            ("memory of this process", memory),
            ("measured on", f"{self.device}, {self.threads} threads"),
        ]

    def draw(self, figure: Drawing) -> None:
        """Seconds and FLOPs of one epoch, by update."""
        names, counts = list(self.measured), self.cost.updates_per_epoch
        left, right = figure.subplots(1, 2)
        left.bar(names, [self._seconds(name) for name in names], color="#4477aa")
        left.set_ylabel("seconds per epoch")
        right.bar(names, [self.measured[name].flops * counts[name] for name in names], color="#ee6677")
        right.set_ylabel("FLOPs per epoch")


def measure_compute(subject: Subject, effort: Effort) -> ComputeDiagnosis:
    """Count and time the updates of the subject's config on its own experience."""
    del effort  # an update is measured at its own size
    updates = {name: _measure(run, subject.device) for name, run in _passes(subject).items()}
    cuda = subject.device.type == "cuda"
    return ComputeDiagnosis(
        cost=estimate_cost(subject.config, subject.agent.spec),
        measured=updates,
        device=str(subject.device),
        threads=torch.get_num_threads(),
        rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),
        gpu_mb=torch.cuda.max_memory_allocated(subject.device) / 1e6 if cuda else None,
    )


def _passes(subject: Subject) -> dict[str, Callable[[], object]]:
    """One update of each part on the subject's own experience."""
    agent, training = subject.agent, subject.config.training
    generator = subject.generator("compute")
    batch = subject.windows.sample(training.wm_batch_size, training.horizon, generator)
    first = subject.windows.sample(subject.batch_size, 1, generator)

    def actor() -> list[CriticTargets]:
        imagined = actor_pass(agent, first.obs[0], first.task, training, generator)
        return [imagined, replayed_targets(agent, batch, training)] if training.critic_replay > 0.0 else [imagined]

    minibatch = []
    for states in actor():
        rows = torch.arange(-(-len(states.target) // training.critic_batches), device=states.target.device)
        minibatch.append(states.rows(rows))
    model, critic = partial(model_pass, agent, batch, training, generator), partial(critic_pass, agent, *minibatch)
    return {"model": model, "actor": actor, "critic": critic}


def _measure(run: Callable[[], object], device: torch.device) -> UpdateMeasurement:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with FlopCount() as count:
        run()
    times = []
    for _ in range(REPEATS):
        began = now()
        run()
        times.append(now() - began)
    return UpdateMeasurement(count.flops, statistics.median(times))
