"""The actor's objective under noise that is the same wherever the policy acts, and the model's gradient of it.

Letters: M replicas of the model's own noise, G moments, N copies, S = G N starts, H horizon, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flowmbpo.config.training import TrainingConfig
from flowmbpo.diagnostics.esnr import flat_gradient
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.evaluation.episodes import ClosedLoop, Policy
from flowmbpo.models.actors.base import Action, Actor
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.training.returns import discounted_return
from flowmbpo.training.updates import actor_objective, frozen

NOISE_REPLICAS = 8  # of a stochastic model's rollouts per start: their mean is compared


class FixedNoise(nn.Module):
    """`inner` with its noise fixed by `seeds`, one for every step and group of `rows` rows.

    In place of an actor (see `acting`) it goes through the steps by itself from `rewind` on, for rows [replica, group,
    row]. `nudges` [H, B, A], zeros that take gradient, are added to the actions: their gradient is the total dJ/da_h.
    """

    def __init__(self, inner: Actor, seeds: Int[Tensor, "H G"], rows: int) -> None:
        super().__init__()
        self.inner = inner
        self.seeds: list[list[int]] = seeds.tolist()
        self.rows = rows
        self.rewind()

    def rewind(self, nudges: Float[Tensor, "H B A"] | None = None) -> None:
        """Begin again at the first step."""
        self._step, self._nudges = 0, nudges

    def act(self, step: int, group: int, z: Float[Tensor, "N D"], context: TaskContext) -> Float[Tensor, "N A"]:
        """The actions of one group at one step."""
        action: Tensor = self.inner(z, context, torch.Generator(z.device).manual_seed(self.seeds[step][group]))
        return action

    def forward(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None = None
    ) -> Action:
        """The actions of all groups at the next step; `generator` is not read."""
        chunks, groups = z.shape[0] // self.rows, len(self.seeds[0])
        parts = zip(z.chunk(chunks), context.chunk(chunks), strict=True)
        action = torch.cat([self.act(self._step, place % groups, *part) for place, part in enumerate(parts)])
        if self._nudges is not None:
            action = action + self._nudges[self._step]
        self._step += 1
        return action


@contextmanager
def acting(agent: Agent, policy: FixedNoise) -> Iterator[None]:
    """Inside, `policy` is the agent's actor."""
    own = agent.actor
    agent.actor = policy  # type: ignore[assignment]  # imagination but calls it
    try:
        yield
    finally:
        agent.actor = own


@dataclass(frozen=True)
class RealObjective:
    """J = sum_{h<H} gamma^h r_h + gamma^H V(encode(o_H)), of real rewards in learning units.

    The policy acts closed loop. Behind a termination nothing is earned or bootstrapped, as in `actor_objective`.
    """

    agent: Agent
    policy: FixedNoise
    context: TaskContext
    gamma: Float[Tensor, " N"]
    horizon: int

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return self.gamma.device

    def latent(self, obs: Float[Tensor, "N O"]) -> Float[Tensor, "N D"]:
        """Latents of observations."""
        model = self.agent.world_model
        return model.latent(model.encode(obs.to(self.device), self.context))

    def act(self, step: int, group: int, obs: Float[Tensor, "N O"]) -> Float[Tensor, "N A"]:
        """The policy's actions on real observations."""
        return self.policy.act(step, group, self.latent(obs), self.context)

    def value(self, obs: Float[Tensor, "N O"]) -> Float[Tensor, " N"]:
        """V(encode(o))."""
        return self.agent.critic.actor_value(self.latent(obs), self.context)

    def reward(self, reward: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """A real reward in learning units."""
        return self.agent.learning_reward(reward.to(self.device))

    def earned(
        self, rewards: list[Tensor], ended: list[Bool[Tensor, " N"]], value: Float[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """J of these rewards, in float64, with `value` behind the last; nothing counts behind an end."""
        going = (~torch.stack(ended)).double()
        return discounted_return(torch.stack(rewards), value, going, self.gamma.double())


def parameter_gradient(
    policy: FixedNoise,
    z: Float[Tensor, "H B D"],
    context: TaskContext,
    slopes: Float[Tensor, "H B A"],
    sound: Bool[Tensor, "G N"],
) -> Float[Tensor, "N P"]:
    """sum_h (da_h/dtheta)' dJ/da_h of each copy, mean over its sound moments (0 without); rows B are [replica, G, N].

    Where `slopes` hold the closed loop's response it equals backpropagation through the rollout, and costs less.
    """
    policy.rewind()
    actions = torch.stack([policy(z_h, context) for z_h in z])
    values = (actions * slopes.to(actions)).sum((0, -1)).view(-1, *sound.shape).sum(0)
    means = torch.where(sound, values, 0.0).sum(0) / sound.sum(0).clamp(min=1)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return torch.stack([flat_gradient(mean, parameters, retain_graph=True) for mean in means.unbind()])


@dataclass(frozen=True)
class Starts:
    """The environment at G moments of N independent episodes, each at least `horizon` steps before any time limit."""

    states: tuple[dict[str, Any], ...]
    obs: Float[Tensor, "G N O"]
    task: Int[Tensor, " N"]
    horizon: int

    @property
    def moments(self) -> int:
        """G."""
        return len(self.states)

    @property
    def copies(self) -> int:
        """N."""
        return len(self.task)


def collect_starts(
    behaviour: Policy, env: VectorEnv, *, moments: int, horizon: int, seed: int, generator: torch.Generator
) -> Starts:
    """Run `behaviour` closed loop from `env.reset(seed)` and save the environment at random moments.

    One falls into each of `moments` equal parts of [0, L - horizon], L the shortest time limit; `horizon` is cut to L.
    """
    limit = min(env.spec.tasks[task].episode_length for task in env.task_ids.tolist())
    horizon, device = min(horizon, limit), generator.device
    room = limit - horizon + 1
    parts = min(moments, room)
    draws = torch.rand(parts, generator=generator, device=device, dtype=torch.float64).tolist()
    chosen = [int((part + draw) * room / parts) for part, draw in enumerate(draws)]
    loop = ClosedLoop(behaviour, env, seed, device=device)
    states, seen = [], []
    for time in range(chosen[-1] + 1):
        if time > 0:
            loop.advance()
        if time in chosen:
            states.append(env.state_dict())
            seen.append(loop.obs.clone())
    return Starts(tuple(states), torch.stack(seen).to(device), env.task_ids.to(device), horizon)


@dataclass(frozen=True)
class ModelGradient:
    """Of the parameters: the whole gradient, that with the actor's input cut, and the whole one of the rewards alone.

    `slopes` are those of the whole closed loop, whatever training cuts, and K as in `ReferenceGradient`.
    """

    through: Float[Tensor, "N P"]
    detached: Float[Tensor, "N P"]
    rewards: Float[Tensor, "N P"]
    slopes: Float[Tensor, "K H G N A"]
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
    state, every = generator.get_state(), context.repeat(replicas)
    shape = (horizon, replicas, *sound.shape, agent.spec.action_dim)

    def differentiate(input_gradient: str, *, value: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Returns of the starts, slopes, and the parameters' gradient."""
        generator.set_state(state)  # the model's noise is the same each time
        nudges = torch.zeros(shape, device=start.device, dtype=start.dtype).flatten(1, 3).requires_grad_()
        policy.rewind(nudges)
        options = config.model_copy(update={"noise_replicas": replicas, "actor_input_gradient": input_gradient})
        with acting(agent, policy), frozen(agent):
            objective = actor_objective(agent, start, context, options, generator, horizon)
            imagined, returns = objective.imagination, objective.returns
            if not value:
                nothing = torch.zeros_like(returns)
                returns = discounted_return(imagined.rewards, nothing, imagined.continues, objective.gamma)
            (slopes,) = torch.autograd.grad(returns.sum() / replicas, nudges)
        rows = parameter_gradient(policy, imagined.z[:-1].detach(), every, slopes, sound)
        slopes = slopes * (1.0 - imagined.actions.detach().square())
        return returns.detach().view(shape[1:-1]).mean(0), slopes.view(shape).sum(1), rows

    returns, slopes, through = differentiate("through")
    _, _, detached = differentiate("detached")
    _, reward_slopes, rewards = differentiate("through", value=False)
    return ModelGradient(through, detached, rewards, torch.stack((slopes, reward_slopes)), returns, replicas)
