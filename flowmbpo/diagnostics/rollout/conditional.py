"""True futures of one start state: a random toy is lived through again and again with fresh noise.

Other simulators cannot do this: an episode's randomness is fixed by its seed, and their states cannot be set.
Letters: S starts, R real futures of each, M predicted ones, L steps of an episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.rollout.energy import sample_energy
from flowmbpo.diagnostics.rollout.futures import FUTURE_STEPS, sample_futures
from flowmbpo.diagnostics.statistics import Interval, mean_interval
from flowmbpo.diagnostics.subject import ENV_SEED_BASE, Subject
from flowmbpo.envs.batch.vector import BatchVectorEnv
from flowmbpo.envs.toy.batch import ToyBatch
from flowmbpo.envs.toy.system import ToySystem

STARTS = 64
REPLICAS = 64


@dataclass(frozen=True)
class ConditionalStep:
    """After `step` transitions from one start under fixed actions: M predicted against R real futures, mean over S.

    `states` and `rewards` (the reward sum's) are energy distances. A low reward sum lies below the threshold of
    the pooled event: `low_bias` is its predicted probability less the true one, `low_error` their squared
    difference. All are unbiased: 0 on average for the true model.
    """

    step: int
    starts: int
    replicas: int
    states: Interval
    rewards: Interval
    low_bias: Interval
    low_error: Interval

    def __str__(self) -> str:
        return (
            f"energy distance of states {self.states}, of reward sums {self.rewards}; P(low reward sum) less its truth "
            f"{self.low_bias}, squared error {self.low_error}  ({self.starts} starts)"
        )


@dataclass(frozen=True)
class _Start:
    """Toy states [S, state], and the actions [T, S, A] that the policy took from them on."""

    state: Tensor
    action: Tensor


def measure_conditional(subject: Subject, low: Mapping[int, float]) -> tuple[ConditionalStep, ...] | None:
    """Compare M predicted with R real futures of S states of the policy; None where none can be had.

    `low[k]` is the threshold of a low sum of k rewards; the steps compared are its keys.
    """
    tasks = subject.agent.spec.tasks
    if subject.make_env is None or len(tasks) > 1 or tasks[0].simulator != "toy":
        return None  # before other simulators are opened: that may take a process for each copy
    env = subject.open_env(STARTS)
    try:
        if not isinstance(env, BatchVectorEnv) or not isinstance(env.simulator, ToyBatch):
            return None
        system = env.simulator.system
        endless = not system.task.can_terminate  # `live_through` does not stop where a task ends itself
        if not (endless and system.noise_dim) or system.task.episode_length <= max(FUTURE_STEPS):
            return None
        rng = torch.Generator().manual_seed(subject.seed)  # on the CPU, where the toys live
        start = _record_starts(subject, env, rng)
    finally:
        env.close()
    return tuple(_compare(subject, system, start, low, rng))


def _record_starts(subject: Subject, env: BatchVectorEnv, rng: torch.Generator) -> _Start:
    """Each copy's state at a random time of its first episode, and what the policy did then."""
    generator = subject.generator("conditional")
    horizon, count = max(FUTURE_STEPS), env.num_envs
    latest = env.spec.tasks[0].episode_length - horizon
    times = torch.randint(latest, (count,), generator=rng)
    obs = env.reset(ENV_SEED_BASE + (2 << 32) + subject.seed)
    states, actions = [], []
    for _ in range(int(times.max()) + horizon):
        states.append(env.state_dict()["simulator"]["state"])
        action = subject.agent.act(obs.to(subject.device), env.task_ids.to(subject.device), generator).to(obs.device)
        actions.append(action)
        obs = env.step(action).obs
    copies = torch.arange(count)
    steps = times + torch.arange(horizon).unsqueeze(1)
    return _Start(torch.stack(states)[times, copies], torch.stack(actions)[steps, copies])


def _compare(
    subject: Subject, system: ToySystem, start: _Start, low: Mapping[int, float], rng: torch.Generator
) -> list[ConditionalStep]:
    generator = subject.generator("true futures")
    device, count = subject.device, len(start.state)
    task = torch.zeros(count, dtype=torch.long, device=device)
    real_obs, real_sums = live_through(system, start.state, start.action, REPLICAS, rng)
    state, context = subject.encode(system.observe(start.state).to(device), task)
    futures = sample_futures(subject.agent, state, start.action.to(device), context, REPLICAS, generator)
    found = []
    for step, threshold in low.items():
        encoded, _ = subject.encode(real_obs[step].flatten(0, 1).to(device), task.repeat(REPLICAS))
        z = subject.agent.world_model.latent(encoded).view(REPLICAS, count, -1)
        sums, truth = futures.reward_sum[step].cpu(), real_sums[step]
        predicted, true = ((total < threshold).double().mean(0) for total in (sums, truth))
        found.append(
            ConditionalStep(
                step=step,
                starts=count,
                replicas=REPLICAS,
                states=mean_interval(sample_energy(futures.z[step].transpose(0, 1), z.transpose(0, 1))),
                rewards=mean_interval(sample_energy(sums.T.unsqueeze(-1), truth.T.unsqueeze(-1))),
                low_bias=mean_interval(predicted - true),
                low_error=mean_interval(squared_difference(predicted, true, REPLICAS)),
            )
        )
    return found


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
    shape = (replicas, len(state))
    state = state.repeat(replicas, 1)
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
