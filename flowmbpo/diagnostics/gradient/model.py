"""The model's side of the comparison: the gradient that trains the actor, start state by start state.

Letters: M replicas of the model's own noise, G moments, N copies, S = G N starts, H horizon, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.config.training import TrainingConfig
from flowmbpo.diagnostics.gradient.objective import FixedNoise, acting, parameter_gradient
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.training.returns import discounted_return
from flowmbpo.training.updates import ActorObjective, actor_objective, frozen

NOISE_REPLICAS = 8  # of a stochastic model's rollouts per start: their mean is compared


@dataclass(frozen=True)
class ModelGradient:
    """`parameters` as training takes it and with the actor's input cut; `slopes` as in `ReferenceGradient`.

    `slopes` are those of the whole closed loop, whatever training cuts. `rewards` and `reward_slopes`
    are `through` and `slopes` of the rewards alone, without the value behind the horizon.
    """

    through: Float[Tensor, "N P"]
    detached: Float[Tensor, "N P"]
    rewards: Float[Tensor, "N P"]
    slopes: Float[Tensor, "H G N A"]
    reward_slopes: Float[Tensor, "H G N A"]
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
    replicas = NOISE_REPLICAS if agent.world_model.dynamics.stochastic else 1
    config = config.model_copy(update={"noise_replicas": replicas})
    state = generator.get_state()
    actor, every = agent.actor, context.repeat(replicas)
    shape = (replicas, *sound.shape)

    def differentiate(
        input_gradient: str, *, value: bool = True
    ) -> tuple[ActorObjective, Float[Tensor, "H G N A"], Float[Tensor, "N P"]]:
        generator.set_state(state)  # the model's noise is the same each time
        size = (horizon, len(every.discount), agent.spec.action_dim)
        nudges = torch.zeros(size, device=start.device, dtype=start.dtype, requires_grad=True)
        policy.rewind(nudges)
        options = config.model_copy(update={"actor_input_gradient": input_gradient})
        with acting(agent, policy), frozen(agent):
            objective = actor_objective(agent, start, context, options, generator, horizon)
            returns = objective.returns if value else _without_value(objective)
            (slopes,) = torch.autograd.grad(returns.sum() / replicas, nudges)
        imagined = objective.imagination
        rows = parameter_gradient(actor, policy, imagined.z[:-1].detach(), every, slopes, sound)
        slopes = slopes * (1.0 - imagined.actions.detach().square())
        return objective, slopes.view(horizon, *shape, -1).sum(1), rows

    objective, slopes, through = differentiate("through")
    _, _, detached = differentiate("detached")
    _, reward_slopes, rewards = differentiate("through", value=False)
    returns = objective.returns.detach().view(shape).mean(0)
    return ModelGradient(through, detached, rewards, slopes, reward_slopes, returns, replicas)


def _without_value(objective: ActorObjective) -> Float[Tensor, " B"]:
    imagined = objective.imagination
    nothing = torch.zeros_like(objective.returns)
    return discounted_return(imagined.rewards, nothing, imagined.continues, objective.gamma)
