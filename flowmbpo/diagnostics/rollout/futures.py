"""Samples of the model's futures: states and reward sums after k steps, and whether the task has ended.

Letters: B starts, M samples, T steps, D latent, A action.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.rollout.scores import sample_energy
from flowmbpo.diagnostics.statistics import Interval, mean_interval
from flowmbpo.diagnostics.subject import ENV_SEED_BASE, Subject
from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.toy.system import ToyBatch, ToySystem
from flowmbpo.evaluation.episodes import ClosedLoop
from flowmbpo.models.agent import Agent
from flowmbpo.models.open_loop import rollout
from flowmbpo.models.task_context import TaskContext

FUTURE_STEPS = (1, 4, 8, 16)


class Futures(NamedTuple):
    """Latents after k steps, sums of the k predicted rewards in real units, and endings up to then.

    Behind a predicted ending there are no rewards; without a termination head nothing ever ends.
    """

    z: Float[Tensor, "M B D"]
    reward_sum: Float[Tensor, "M B"]
    ended: Bool[Tensor, "M B"]


@torch.no_grad()  # forecasts are judged, not trained
def sample_futures(
    agent: Agent,
    start: Float[Tensor, "B D"],
    action: Float[Tensor, "T B A"],
    context: TaskContext,
    members: int,
    generator: torch.Generator,
) -> dict[int, Futures]:
    """M futures of each start under the given actions, by the steps k of FUTURE_STEPS that lie within T."""
    model, shape, every = agent.world_model, (members, len(start)), context.repeat(members)
    total = torch.zeros(members * len(start), dtype=torch.float64, device=start.device)
    alive = torch.ones_like(total, dtype=torch.bool)
    futures = {}
    walk = rollout(
        model, start.repeat(members, 1), lambda step, z: action[step].repeat(members, 1), every, len(action), generator
    )
    for step, (z, taken, z_next) in enumerate(walk, start=1):
        total += alive * agent.predict_reward(z, taken, every)
        if model.termination_head is not None:
            chance = torch.rand(len(total), generator=generator, device=total.device)
            alive &= chance < model.continuation(z_next, every)
        if step in FUTURE_STEPS:
            futures[step] = Futures(z_next.view(*shape, -1), total.view(shape).clone(), ~alive.view(shape))
    return futures


STARTS = REPLICAS = 64


@dataclass(frozen=True)
class ConditionalStep:
    """After `step` transitions from one start under fixed actions: M predicted against R real futures, mean over S.

    `states` and `rewards` (the reward sum's) are energy distances. `low_bias` is the predicted probability of a low
    reward sum less the true one, `low_error` their squared difference. All are 0 on average for the true model.
    """

    step: int
    starts: int
    replicas: int
    states: Interval
    rewards: Interval
    low_bias: Interval
    low_error: Interval

    def __str__(self) -> str:
        energy = f"energy distance of states {self.states}, of reward sums {self.rewards}"
        chance = f"P(low reward sum) less its truth {self.low_bias}, squared error {self.low_error}"
        return f"{energy}; {chance}  ({self.starts} starts)"


def measure_conditional(subject: Subject, low: Mapping[int, float]) -> tuple[ConditionalStep, ...] | None:
    """M predicted and R real futures of S states of the policy, or None; `low[k]` bounds a low sum of k rewards."""
    tasks = subject.agent.spec.tasks
    if subject.make_env is None or len(tasks) > 1 or tasks[0].simulator != "toy":
        return None  # before other simulators are opened: that may take a process for each copy
    with closing(subject.open_env(STARTS)) as env:
        if not isinstance(env, BatchVectorEnv) or not isinstance(env.simulator, ToyBatch):
            return None
        system = env.simulator.system
        endless = not system.task.can_terminate  # `live_through` does not stop where a task ends itself
        if not (endless and system.noise_dim) or system.task.episode_length <= max(FUTURE_STEPS):
            return None
        rng = torch.Generator().manual_seed(subject.seed)  # on the CPU, where the toys live
        state, action = _record_starts(subject, env, rng)

    device, count = subject.device, len(state)
    task = torch.zeros(count, dtype=torch.long, device=device)
    real_obs, real_sums = live_through(system, state, action, REPLICAS, rng)
    start, context = subject.encode(system.observe(state).to(device), task)
    generator = subject.generator("true futures")
    futures = sample_futures(subject.agent, start, action.to(device), context, REPLICAS, generator)
    steps = []
    for step, threshold in low.items():
        encoded, _ = subject.encode(real_obs[step].flatten(0, 1).to(device), task.repeat(REPLICAS))
        z = subject.agent.world_model.latent(encoded).view(REPLICAS, count, -1)
        sums, truth = futures[step].reward_sum.cpu(), real_sums[step]
        predicted, true = ((total < threshold).double().mean(0) for total in (sums, truth))
        figures = (
            sample_energy(futures[step].z.transpose(0, 1), z.transpose(0, 1)),
            sample_energy(sums.T.unsqueeze(-1), truth.T.unsqueeze(-1)),
            predicted - true,
            squared_difference(predicted, true, REPLICAS),
        )
        steps.append(ConditionalStep(step, count, REPLICAS, *map(mean_interval, figures)))
    return tuple(steps)


def _record_starts(
    subject: Subject, env: BatchVectorEnv, rng: torch.Generator
) -> tuple[Float[Tensor, "S X"], Float[Tensor, "T S A"]]:
    """Each copy's state at a random time of its first episode, and what the policy did then."""
    generator = subject.generator("conditional")
    horizon, count = max(FUTURE_STEPS), env.num_envs
    times = torch.randint(env.spec.tasks[0].episode_length - horizon, (count,), generator=rng)
    seed = ENV_SEED_BASE + (2 << 32) + subject.seed
    loop = ClosedLoop(lambda obs, task: subject.agent.act(obs, task, generator), env, seed, device=subject.device)
    states, actions = [], []
    for _ in range(int(times.max()) + horizon):
        states.append(env.state_dict()["simulator"]["state"])
        actions.append(loop.advance().action)
    copies, steps = torch.arange(count), times + torch.arange(horizon).unsqueeze(1)
    return torch.stack(states)[times, copies], torch.stack(actions)[steps, copies]


def squared_difference(p: Float[Tensor, " S"], q: Float[Tensor, " S"], n: int) -> Float[Tensor, " S"]:
    """(P - Q)^2 of two probabilities, unbiased, from their shares p and q in n >= 2 independent trials each."""
    return (p - q).square() - (p * (1.0 - p) + q * (1.0 - q)) / (n - 1)


@torch.no_grad()  # the toy is differentiable; nothing is differentiated here
def live_through(
    system: ToySystem,
    state: Float[Tensor, "S X"],
    action: Float[Tensor, "T S A"],
    replicas: int,
    generator: torch.Generator,
) -> tuple[dict[int, Float[Tensor, "R S O"]], dict[int, Float[Tensor, "R S"]]]:
    """Observations after, and reward sums over, the steps of FUTURE_STEPS of R real futures with fresh noise."""
    shape, state = (replicas, len(state)), state.repeat(replicas, 1)
    total = torch.zeros(len(state), dtype=torch.float64)
    observed, summed = {}, {}
    for step, taken in enumerate(action, start=1):
        noise = torch.rand(len(state), system.noise_dim, generator=generator)
        state, reward = system.transition(state, taken.repeat(replicas, 1), noise)
        total += reward
        if step in FUTURE_STEPS:
            observed[step] = system.observe(state).view(*shape, -1)
            summed[step] = total.view(shape).clone()
    return observed, summed
