"""The reference in the real environment: by automatic differentiation through it, or by differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.gradient.objective import RealObjective, Starts, parameter_gradient
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.models.actors.base import Action
from flowmbpo.training.updates import frozen

LARGEST_ACTION = 1.0 - 1e-6  # beyond it float32 has no room left for a nudge
DELTA = 0.05
"""Displacement of an action before its tanh. Central differences err by delta^2/6 of the third derivative and by the
float32 rounding of rewards and observations over delta: on the toy pendulum by less than 1%."""


@dataclass(frozen=True)
class ReferenceGradient:
    """The real objective, and its gradient per start state with respect to the actions before their tanh.

    `slopes` is dJ/du_h for a_h = tanh(u_h), all that follows from it included: of J (K = 0), and without the value
    behind the horizon (K = 1). Each has two estimates that are independent given the start states (their inner product
    is an unbiased squared norm), equal where the reference is deterministic. `obs` and `actions` are those of the
    rollout, `sound` is false where a simulator broke on the way. `bend` is the median of |J(+) - 2 J + J(-)| over that
    of |J(+) - J(-)| (nan for an exact reference).
    """

    slopes: Float[Tensor, "K 2 H G N A"]
    obs: Float[Tensor, "H G N O"]
    actions: Float[Tensor, "H G N A"]
    returns: Float[Tensor, "G N"]
    sound: Bool[Tensor, "G N"]
    terminated: Bool[Tensor, "G N"]
    bend: float = math.nan

    @classmethod
    def stack(cls, moments: Sequence[ReferenceGradient], bend: float = math.nan) -> ReferenceGradient:
        """All moments in one; each lacks the dimension G."""
        places = {"slopes": 3, "obs": 1, "actions": 1, "returns": 0, "sound": 0, "terminated": 0}
        every = {name: torch.stack([getattr(one, name) for one in moments], dim=g) for name, g in places.items()}
        return cls(**every, bend=bend)

    def parameters(self, objective: RealObjective) -> Float[Tensor, "K 2 N P"]:
        """The gradients of the actor's parameters, copy by copy, that the slopes make."""
        # dJ/da = dJ/du / (1 - a^2); where that is 0 in float32, da/dtheta is too.
        slopes = self.slopes / (1.0 - self.actions.square()).clamp(min=1.0 - LARGEST_ACTION**2)
        context = objective.context.repeat(len(self.sound))
        with torch.no_grad():
            z = torch.stack([torch.cat([objective.latent(obs) for obs in row]) for row in self.obs])
        found = []
        for kind in slopes:
            halves = kind[:1] if kind[0].equal(kind[1]) else kind
            rows = [parameter_gradient(objective.policy, z, context, half.flatten(1, 2), self.sound) for half in halves]
            found.append(torch.stack((rows[0], rows[-1])))
        return torch.stack(found)


def exact_gradient(objective: RealObjective, env: VectorEnv, starts: Starts) -> ReferenceGradient:
    """Backpropagation through a differentiable `env`.

    The gradient is pathwise: under the noise that was drawn, without what jumps contribute or what a simulator does
    behind a termination. Starts whose derivative is not finite are not sound.
    """
    moments = [_differentiate(objective, env, state, group) for group, state in enumerate(starts.states)]
    return ReferenceGradient.stack(moments)


def _differentiate(objective: RealObjective, env: VectorEnv, state: dict[str, Any], group: int) -> ReferenceGradient:
    """One moment: tensors as in `ReferenceGradient`, without their dimension G."""
    env.load_state_dict(state)
    copies = env.differentiable()
    assert copies is not None
    alive = torch.ones(len(objective.gamma), dtype=torch.bool, device=objective.device)
    seen, nudges, taken, rewards, ends, lasts = [], [], [], [], [], []
    with frozen(objective.agent.actor, objective.agent.world_model, objective.agent.critic):
        final = obs = copies.observe().to(objective.device)
        for step in range(objective.horizon):
            # Nothing else asks for gradient: its derivative is the action's, response included.
            nudge = torch.zeros(len(alive), objective.agent.spec.action_dim, device=objective.device)
            action = objective.act(step, group, obs) + nudge.requires_grad_()
            done = copies.step(action)
            seen.append(obs.detach())
            nudges.append(nudge)
            taken.append(action.detach())
            rewards.append(torch.where(alive, objective.reward(done.reward), 0.0).double())
            ended = done.terminated.to(objective.device)
            ends.append(ended)
            lasts.append(alive & ended)
            obs = done.obs.to(objective.device)
            final = torch.where(alive.unsqueeze(-1), obs, final)
            alive = alive & ~ended
        value = objective.value(final).double()
        nothing, actions = torch.zeros_like(value), torch.stack(taken)
        whole, alone = (objective.earned(rewards, ends, behind) for behind in (value, nothing))
        # Rows that ended come apart, by their last step: masked steps behind it could make nan of their derivative.
        parts = [
            (last, objective.earned(rewards[:step], ends[:step], nothing)) for step, last in enumerate(lasts, start=1)
        ]
        slopes = torch.stack([_slopes([(alive, returns), *parts], nudges, actions) for returns in (whole, alone)])
    sound = whole.isfinite() & slopes[0].isfinite().all(-1).all(1).all(0)
    return ReferenceGradient(slopes, torch.stack(seen), actions, whole.detach(), sound, ~alive)


def _slopes(
    parts: list[tuple[Bool[Tensor, " N"], Float[Tensor, " N"]]], nudges: list[Tensor], actions: Float[Tensor, "H N A"]
) -> Float[Tensor, "2 H N A"]:
    """dJ/du of every step's nudge, twice; `parts` are rows with their returns."""
    slopes = torch.zeros_like(actions)
    for rows, returns in parts:
        if returns.requires_grad and bool(rows.any()):
            gradients = torch.autograd.grad(returns[rows].sum(), nudges, retain_graph=True, allow_unused=True)
            for slope, gradient, action in zip(slopes, gradients, actions, strict=True):
                if gradient is not None:
                    slope[rows] = (gradient * (1.0 - action.square()))[rows]
    return slopes.expand(2, *slopes.shape)


def displaced(action: Action, displacement: Action) -> Action:
    """tanh(u + displacement) for a = tanh(u): never outside the bounds, however close the action is to one."""
    inside = action.clamp(-LARGEST_ACTION, LARGEST_ACTION)
    return (inside.atanh() + displacement).tanh()


@dataclass(frozen=True)
class _Rollout:
    """A closed loop from some step on: returns counted from there, with (K = 0) and without the value at the horizon.

    Both are 0 for copies already ended. `tails` are the returns from each later step on, and `alive`, `states`, `obs`
    and `actions` what was there before it; all five are empty for a displaced rollout.
    """

    returns: Float[Tensor, "K N"]
    broken: Bool[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    tails: list[Float[Tensor, " N"]]
    alive: list[Bool[Tensor, " N"]]
    states: list[dict[str, Any]]
    obs: list[Float[Tensor, "N O"]]
    actions: list[Float[Tensor, "N A"]]


@torch.no_grad()  # the environment is not differentiated: its answers are compared
def difference_gradient(
    objective: RealObjective,
    env: VectorEnv,
    starts: Starts,
    *,
    directions: int,
    generator: torch.Generator,
    delta: float = DELTA,
) -> ReferenceGradient:
    """(J(u_h + delta e) - J(u_h - delta e)) / (2 delta), everything else being equal.

    Each displaced rollout starts from the saved environment at step h and goes on closed loop under the same noise, as
    far as that is in the saved state. With at least as many `directions` as action dimensions, e runs through these.
    With fewer (an even number) it is a random vector of signs: its slope times e is an unbiased estimate of the
    gradient.
    """
    device, actions, mask = objective.device, env.spec.action_dim, objective.context.action_mask
    every = directions >= actions
    moments, pairs = [], []
    for group, saved in enumerate(starts.states):
        nominal = _roll(objective, env, group, 0, saved, torch.ones_like(mask[:, 0], dtype=torch.bool))
        broken = nominal.broken.clone()
        slopes = torch.zeros(2, 2, objective.horizon, env.num_envs, actions, dtype=torch.float64, device=device)
        for step, (alive, state) in enumerate(zip(nominal.alive, nominal.states, strict=True)):
            discount = objective.gamma.double() ** step
            for index in range(actions if every else directions):
                if every:
                    along = torch.zeros_like(mask)
                    along[:, index] = mask[:, index]
                else:
                    signs = torch.randint(0, 2, mask.shape, generator=generator, device=device).to(mask) * 2.0 - 1.0
                    along = signs * mask
                plus, minus = (
                    _roll(objective, env, group, step, state, alive, sign * delta * along) for sign in (1.0, -1.0)
                )
                odd = plus.returns - minus.returns
                estimate = (discount * odd / (2.0 * delta)).unsqueeze(-1) * along
                if every:
                    slopes[:, :, step] += estimate.unsqueeze(1)
                else:
                    slopes[:, index % 2, step] += estimate / (directions // 2)
                broken |= plus.broken | minus.broken
                even = plus.returns[0] + minus.returns[0] - 2.0 * nominal.tails[step]
                moved = alive & (along != 0).any(-1)
                pairs.append(torch.stack((odd[0].abs(), even.abs()), dim=-1)[moved])
        obs, taken = torch.stack(nominal.obs), torch.stack(nominal.actions)
        moments.append(ReferenceGradient(slopes, obs, taken, nominal.returns[0], ~broken, nominal.terminated))
    odd, even = torch.cat(pairs).median(0).values.tolist()
    return ReferenceGradient.stack(moments, bend=even / odd if odd > 0.0 else math.nan)


def _roll(
    objective: RealObjective,
    env: VectorEnv,
    group: int,
    first: int,
    state: dict[str, Any],
    alive: Bool[Tensor, " N"],
    displacement: Float[Tensor, "N A"] | None = None,
) -> _Rollout:
    """Closed loop from the saved `state` at step `first`; without a displacement every later one is saved."""
    device, begun = objective.device, alive
    broken, terminated = torch.zeros_like(alive), torch.zeros_like(alive)
    rewards: list[Tensor] = []
    ends: list[Tensor] = []
    columns: tuple[list[Any], list[Any], list[Any], list[Any]] = ([], [], [], [])
    final = obs = env.load_state_dict(state).to(device)
    for step in range(first, objective.horizon):
        action = objective.act(step, group, obs)
        if displacement is None:
            for column, item in zip(columns, (alive, env.state_dict(), obs, action), strict=True):
                column.append(item)
        elif step == first:
            action = displaced(action, displacement)
        done = env.step(action.cpu())
        faulty = torch.zeros_like(alive)
        faulty[[fault.index for fault in done.faults if not fault.at_start]] = True
        broken |= alive & faulty
        counted = alive & ~faulty
        ended = counted & done.terminated.to(device)
        terminated |= ended
        rewards.append(torch.where(counted, objective.reward(done.reward), 0.0).double())
        ends.append(ended)
        final = torch.where(counted.unsqueeze(-1), done.final_obs.to(device), final)
        alive = counted & ~done.done.to(device)
        obs = done.obs.to(device)
    value = objective.value(final).double()
    kinds = [objective.earned(rewards, ends, behind) for behind in (value, torch.zeros_like(value))]
    tails = [
        torch.where(running, objective.earned(rewards[step:], ends[step:], value), 0.0)
        for step, running in enumerate(columns[0])
    ]
    return _Rollout(torch.where(begun, torch.stack(kinds), 0.0), broken, terminated, tails, *columns)
