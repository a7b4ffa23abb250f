"""One update of each part: model, actor, critic. They return tensors; only the loop reads numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.models.agent import Agent
from flowmbpo.models.heads import CriticEnsemble
from flowmbpo.models.open_loop import encode_windows
from flowmbpo.models.task_context import TaskContext
from flowmbpo.training.imagination import Imagination, imagine
from flowmbpo.training.model_loss import ModelLoss, model_loss
from flowmbpo.training.optimiser import GuardedOptimiser
from flowmbpo.training.returns import discounted_return, td_lambda


@dataclass(frozen=True)
class UpdateResult:
    """Loss, gradient norm before clipping, and whether the optimiser stepped."""

    loss: Float[Tensor, ""]
    grad_norm: Float[Tensor, ""]
    stepped: bool


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules' parameters take no gradient: activations still pass it on.

    The actor phase then computes no weight gradients of model and critic (they would be wasted,
    and would pollute the next model update).
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class ActorObjective:
    """The actor's loss with its imagined rollout, for the critic to learn from."""

    loss: Float[Tensor, ""]
    returns: Float[Tensor, " B"]
    imagination: Imagination
    context: TaskContext
    gamma: Float[Tensor, " B"]


def discount(context: TaskContext, config: TrainingConfig) -> Float[Tensor, " B"]:
    """Gamma of every row: its task's own, or the config's one for all."""
    return context.discount if config.gamma == "task" else torch.full_like(context.discount, config.gamma)


def actor_objective(
    agent: Agent,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    config: TrainingConfig,
    generator: torch.Generator,
    horizon: int | None = None,
) -> ActorObjective:
    """-J of the spec: J = sum_{h<H} gamma^h r_h + gamma^H V(z_H), mean over start states.

    H is `horizon`, by default the longest that the config allows.

    Call inside `frozen(world_model, critic)`. `noise_replicas` rolls every start state out that
    many times with fresh noise. The division by the running std of returns is `actor_loss`'s.
    """
    if config.noise_replicas > 1:
        start, context = start.repeat(config.noise_replicas, 1), context.repeat(config.noise_replicas)
    imagination = imagine(
        agent.world_model,
        agent.actor,
        start,
        context,
        horizon=horizon or config.longest_actor_horizon,
        generator=generator,
        actor_input_gradient=config.actor_input_gradient,
    )
    gamma = discount(context, config)
    terminal_value = agent.critic.actor_value(imagination.z[-1], context)
    returns = discounted_return(imagination.rewards, terminal_value, imagination.continues, gamma)
    return ActorObjective(-returns.mean(), returns, imagination, context, gamma)


def masked_mean(x: Float[Tensor, "B A"], mask: Float[Tensor, "B A"]) -> Float[Tensor, ""]:
    """Mean over the action dimensions that the rows' tasks have: the others belong to no policy."""
    return (x * mask).sum() / mask.sum()


def actor_loss(
    agent: Agent,
    objective: ActorObjective,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    config: TrainingConfig,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """What the actor steps on: -J over the running std of returns, and the penalty on large pre-activations.

    `start` and `context` are those that `objective` was imagined from, before noise replicas.
    """
    loss = objective.loss
    if config.return_normalization:
        loss = loss / agent.return_scale.std.squeeze(0)
    if config.preactivation_penalty > 0.0:
        u = agent.actor.preactivation(agent.world_model.latent(start), context, generator)
        loss = loss + config.preactivation_penalty * masked_mean(u.square(), context.action_mask)
    return loss


def rollout_loss(
    agent: Agent,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    config: TrainingConfig,
    horizon: int | None,
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], ActorObjective]:
    """The actor's loss on a rollout, whose returns enter the running spread first. Call inside `frozen`."""
    objective = actor_objective(agent, start, context, config, generator, horizon)
    if config.return_normalization:
        agent.return_scale.update(objective.returns.detach().unsqueeze(-1))
    return actor_loss(agent, objective, start, context, config, generator), objective


class CriticTargets(NamedTuple):
    """States without gradient, their tasks, and the values that the critic is to learn there.

    `weight` is 0 for rows that do not count (padding) and 1 for the others; None: all do.
    """

    z: Float[Tensor, "B D"]
    context: TaskContext
    target: Float[Tensor, " B"]
    weight: Float[Tensor, " B"] | None = None

    def shuffled(self, generator: torch.Generator) -> Int[Tensor, " B"]:
        """The rows' numbers in a random order."""
        return torch.randperm(len(self.target), generator=generator, device=self.target.device)

    def rows(self, index: Int[Tensor, " N"]) -> CriticTargets:
        """The rows of `index`, in its order."""
        weight = None if self.weight is None else self.weight[index]
        return CriticTargets(self.z[index], self.context.rows(index), self.target[index], weight)

    def loss(self, critic: CriticEnsemble) -> Float[Tensor, ""]:
        """The critic's mean loss over its members and the rows; 0 where no row counts."""
        losses = critic.loss(self.z, self.context, self.target)
        if self.weight is None:
            return losses.mean()
        return (losses.mean(0) * self.weight).sum() / self.weight.sum().clamp(min=1.0)


@torch.no_grad()
def critic_targets(agent: Agent, objective: ActorObjective, config: TrainingConfig) -> CriticTargets:
    """TD(lambda) targets of every imagined state z_0..z_{H-1}, over the whole imagined horizon."""
    imagination = objective.imagination
    horizon = len(imagination.rewards)
    every = objective.context.repeat(horizon)
    values = agent.bootstrap_critic.value(imagination.z[1:].flatten(0, 1), every).view(horizon, -1)
    targets = td_lambda(imagination.rewards, values, imagination.continues, objective.gamma, config.lam)
    return CriticTargets(imagination.z[:-1].flatten(0, 1).detach(), every, targets.flatten())


@torch.no_grad()
def replayed_targets(agent: Agent, batch: Batch, config: TrainingConfig) -> CriticTargets:
    """TD(lambda) targets of every replayed state, of real rewards, up to the end of its window.

    DreamerV3's replay loss (Hafner et al. 2023) without its imagined bootstrap: the values behind a window, and at
    the time limit of an episode, are the critic's own. A terminated state is worth 0. Padding has no weight.
    """
    horizon = len(batch.reward)
    context = agent.world_model.context(batch.task)
    z = encode_windows(agent.world_model, batch).z
    values = agent.bootstrap_critic.value(z[1:].flatten(0, 1), context.repeat(horizon)).view(horizon, -1)
    # Behind its end a window repeats its last observation and earns nothing: undiscounted, its value stays what it is.
    gamma = torch.where(batch.valid, discount(context, config), 1.0)
    rewards = torch.where(batch.valid, agent.learning_reward(batch.reward), 0.0)
    targets = td_lambda(rewards, values, (~batch.terminated).to(z.dtype), gamma, config.lam)
    every, weight = context.repeat(horizon), batch.valid.flatten().to(z.dtype)
    return CriticTargets(z[:-1].flatten(0, 1), every, targets.flatten(), weight)


def all_targets(
    agent: Agent, objective: ActorObjective, replayed: Batch | None, config: TrainingConfig
) -> tuple[CriticTargets, CriticTargets | None]:
    """What the critic learns at the states of the actor's rollout, and at those of replayed windows."""
    imagined = critic_targets(agent, objective, config)
    return imagined, None if replayed is None else replayed_targets(agent, replayed, config)


def minibatch_loss(
    agent: Agent,
    imagined: tuple[CriticTargets, Int[Tensor, " N"]],
    real: tuple[CriticTargets, Int[Tensor, " M"]] | None,
    config: TrainingConfig,
) -> Float[Tensor, ""]:
    """The critic's loss on some rows of the targets: imagined ones, and `critic_replay` times real ones."""
    loss = imagined[0].rows(imagined[1]).loss(agent.critic)
    return loss if real is None else loss + config.critic_replay * real[0].rows(real[1]).loss(agent.critic)


@dataclass(frozen=True)
class Passes:
    """What the updates compute between two steps of the optimisers; `compiled` gives the same, compiled."""

    model: Callable[..., ModelLoss] = model_loss
    actor: Callable[..., tuple[Tensor, ActorObjective]] = rollout_loss
    targets: Callable[..., tuple[CriticTargets, CriticTargets | None]] = all_targets
    critic: Callable[..., Tensor] = minibatch_loss


EAGER = Passes()


def update_model(
    agent: Agent,
    batch: Batch,
    optimiser: GuardedOptimiser,
    config: TrainingConfig,
    generator: torch.Generator,
    passes: Passes = EAGER,
) -> tuple[UpdateResult, ModelLoss]:
    """One gradient step on the world model."""
    losses = passes.model(agent.world_model, batch, agent.reward_normalizer(batch.reward), config, generator)
    norm, stepped = optimiser.step(losses.total)
    return UpdateResult(losses.total.detach(), norm, stepped), losses


def update_actor(
    agent: Agent,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    optimiser: GuardedOptimiser,
    config: TrainingConfig,
    generator: torch.Generator,
    horizon: int | None = None,
    passes: Passes = EAGER,
) -> tuple[UpdateResult, ActorObjective]:
    """One first-order gradient step on the actor, through the frozen model and critic."""
    with frozen(agent.world_model, agent.critic):
        loss, objective = passes.actor(agent, start, context, config, horizon, generator)
        norm, stepped = optimiser.step(loss)
    agent.actor.clamp_()
    return UpdateResult(loss.detach(), norm, stepped), objective


def update_critic(
    agent: Agent,
    objective: ActorObjective,
    optimiser: GuardedOptimiser,
    config: TrainingConfig,
    generator: torch.Generator,
    replayed: Batch | None = None,
    passes: Passes = EAGER,
) -> list[UpdateResult]:
    """`critic_iterations` passes over `critic_batches` shuffled minibatches of the actor's rollout.

    Where `critic_replay` has a weight, each of them takes its share of the states of the `replayed` windows too.
    """
    imagined, real = passes.targets(agent, objective, replayed, config)
    results = []
    for _ in range(config.critic_iterations):
        parts = imagined.shuffled(generator).chunk(config.critic_batches)
        real_parts = () if real is None else real.shuffled(generator).tensor_split(len(parts))
        for part, real_part in zip_longest(parts, real_parts):
            some_real = None if real is None or not len(real_part) else (real, real_part)
            loss = passes.critic(agent, (imagined, part), some_real, config)
            norm, stepped = optimiser.step(loss)
            results.append(UpdateResult(loss.detach(), norm, stepped))
            _update_target(agent)
    return results


@torch.no_grad()
def _update_target(agent: Agent) -> None:
    if agent.target_critic is None or agent.critic.config.target_decay is None:
        return
    rest = 1.0 - agent.critic.config.target_decay
    for target, parameter in zip(agent.target_critic.parameters(), agent.critic.parameters(), strict=True):
        target.lerp_(parameter, rest)
