"""The reference by automatic differentiation: through environment, encoder and actor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.gradient.objective import RealObjective, ReferenceGradient, Starts, displaced
from flowmbpo.envs.contract import DifferentiableEnvs, VectorEnv
from flowmbpo.training.returns import discounted_return
from flowmbpo.training.updates import frozen


def exact_gradient(objective: RealObjective, env: VectorEnv, starts: Starts) -> ReferenceGradient:
    """Backpropagation through a differentiable `env`.

    The gradient is pathwise: of what happens under the noise that was drawn. Where reward or
    transition jump in the state, the jump's own contribution is not in it. Starts whose derivative is
    not finite are not sound; what a simulator does behind a termination is not differentiated.
    """
    moments = []
    for group, state in enumerate(starts.states):
        env.load_state_dict(state)
        copies = env.differentiable()
        assert copies is not None
        moments.append(_differentiate(objective, copies, group))
    return ReferenceGradient.stack(moments)


def _differentiate(objective: RealObjective, copies: DifferentiableEnvs, group: int) -> ReferenceGradient:
    """One moment: tensors as in `ReferenceGradient`, without their dimension G."""
    alive = torch.ones(len(objective.gamma), dtype=torch.bool, device=objective.device)
    seen, taken, rewards, continues, lasts = [], [], [], [], []
    with frozen(objective.agent.actor, objective.agent.world_model, objective.agent.critic):
        final = obs = copies.observe().to(objective.device)
        for step in range(objective.horizon):
            # Nothing else asks for gradient: its derivative is the action's, response included.
            nudge = torch.zeros(len(alive), objective.agent.spec.action_dim, device=objective.device)
            action = objective.act(step, group, obs) + nudge.requires_grad_()
            done = copies.step(action)
            seen.append(obs.detach())
            taken.append((nudge, action.detach()))
            rewards.append(torch.where(alive, objective.reward(done.reward), 0.0).double())
            ended = done.terminated.to(objective.device)
            continues.append((~ended).double())
            lasts.append(alive & ended)
            obs = done.obs.to(objective.device)
            final = torch.where(alive.unsqueeze(-1), obs, final)
            alive = alive & ~ended
        value, gamma = objective.value(final).double(), objective.gamma.double()
        nothing = torch.zeros_like(value)
        whole, alone = (
            discounted_return(torch.stack(rewards), behind, torch.stack(continues), gamma)
            for behind in (value, nothing)
        )
        ended_returns = [
            (last, discounted_return(torch.stack(rewards[:step]), nothing, torch.stack(continues[:step]), gamma))
            for step, last in enumerate(lasts, start=1)
            if bool(last.any())
        ]
        slopes, reward_slopes = (_slopes([(alive, returns), *ended_returns], taken) for returns in (whole, alone))
    return ReferenceGradient(
        slopes=slopes,
        reward_slopes=reward_slopes,
        obs=torch.stack(seen),
        actions=torch.stack([action for _, action in taken]),
        returns=whole.detach(),
        sound=whole.isfinite() & slopes.isfinite().all(-1).all(1).all(0),
        terminated=~alive,
    )


def _slopes(
    parts: list[tuple[Bool[Tensor, " N"], Float[Tensor, " N"]]], taken: list[tuple[Tensor, Tensor]]
) -> Float[Tensor, "2 H N A"]:
    """dJ/du of every step's (nudge, action), twice; `parts` are rows with their returns.

    Rows that ended come apart from the others, by their last step: the steps behind it, masked with zeros, would make
    nan of a derivative that is not finite there, and the row would be left out for how it ended.
    """
    nudges = [nudge for nudge, _ in taken]
    slopes = torch.stack([torch.zeros_like(action) for _, action in taken])
    for rows, returns in parts:
        if returns.requires_grad and bool(rows.any()):
            gradients = torch.autograd.grad(returns[rows].sum(), nudges, retain_graph=True, allow_unused=True)
            for step, (slope, (_, action)) in enumerate(zip(gradients, taken, strict=True)):
                if slope is not None:
                    slopes[step, rows] = (slope * (1.0 - action.square()))[rows]
    return slopes.expand(2, *slopes.shape)


DELTA = 0.05
"""Displacement of an action before its tanh: 5% of the action's half-range at its centre.

Central differences err by delta^2/6 of the third derivative and by the float32 rounding of rewards
and observations over delta; on the toy pendulum the sum of both is below 1% (tests).
"""


@dataclass(frozen=True)
class _Rollout:
    """A closed loop from step `first` on. `returns` count from `first`, 0 for copies already ended;
    `rewards` are they without the value behind the horizon."""

    returns: Float[Tensor, " N"]
    rewards: Float[Tensor, " N"]
    broken: Bool[Tensor, " N"]
    tails: list[Float[Tensor, " N"]]
    alive: list[Bool[Tensor, " N"]]
    states: list[dict[str, Any]]
    obs: list[Float[Tensor, "N O"]]
    actions: list[Float[Tensor, "N A"]]
    terminated: Bool[Tensor, " N"]


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

    Each displaced rollout starts from the saved environment at step h and goes on closed loop under
    the same policy noise and the same environment noise, as far as that is in the saved state. With
    at least as many `directions` as action dimensions, e runs through the dimensions. With fewer
    (an even number), e is a random vector of signs, drawn anew for every start, step and repeat:
    its slope times e is an unbiased estimate of the gradient's differences, at a variance
    of the other dimensions' squared slopes over the repeats.
    """
    parts = [_moment(objective, env, starts, group, directions, generator, delta) for group in range(starts.moments)]
    pairs = torch.cat([pairs for _, pairs in parts])  # [.., 2]: |odd| and |even| part
    odd, even = pairs.median(0).values.tolist()
    return ReferenceGradient.stack([part for part, _ in parts], bend=even / odd if odd > 0.0 else float("nan"))


def _moment(
    objective: RealObjective,
    env: VectorEnv,
    starts: Starts,
    group: int,
    directions: int,
    generator: torch.Generator,
    delta: float,
) -> tuple[ReferenceGradient, Float[Tensor, "M 2"]]:
    """One moment, as `ReferenceGradient` without its dimension G; and every pair's odd and even part."""
    device, actions = objective.device, env.spec.action_dim
    mask = objective.context.action_mask
    obs = env.load_state_dict(starts.states[group])
    everyone = torch.ones(env.num_envs, dtype=torch.bool, device=device)
    nominal = _roll(objective, env, group, 0, obs, everyone, None)
    broken = nominal.broken.clone()
    every = directions >= actions
    count = actions if every else directions
    slopes = torch.zeros(2, 2, objective.horizon, env.num_envs, actions, dtype=torch.float64, device=device)
    pairs = []
    for step in range(objective.horizon):
        discount = objective.gamma.double() ** step
        for index in range(count):
            along = _direction(index, every, mask, generator)
            plus, minus = (
                _roll(
                    objective, env, group, step, env.load_state_dict(nominal.states[step]),
                    nominal.alive[step], sign * delta * along,
                )
                for sign in (1.0, -1.0)
            )  # fmt: skip
            odd = plus.returns - minus.returns
            for kind, change in enumerate((odd, plus.rewards - minus.rewards)):
                estimate = (discount * change / (2.0 * delta)).unsqueeze(-1) * along
                if every:
                    slopes[kind, :, step] += estimate
                else:
                    slopes[kind, index % 2, step] += estimate / (directions // 2)
            broken |= plus.broken | minus.broken
            moved = nominal.alive[step] & (along != 0).any(-1)
            even = plus.returns + minus.returns - 2.0 * nominal.tails[step]
            pairs.append(torch.stack((odd.abs(), even.abs()), dim=-1)[moved])
    reference = ReferenceGradient(
        slopes=slopes[0],
        reward_slopes=slopes[1],
        obs=torch.stack(nominal.obs),
        actions=torch.stack(nominal.actions),
        returns=nominal.returns,
        sound=~broken,
        terminated=nominal.terminated,
    )
    return reference, torch.cat(pairs)


def _direction(index: int, every: bool, mask: Float[Tensor, "N A"], generator: torch.Generator) -> Float[Tensor, "N A"]:
    """One action dimension, or random signs in all of them."""
    if every:
        along = torch.zeros_like(mask)
        along[:, index] = mask[:, index]
        return along
    signs = torch.randint(0, 2, mask.shape, generator=generator, device=mask.device).to(mask) * 2.0 - 1.0
    return signs * mask


def _roll(
    objective: RealObjective,
    env: VectorEnv,
    group: int,
    first: int,
    obs: Float[Tensor, "N O"],
    alive: Bool[Tensor, " N"],
    displacement: Float[Tensor, "N A"] | None,
) -> _Rollout:
    """Closed loop from `env`'s current state at step `first`; without a displacement every state is saved."""
    device, begun = objective.device, alive
    broken, terminated = torch.zeros_like(alive), torch.zeros_like(alive)
    rewards: list[Tensor] = []
    continues: list[Tensor] = []
    columns: tuple[list[Any], list[Any], list[Any], list[Any]] = ([], [], [], [])
    final = obs = obs.to(device)
    for step in range(first, objective.horizon):
        action = objective.act(step, group, obs)
        if displacement is not None and step == first:
            action = displaced(action, displacement)
        if displacement is None:
            for column, item in zip(columns, (alive, env.state_dict(), obs, action), strict=True):
                column.append(item)
        done = env.step(action.cpu())
        faulty = torch.zeros_like(alive)
        faulty[[fault.index for fault in done.faults if not fault.at_start]] = True
        broken |= alive & faulty
        counted = alive & ~faulty
        ended = counted & done.terminated.to(device)
        terminated |= ended
        rewards.append(torch.where(counted, objective.reward(done.reward), 0.0).double())
        continues.append((~ended).double())
        final = torch.where(counted.unsqueeze(-1), done.final_obs.to(device), final)
        alive = counted & ~done.done.to(device)
        obs = done.obs.to(device)
    value = objective.value(final).double()
    gamma = objective.gamma.double()
    whole, alone = (
        torch.where(begun, discounted_return(torch.stack(rewards), behind, torch.stack(continues), gamma), 0.0)
        for behind in (value, torch.zeros_like(value))
    )
    return _Rollout(whole, alone, broken, _tails(rewards, continues, value, gamma, columns[0]), *columns, terminated)


def _tails(
    rewards: list[Tensor], continues: list[Tensor], value: Tensor, gamma: Tensor, alive: list[Tensor]
) -> list[Tensor]:
    """The return from each step on, 0 for copies that had ended before it."""
    tails = []
    for step, running in enumerate(alive):
        total = discounted_return(torch.stack(rewards[step:]), value, torch.stack(continues[step:]), gamma)
        tails.append(torch.where(running, total, 0.0))
    return tails
