"""A policy whose noise is the same wherever it acts: in the model, in the environment, nudged or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.diagnostics.esnr import flat_gradient
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.evaluation.episodes import ClosedLoop, Policy
from flowmbpo.models.actors.base import Action, Actor
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext

LARGEST_ACTION = 1.0 - 1e-6  # beyond it float32 has no room left for a nudge


class FixedNoise(Actor):
    """`inner` with its noise fixed by `seeds`, one for every step and group of `rows` rows.

    Called as an actor (`imagine` does) it goes through the steps by itself from `rewind` on, for
    rows [replica, group, row]: replicas of a start share its noise. `nudges` [H, B, A], zeros that take
    gradient, are added to the actions: their gradient is dJ/da_h, what follows from it included.
    """

    def __init__(self, inner: Actor, seeds: Int[Tensor, "H G"], rows: int) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.nfe, self.hidden_units = inner.nfe, inner.hidden_units
        self.seeds: list[list[int]] = seeds.tolist()
        self.rows = rows
        self._step = 0
        self._nudges: Float[Tensor, "H B A"] | None = None

    def preactivation(self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None) -> Action:
        """The inner actor's, with the caller's noise."""
        return self.inner.preactivation(z, context, generator)

    def sample_with_log_prob(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
    ) -> tuple[Action, Float[Tensor, " B"]]:
        """The inner actor's, with the caller's noise."""
        return self.inner.sample_with_log_prob(z, context, generator)

    def rewind(self, nudges: Float[Tensor, "H B A"] | None = None) -> None:
        """Begin again at the first step."""
        self._step = 0
        self._nudges = nudges

    def act(self, step: int, group: int, z: Float[Tensor, "N D"], context: TaskContext) -> Float[Tensor, "N A"]:
        """The actions of one group at one step."""
        generator = torch.Generator(z.device).manual_seed(self.seeds[step][group])
        action: Tensor = self.inner(z, context, generator)
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


def displaced(action: Action, displacement: Action) -> Action:
    """tanh(u + displacement) for a = tanh(u): never outside the bounds, however close the action is to one."""
    inside = action.clamp(-LARGEST_ACTION, LARGEST_ACTION)
    return (inside.atanh() + displacement).tanh()


@contextmanager
def acting(agent: Agent, actor: Actor) -> Iterator[None]:
    """Inside, `actor` is the agent's."""
    own = agent.actor
    agent.actor = actor
    try:
        yield
    finally:
        agent.actor = own


@dataclass(frozen=True)
class RealObjective:
    """J = sum_{h<H} gamma^h r_h + gamma^H V(encode(o_H)), of real rewards in learning units.

    The policy acts closed loop on encodings of real observations. Behind a termination nothing
    is earned and nothing bootstrapped, as in `actor_objective`.
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
        return self.agent.critic.value(self.latent(obs), self.context)

    def reward(self, reward: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """A real reward in learning units."""
        return self.agent.learning_reward(reward.to(self.device))


@dataclass(frozen=True)
class ReferenceGradient:
    """The real objective, and its gradient per start state with respect to the actions before their tanh.

    `slopes` is dJ/du_h for a_h = tanh(u_h), all that follows from it included: two estimates that are
    independent given the start states, so that their inner product is an unbiased squared norm;
    equal where the reference is deterministic. `reward_slopes` is the same of the rewards alone,
    without the value behind the horizon: what disagrees there is not the critic's doing. `obs` and
    `actions` are those of the rollout. `sound` is false where a simulator broke on the way. `bend` is
    the median of |J(+) - 2 J + J(-)| over that of |J(+) - J(-)| (nan for an exact reference).
    """

    slopes: Float[Tensor, "2 H G N A"]
    reward_slopes: Float[Tensor, "2 H G N A"]
    obs: Float[Tensor, "H G N O"]
    actions: Float[Tensor, "H G N A"]
    returns: Float[Tensor, "G N"]
    sound: Bool[Tensor, "G N"]
    terminated: Bool[Tensor, "G N"]
    bend: float = math.nan

    @classmethod
    def stack(cls, moments: Sequence[ReferenceGradient], bend: float = math.nan) -> ReferenceGradient:
        """All moments in one; each lacks the dimension G."""
        places = {"slopes": 2, "reward_slopes": 2, "obs": 1, "actions": 1, "returns": 0, "sound": 0, "terminated": 0}
        every = {name: torch.stack([getattr(one, name) for one in moments], dim=g) for name, g in places.items()}
        return cls(**every, bend=bend)

    def parameters(self, objective: RealObjective, slopes: Float[Tensor, "2 H G N A"]) -> Float[Tensor, "2 N P"]:
        """The gradient of the actor's parameters, copy by copy, that `slopes` (one of the two) make."""
        # dJ/da = dJ/du / (1 - a^2); where that is 0 in float32, da/dtheta is too.
        slopes = slopes / (1.0 - self.actions.square()).clamp(min=1.0 - LARGEST_ACTION**2)
        groups = self.sound.shape[0]
        with torch.no_grad():
            z = torch.stack([torch.cat([objective.latent(obs) for obs in row]) for row in self.obs])
        rows = [
            parameter_gradient(
                objective.agent.actor,
                objective.policy,
                z,
                objective.context.repeat(groups),
                half.flatten(1, 2),
                self.sound,
            )
            for half in (slopes[:1] if slopes[0].equal(slopes[1]) else slopes)
        ]
        return torch.stack((rows[0], rows[-1]))


def parameter_gradient(
    actor: Actor,
    policy: FixedNoise,
    z: Float[Tensor, "H B D"],
    context: TaskContext,
    slopes: Float[Tensor, "H B A"],
    sound: Bool[Tensor, "G N"],
) -> Float[Tensor, "N P"]:
    """sum_h (da_h/dtheta)' dJ/da_h of each copy, mean over its sound moments; rows B are [replica, G, N].

    The total derivative where `slopes` hold the closed loop's response: a_h is then differentiated at
    the state it was taken in. Equal to backpropagation through the rollout, and every copy's own
    gradient costs a pass through the actor alone. 0 for a copy without a sound moment.
    """
    policy.rewind()
    actions = torch.stack([policy(z_h, context) for z_h in z])
    values = (actions * slopes.to(actions)).sum((0, -1)).view(-1, *sound.shape).sum(0)
    means = torch.where(sound, values, 0.0).sum(0) / sound.sum(0).clamp(min=1)
    parameters = [parameter for parameter in actor.parameters() if parameter.requires_grad]
    return torch.stack([flat_gradient(mean, parameters, retain_graph=True) for mean in means.unbind()])


@dataclass(frozen=True)
class Starts:
    """The environment at G moments of N independent episodes, each at least `horizon` steps before any time limit.

    Copies are independent of each other; moments of one copy are not: they mostly share its episode.
    """

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

    One moment falls into each of `moments` equal parts of [0, L - horizon], L the shortest time
    limit; a copy whose episode ended earlier is in its next one. `horizon` is cut to L.
    """
    limit = min(env.spec.tasks[task].episode_length for task in env.task_ids.tolist())
    horizon = min(horizon, limit)
    room = limit - horizon + 1
    parts = min(moments, room)
    draws = torch.rand(parts, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    chosen = [int((part + draw) * room / parts) for part, draw in enumerate(draws)]
    device = generator.device
    loop = ClosedLoop(behaviour, env, seed, device=device)
    states, seen = [], []
    for time in range(chosen[-1] + 1):
        if time in chosen:
            states.append(env.state_dict())
            seen.append(loop.obs.clone())
        if time < chosen[-1]:
            loop.advance()
    return Starts(tuple(states), torch.stack(seen).to(device), env.task_ids.to(device), horizon)
