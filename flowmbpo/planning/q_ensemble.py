"""The Q ensemble and the policy prior of a TD-MPC2 checkpoint: its own planner's values.

As TD-MPC2 defines them (Hansen et al. 2024, and its published code): Q(z, e, a) is a distribution over
symlog values; a plan ends in the average of two members drawn at random, at an action sampled from the
prior, tanh(mean + std eps), log std = low + (high - low)/2 (tanh(raw) + 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.checkpoints.payload import architecture_mismatch
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.nets.noise import standard_normal
from flowmbpo.nets.two_hot import symexp, two_hot_expectation
from flowmbpo.planning.values import Objective

KIND = "tdmpc2"
MEMBERS_DRAWN = 2


class ImportedPlanner(nn.Module):
    """The Gaussian prior pi(a | z, e_task), and Q_1..Q_N(z, e_task, a) as logits of `bins`, decoded to real units."""

    bins: Tensor

    def __init__(
        self, pi: nn.Sequential, members: list[nn.Sequential], bins: Tensor, log_std_bounds: tuple[float, float]
    ) -> None:
        super().__init__()
        self.pi, self.members = pi, nn.ModuleList(members)
        self.log_std_bounds = log_std_bounds
        self.register_buffer("bins", bins, persistent=False)

    def policy(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None
    ) -> Float[Tensor, "B A"]:
        """A sample of the prior, squashed by tanh and masked; without a generator tanh of the mean."""
        mean, raw = self.pi(context.append_to(z)).chunk(2, dim=-1)
        if generator is not None:
            low, high = self.log_std_bounds
            log_std = low + 0.5 * (high - low) * (raw.tanh() + 1.0)
            mean = mean + log_std.exp() * standard_normal(mean, generator)
        action: Tensor = mean.tanh() * context.action_mask
        return action

    def terminal(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
    ) -> Float[Tensor, " B"]:
        """The average, at a sample of the prior, of two members drawn without replacement, the same for every row."""
        inputs = torch.cat([z, context.embedding, self.policy(z, context, generator)], dim=-1)
        order = torch.randperm(len(self.members), generator=generator, device=generator.device)
        drawn = [self.members[index] for index in order[:MEMBERS_DRAWN].tolist()]
        values = [symexp(two_hot_expectation(member(inputs), self.bins)) for member in drawn]
        return torch.stack(values).mean(0)


def imported_objective(agent: Agent, saved: Mapping[str, Any], where: str) -> Objective:
    """The prior and the Q ensemble of a checkpoint's `planner` entry over the agent's world model, in real reward.

    They are on the agent's device and in evaluation mode; gamma is each task's own, as TD-MPC2 sets it.
    `where` names the file. Raises CheckpointError where the entry is of another kind or does not fit the agent.
    """
    if saved.get("kind") != KIND:
        raise CheckpointError(
            f"{where}: its planner is of kind {saved.get('kind')!r}; this flowmbpo plans with '{KIND}'. "
            "Import the original file again."
        )
    config, action_dim = agent.world_model.config, agent.spec.action_dim
    context_dim = config.latent_dim + config.task_dim
    try:
        pi, q, bins = dict(saved["pi"]), dict(saved["q"]), int(saved["bins"])
        low, high, *log_std = (float(saved[key]) for key in ("low", "high", "log_std_min", "log_std_max"))
        members = len(q["0.linear.weight"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: its planner is incomplete ({error}); import the original file again."
        ) from error
    prior = _loaded(pi, context_dim, 2 * action_dim, f"{where}: planner.pi")
    states = [{name: value[member] for name, value in q.items()} for member in range(members)]
    networks = [_loaded(state, context_dim + action_dim, bins, f"{where}: planner.q") for state in states]
    planner = ImportedPlanner(prior, networks, torch.linspace(low, high, bins), (log_std[0], log_std[1]))
    planner.eval().to(agent.world_model.tasks.action_masks.device)
    model, real_reward = agent.world_model, agent.reward_normalizer.inverse
    return Objective(
        name=KIND,
        model=model,
        policy=planner.policy,
        reward=lambda z, action, context: real_reward(model.reward(z, action, context)),
        terminal=planner.terminal,
        gamma=lambda context: context.discount,
    )


def _loaded(state: dict[str, Tensor], in_dim: int, out_dim: int, where: str) -> nn.Sequential:
    """The network of the saved names, its hidden widths read from the tensors."""
    units: list[int] = []
    while f"{len(units)}.linear.weight" in state:
        units.append(int(state[f"{len(units)}.linear.weight"].shape[0]))
    with torch.random.fork_rng(devices=[]):  # the initial weights are thrown away
        network = normed_mlp(in_dim, units, out_dim, normed_output=False)
    mismatch = architecture_mismatch(network.state_dict(), state)
    if mismatch is not None:
        raise CheckpointError(f"{where}: {mismatch}")
    network.load_state_dict(state)
    return network
