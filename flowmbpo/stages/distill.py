"""Dynamics of one kind taught by those of another: what a checkpoint knows, in a network that cannot load it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.errors import NonFiniteError
from flowmbpo.json_documents import Document
from flowmbpo.models.agent import Agent
from flowmbpo.models.dynamics.base import Transition
from flowmbpo.models.open_loop import squared_errors, unroll_samples
from flowmbpo.models.world_model import WorldModel
from flowmbpo.stages.transfer.agent import transfer
from flowmbpo.stages.transfer.source import Architecture, SourceAgent, adopt_widths
from flowmbpo.training.optimiser import GuardedOptimiser, learning_rate

HELD_OUT = 4  # batches that the errors are measured on


@dataclass(frozen=True)
class DistillReport(Document):
    """Mean squared latent errors after k = 1 .. H steps of the student against the teacher, on held-out windows.

    `trivial` is the error of predicting no change. `skipped` updates had a loss or gradient that was not finite.
    """

    derived = ("relative",)

    updates: int
    skipped: int
    seconds: float
    before: tuple[float, ...]
    after: tuple[float, ...]
    trivial: tuple[float, ...]

    @property
    def relative(self) -> float:
        """Errors after over those of predicting no change, summed over the steps; 0 where nothing moves at all."""
        return sum(self.after) / sum(self.trivial) if sum(self.trivial) > 0.0 else 0.0

    def lines(self) -> list[str]:
        """For people."""
        last = len(self.after)
        ratios = ", ".join(
            f"{self.after[k - 1] / self.trivial[k - 1]:.3g} at step {k}"
            for k in sorted({1, (last + 1) // 2, last})
            if self.trivial[k - 1] > 0.0
        )
        skipped = f", {self.skipped} skipped as not finite" if self.skipped else ""
        return [
            f"dynamics distilled by {self.updates} updates in {self.seconds:.1f} s{skipped}",
            f"squared error against the teacher / that of predicting no change: {ratios or 'nothing moves'}",
        ]


def distill_dynamics(
    teacher: WorldModel,
    student: WorldModel,
    batches: Callable[[], Batch],
    *,
    updates: int,
    config: TrainingConfig,
    generator: torch.Generator,
) -> DistillReport:
    """Teach the student's dynamics the teacher's map, by the student's own loss; nothing else of it moves.

    The teacher takes the environment's place: from the encoding of a window's first observation it plays the window's
    actions (drawing from `generator`, where it is stochastic), and its states are the targets. Both share encoder and
    embeddings; states go from one geometry to the other over the latent. The rate falls from `config.model_lr` to
    `config.final_lr`. Windows that errors are measured on are drawn first.

    Raises NonFiniteError past `config.max_nonfinite` bad updates, or where the student's predictions are not finite.
    """
    began = time.perf_counter()
    initial = config.model_lr
    optimiser = GuardedOptimiser(
        student.dynamics, lr=initial, betas=config.model_betas, weight_decay=config.weight_decay, clip=config.clip.model
    )
    held_out = [batches() for _ in range(HELD_OUT)]
    modes = teacher.training, student.dynamics.training
    teacher.eval()
    before, trivial = _errors(teacher, student, held_out)
    skipped = 0
    for update in range(updates):
        optimiser.set_lr(learning_rate(initial, min(initial, config.final_lr), update, updates, "linear"))
        student.dynamics.train()
        loss = _loss(teacher, student, batches(), config, generator)
        stepped = optimiser.step(loss)[1]
        skipped += not stepped
        if skipped > config.max_nonfinite:
            raise NonFiniteError(
                f"distillation: {skipped} of {update + 1} updates had a loss or gradient that was not finite"
                f" (training.max_nonfinite {config.max_nonfinite}); lower training.model_lr, now {initial:g}"
            )
    optimiser.adam.zero_grad(set_to_none=True)
    after, _ = _errors(teacher, student, held_out)
    teacher.train(modes[0])
    student.dynamics.train(modes[1])
    if not bool(after.isfinite().all()):
        raise NonFiniteError(
            f"distillation: the student's predictions are not finite after {updates} updates; lower training.model_lr,"
            f" now {initial:g}, or training.horizon"
        )
    errors = (tuple(error.tolist()) for error in (before, after, trivial))
    return DistillReport(updates, skipped, time.perf_counter() - began, *errors)


def _loss(
    teacher: WorldModel, student: WorldModel, batch: Batch, config: TrainingConfig, generator: torch.Generator
) -> Float[Tensor, ""]:
    """The student's dynamics loss along the teacher's rollout, weighted as in the model's own loss."""
    horizon, width = batch.reward.shape
    with torch.no_grad():  # encoder and embeddings are the teacher's and stay so
        context = student.context(batch.task)
        theirs = teacher.context(batch.task)
        states = [teacher.encode(batch.obs[0], theirs)]
        for played_action in batch.action:
            states.append(teacher.next(states[-1], played_action, theirs, generator))
        played = torch.stack(states)
        if student.config.dynamics.geometry != teacher.config.dynamics.geometry:
            played = student.geometry.from_latent(teacher.latent(played))
    action = batch.action * context.action_mask
    if student.dynamics.config.source == "teacher":
        transition = Transition(
            played[:-1].flatten(0, 1),
            action.flatten(0, 1),
            context.repeat(horizon).embedding,
            played[1:].flatten(0, 1),
            batch.valid.flatten(),
        )
        losses = student.dynamics.loss(transition, generator, need_next=False)[0].view(horizon, width)
    else:
        state, rows = played[0], []
        for t in range(horizon):
            transition = Transition(state, action[t], context.embedding, played[t + 1], batch.valid[t])
            loss, s_next = student.dynamics.loss(transition, generator, need_next=t + 1 < horizon)
            rows.append(loss)
            state = s_next if s_next is not None else state
        losses = torch.stack(rows)
    decay = config.rho ** torch.arange(horizon, device=losses.device, dtype=losses.dtype).unsqueeze(-1)
    weighted = (decay * batch.valid / batch.valid.sum() * losses).sum()
    return (config.dynamics_weight or 1.0) * weighted


@torch.no_grad()  # a measurement
def _errors(teacher: WorldModel, student: WorldModel, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Squared latent errors [H] of the student's and of no step, against the teacher's; means over samples of both."""
    student.dynamics.eval()
    sums = []
    for batch in batches:
        generator = torch.Generator(batch.obs.device).manual_seed(0)  # the same noise before and after
        z, predicted = (
            unroll_samples(model, model.encode(batch.obs[0], context), batch.action, context, generator).mean(1)
            for model, context in ((each, each.context(batch.task)) for each in (teacher, student))
        )
        errors = *squared_errors(predicted, z, batch.valid), batch.valid.to(z.dtype)
        sums.append(torch.stack([error.sum(-1) for error in errors]))
    model_sum, trivial_sum, count = sum(sums, torch.zeros(()))
    return model_sum / count.clamp(min=1.0), trivial_sum / count.clamp(min=1.0)


def teacher_model(source: SourceAgent, target: Agent, *, embedding_from: str | None = None) -> WorldModel:
    """A frozen world model like the target's, with the source's dynamics, on the target's device.

    It speaks the target's tasks and widths, and its encoder and reward head are what `transfer` puts into the target.
    The global random generator is left as it was. Raises as `transfer` does.
    """
    asked = Architecture.of(target)
    theirs = asked.model.model_copy(update={"dynamics": source.architecture.model.dynamics})
    model, actor = adopt_widths(theirs, asked.actor, asked.spec, source.architecture)
    with torch.random.fork_rng(devices=[]):
        agent = replace(asked, model=model, actor=actor).build()
    agent.to(next(target.parameters()).device)
    transfer(source, agent, embedding_from=embedding_from)
    return agent.world_model.requires_grad_(False).eval()
