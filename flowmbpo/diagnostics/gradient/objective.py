"""What every reference shares: the actor's objective in the real environment.

Letters: G moments, N copies, H horizon, O observation, D latent, A action, P actor parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.gradient.policy import LARGEST_ACTION, FixedNoise
from flowmbpo.models.actors.base import Actor
from flowmbpo.models.agent import Agent
from flowmbpo.models.heads import TwoHotReward
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.two_hot import symlog


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

    def learning_reward(self, reward: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """A real reward in the units of the model's rewards, and so of the critic: a head may stay in symlog space."""
        normalised: Tensor = self.agent.reward_normalizer(reward.to(self.device))
        head = self.agent.world_model.reward_head
        in_symlog = isinstance(head, TwoHotReward) and head.config.decode == "symlog"
        return symlog(normalised) if in_symlog else normalised


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
    bend: float

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
    rows = []
    for mean in means.unbind():
        found = torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)
