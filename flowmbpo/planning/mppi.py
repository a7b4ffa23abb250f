"""MPPI in the world model, for many environments at once (TD-MPC2's planner, Hansen et al. 2024).

Letters: N environments, M action sequences of each, P of them the policy's, K elites, H horizon, A action,
I iterations.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.config.planner import MPPIConfig
from flowmbpo.models.task_context import TaskContext
from flowmbpo.planning.values import Objective

log = logging.getLogger("flowmbpo")


@dataclass(frozen=True)
class PlanNoise:
    """Everything random of one plan but what stochastic networks draw: normal, uniform on [0, 1), normal."""

    proposals: Float[Tensor, "I H N R A"]  # R = M - P
    choice: Float[Tensor, " N"]
    action: Float[Tensor, "N A"]


@dataclass(frozen=True)
class PlanCounts:
    """What planning took: plans (one per environment and step), sequences valued, those whose value was not
    finite, and plans of which none was, where the policy's own action was taken."""

    plans: int
    sequences: int
    nonfinite: int
    fallbacks: int


@dataclass(frozen=True)
class Elites:
    """The best sequences by falling value, and their weights, which sum to 1 (all 0 where none was finite)."""

    actions: Float[Tensor, "H N K A"]
    weights: Float[Tensor, "N K"]

    def moments(self) -> tuple[Float[Tensor, "H N A"], Float[Tensor, "H N A"]]:
        """Weighted mean and (population) standard deviation of the actions."""
        weights = self.weights.unsqueeze(-1)
        mean = (weights * self.actions).sum(2)
        variance = (weights * (self.actions - mean.unsqueeze(2)).square()).sum(2)
        return mean, variance.sqrt()

    def choose(self, uniform: Float[Tensor, " N"]) -> Float[Tensor, "N A"]:
        """The first action of one elite, drawn by weight with the uniform numbers given."""
        cumulative = self.weights.cumsum(-1)
        index = (cumulative <= uniform.unsqueeze(-1) * cumulative[:, -1:]).sum(-1)
        last = (self.weights > 0.0).sum(-1).sub(1).clamp(min=0)  # rounding must not reach an elite of weight 0
        index = torch.minimum(index, last)
        return self.actions[0, torch.arange(len(index), device=index.device), index]


def select_elites(
    actions: Float[Tensor, "H N M A"], values: Float[Tensor, "N M"], elites: int, temperature: float
) -> Elites:
    """The `elites` best of every environment, weighted by exp(temperature (value - best)).

    A value of minus infinity has weight 0, whatever its actions.
    """
    best, index = values.topk(elites, dim=-1)
    excess = (best - best[:, :1]).masked_fill(best.isneginf(), -torch.inf)  # -inf - -inf is no number
    weights = (temperature * excess).exp()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)  # at least 1: the best one's own
    horizon, _, _, width = actions.shape
    chosen = actions.gather(2, index[None, :, :, None].expand(horizon, -1, -1, width))
    chosen = chosen.masked_fill(~(weights > 0.0)[None, :, :, None], 0.0)  # they may hold NaN, and 0 NaN is NaN
    return Elites(chosen, weights)


class MPPIPlanner:
    """Plans every step anew, from the mean of the plan before shifted by one step.

    Sequences of a value that is not finite count as minus infinity. `generator` decides every draw: equal
    generators, observations and episode starts give equal actions.
    """

    def __init__(self, objective: Objective, config: MPPIConfig, generator: torch.Generator) -> None:
        self.objective = objective
        self.config = config
        self.generator = generator
        self.mean: Float[Tensor, "H N A"] | None = None
        self._plans = 0
        self._sequences = 0
        self._nonfinite = torch.zeros((), dtype=torch.long, device=generator.device)
        self._fallbacks = 0

    @property
    def counts(self) -> PlanCounts:
        """What all plans so far took."""
        return PlanCounts(self._plans, self._sequences, int(self._nonfinite), self._fallbacks)

    def start(self, begins: Bool[Tensor, " N"]) -> None:
        """Forget the plans of the environments whose next observation begins an episode."""
        if self.mean is not None:
            self.mean = self.mean.masked_fill(begins.to(self.mean.device)[:, None], 0.0)

    @torch.no_grad()  # a search by sampling: nothing is differentiated
    def act(self, obs: Float[Tensor, "N O"], task: Int[Tensor, " N"]) -> Float[Tensor, "N A"]:
        """The actions to take at real observations of all N environments, always the same N in their order."""
        model = self.objective.model
        context = model.context(task)
        start = model.encode(obs, context)
        shape = (self.config.horizon, *context.action_mask.shape)
        mean = context.action_mask.new_zeros(shape) if self.mean is None else shifted(self.mean)
        if mean.shape != shape:
            raise ValueError(f"the planner has plans of shape {tuple(mean.shape)}; these observations need {shape}")
        action, self.mean = self.search(start, context, mean, self._noise(context))
        return action

    def search(
        self, start: Float[Tensor, "N D"], context: TaskContext, mean: Float[Tensor, "H N A"], noise: PlanNoise
    ) -> tuple[Float[Tensor, "N A"], Float[Tensor, "H N A"]]:
        """The action of every environment and the mean that its next plan goes on from.

        One iteration: sequences clamp(mean + std noise, -1, 1), masked, beside the policy's; their values;
        mean and std of the elites by weight. The std begins at `max_std` in every plan.
        """
        config, mask = self.config, context.action_mask
        policy_actions = self._policy_actions(start, context)
        std = torch.full_like(mean, config.max_std)
        for proposals in noise.proposals:
            sampled = (mean.unsqueeze(2) + std.unsqueeze(2) * proposals).clamp(-1.0, 1.0) * mask.unsqueeze(1)
            actions = torch.cat([policy_actions, sampled], dim=2)
            values = self._values(start, actions, context)
            elites = select_elites(actions, values, config.elites, config.temperature)
            usable = elites.weights[:, :1] > 0.0  # [N, 1]: some sequence had a finite value
            new_mean, new_std = elites.moments()
            mean = torch.where(usable, new_mean, mean)
            std = torch.where(usable, new_std.clamp(config.min_std, config.max_std), std)
        action = elites.choose(noise.choice)
        if config.explore:
            action = (action + std[0] * noise.action).clamp(-1.0, 1.0) * mask
        action, mean = self._fall_back(action, mean, usable, start, context)
        self._plans += len(action)
        return action, mean

    def _noise(self, context: TaskContext) -> PlanNoise:
        config, generator = self.config, self.generator
        num_envs, width = context.action_mask.shape
        sampled = config.samples - config.policy_samples
        iterations, dtype, device = config.iterations_for(width), context.action_mask.dtype, generator.device
        shape = (iterations, config.horizon, num_envs, sampled, width)
        return PlanNoise(
            torch.randn(shape, generator=generator, dtype=dtype, device=device),
            torch.rand(num_envs, generator=generator, dtype=dtype, device=device),
            torch.randn(num_envs, width, generator=generator, dtype=dtype, device=device),
        )

    def _policy_actions(self, start: Tensor, context: TaskContext) -> Float[Tensor, "H N P A"]:
        config, count = self.config, self.config.policy_samples
        num_envs, width = context.action_mask.shape
        if not count:
            return context.action_mask.new_zeros(config.horizon, num_envs, 0, width)
        rows = _rows(num_envs, count, start.device)
        proposed = self.objective.propose(start[rows], context.rows(rows), config.horizon, self.generator)
        return proposed.view(config.horizon, num_envs, count, width)

    def _values(self, start: Tensor, actions: Float[Tensor, "H N M A"], context: TaskContext) -> Float[Tensor, "N M"]:
        """Values in groups of whole environments; minus infinity where one is not finite."""
        horizon, num_envs, samples, width = actions.shape
        group = max(self.config.rows // samples, 1)
        parts = []
        for first in range(0, num_envs, group):
            here = actions[:, first : first + group]
            rows = first + _rows(here.shape[1], samples, start.device)
            sequences = here.reshape(horizon, -1, width)
            parts.append(self.objective.values(start[rows], sequences, context.rows(rows), self.generator))
        values = torch.cat(parts).view(num_envs, samples)
        finite = values.isfinite()
        self._sequences += values.numel()
        self._nonfinite += (~finite).sum()
        return values.masked_fill(~finite, -torch.inf)

    def _fall_back(
        self, action: Tensor, mean: Tensor, usable: Bool[Tensor, "N 1"], start: Tensor, context: TaskContext
    ) -> tuple[Float[Tensor, "N A"], Float[Tensor, "H N A"]]:
        """The policy's deterministic action, and no plan, where no sequence had a finite value."""
        lost = int((~usable).sum())
        if not lost:
            return action, mean
        if not self._fallbacks:
            log.warning(
                "no action sequence of a plan has a finite value: the policy's own action is taken. "
                "The results count how often."
            )
        self._fallbacks += lost
        own = self.objective.policy(self.objective.model.latent(start), context, None)
        return torch.where(usable, action, own), torch.where(usable, mean, 0.0)


def shifted(mean: Float[Tensor, "H N A"]) -> Float[Tensor, "H N A"]:
    """The plan one step later: its first action is done, its new last one 0."""
    return torch.cat([mean[1:], torch.zeros_like(mean[:1])])


def _rows(num_envs: int, times: int, device: torch.device) -> Int[Tensor, " NM"]:
    """0 0 0 1 1 1 ...: each of `num_envs` rows `times` times."""
    return torch.arange(num_envs, device=device).repeat_interleave(times)
