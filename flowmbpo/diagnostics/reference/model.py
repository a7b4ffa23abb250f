"""The model's side of the comparison: the gradient that trains the actor, start state by start state.

Letters: M replicas of the model's own noise, G moments, N copies, S = G N starts, H horizon, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.open_loop import draws_noise
from flowmbpo.diagnostics.reference.objective import parameter_gradient
from flowmbpo.diagnostics.reference.policy import FixedNoise, acting
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.training.config import TrainingConfig
from flowmbpo.training.updates import ActorObjective, actor_objective, frozen

NOISE_REPLICAS = 8  # of a stochastic model's rollouts per start: their mean is compared


@dataclass(frozen=True)
class ModelGradient:
    """`parameters` as training takes it and with the actor's input cut; `slopes` as in `ReferenceGradient`.

    `slopes` are those of the whole closed loop, whatever training cuts.
    """

    through: Float[Tensor, "N P"]
    detached: Float[Tensor, "N P"]
    slopes: Float[Tensor, "H G N A"]
    returns: Float[Tensor, "G N"]
    replicas: int


def model_gradient(
    agent: Agent,
    policy: FixedNoise,
    start: Float[Tensor, "S D"],
    context: TaskContext,
    sound: Bool[Tensor, "G N"],
    config: TrainingConfig,
    horizon: int,
    generator: torch.Generator,
) -> ModelGradient:
    """Of `actor_objective`, the code that trains, from the encodings `start` of G x N real states."""
    replicas = (
        NOISE_REPLICAS if draws_noise(agent.world_model, start, torch.zeros_like(context.action_mask), context) else 1
    )
    config = config.model_copy(update={"noise_replicas": replicas})
    state = generator.get_state()
    actor, every = agent.actor, context.repeat(replicas)
    shape = (replicas, *sound.shape)

    def differentiate(input_gradient: str) -> tuple[ActorObjective, Float[Tensor, "H B A"], Float[Tensor, "N P"]]:
        generator.set_state(state)  # the model's noise is the same each time
        size = (horizon, len(every.discount), agent.spec.action_dim)
        nudges = torch.zeros(size, device=start.device, dtype=start.dtype, requires_grad=True)
        policy.rewind(nudges)
        options = config.model_copy(update={"actor_input_gradient": input_gradient})
        with acting(agent, policy), frozen(agent):
            objective = actor_objective(agent, start, context, options, generator, horizon)
            (slopes,) = torch.autograd.grad(objective.returns.sum() / replicas, nudges)
        z = objective.imagination.z[:-1].detach()
        return objective, slopes, parameter_gradient(actor, policy, z, every, slopes, sound)

    objective, slopes, through = differentiate("through")
    _, _, detached = differentiate("detached")
    slopes = slopes * (1.0 - objective.imagination.actions.detach().square())
    slopes = slopes.view(horizon, *shape, -1).sum(1)
    return ModelGradient(through, detached, slopes, objective.returns.detach().view(shape).mean(0), replicas)
