"""The reference by automatic differentiation: through environment, encoder and actor."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.gradient.objective import RealObjective, ReferenceGradient
from flowmbpo.diagnostics.gradient.starts import Starts
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.differentiable import DifferentiableCopies
from flowmbpo.training.returns import discounted_return
from flowmbpo.training.updates import frozen


def exact_gradient(objective: RealObjective, env: VectorEnv, starts: Starts) -> ReferenceGradient:
    """Backpropagation through a differentiable `env`.

    The gradient is pathwise: of what happens under the noise that was drawn. Where reward or
    transition jump in the state, the jump's own contribution is not in it. Starts whose derivative is
    not finite are not sound; what a simulator does behind a termination is not differentiated.
    """
    parts = []
    for group, state in enumerate(starts.states):
        env.load_state_dict(state)
        copies = env.differentiable()
        assert copies is not None
        parts.append(_differentiate(objective, copies, group))
    slopes = torch.stack([part.slopes for part in parts], dim=2)
    returns = torch.stack([part.returns for part in parts])
    return ReferenceGradient(
        slopes=slopes,
        reward_slopes=torch.stack([part.reward_slopes for part in parts], dim=2),
        obs=torch.stack([part.obs for part in parts], dim=1),
        actions=torch.stack([part.actions for part in parts], dim=1),
        returns=returns,
        sound=returns.isfinite() & slopes.isfinite().all(-1).all(1).all(0),
        terminated=torch.stack([part.terminated for part in parts]),
        bend=float("nan"),
    )


def _differentiate(objective: RealObjective, copies: DifferentiableCopies, group: int) -> ReferenceGradient:
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
            rewards.append(torch.where(alive, objective.learning_reward(done.reward), 0.0).double())
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
        sound=whole.isfinite(),
        terminated=~alive,
        bend=float("nan"),
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
            found = torch.autograd.grad(returns[rows].sum(), nudges, retain_graph=True, allow_unused=True)
            for step, (slope, (_, action)) in enumerate(zip(found, taken, strict=True)):
                if slope is not None:
                    slopes[step, rows] = (slope * (1.0 - action.square()))[rows]
    return slopes.expand(2, *slopes.shape)
