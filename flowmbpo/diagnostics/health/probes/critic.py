"""The value function against what the policy really earns, and against its own targets.

A TD(lambda) target is linear in rewards and values: T = R + B, with R the target of the same imagined rewards where
every value is 0. A value that fits its targets has V - B = R in every state; one that is c times too large has
V - B = c R exactly, however well V and T go together: B follows V.

Letters: T longest episode, N episodes, S judged states, M members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.health.experience import within_tasks
from flowmbpo.diagnostics.health.probes import Figures, ratio
from flowmbpo.diagnostics.health.probes.weights import read_history
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.evaluation.episodes import Episodes
from flowmbpo.training import updates
from flowmbpo.training.returns import td_lambda

STARTS = 256  # states whose TD(lambda) targets are imagined
MOST_STATES = 1024
LARGEST_BOOTSTRAP = 0.5  # share of a judged state's return that the critic's own value may make up
LEAST_SHARE = 0.25  # of an episode's states are judged however much is bootstrapped
SMALLEST_MEMBER = 0.25  # of the liveliest member's spread; healthy runs: 0.88 and more
SMALLEST_MEMBER_GRADIENT = 0.01  # of the steepest member's; healthy runs: 0.83 and more
SMALLEST_RETURN_SPREAD = 1e-3  # of the returns' size; below it no spread can be judged
CONSTANT = 1e-6  # of the values' or the targets' size: rounding; the youngest healthy critic (10 epochs): 4e-5
LEAST_REWARD_SPREAD = 0.05  # of their size: steps that all earn the same show no slopes
LEAST_STEPS = 16  # windows that do not overlap
SIGMAS = 2.0
# Spread of V over that of its targets: healthy runs 0.90 to 1.11. A constant V has 0; one shrunk to a hundredth has up
# to 0.15, because the rewards within the horizon still make the targets vary; to a twentieth up to 0.5.
SMALLEST_TARGET_RATIO = 0.2
LOW_TARGET_RATIO = 0.6  # suspicious, and enough where V does not vary with real returns either
LOW_RETURN_RATIO = 0.1  # of real returns' spread; healthy runs: 0.12 to 1.35
# Slope and residual of the rewards accounted for, by how far the critic's weights have come. Sound ones that have
# settled: 0.83 and more, up to 0.48. One that moves falls behind for some epochs when the policy changes: 0.20, 0.86.
# Large values that are still growing hold next to nothing of the rewards of one horizon: -0.01 and more, up to 1.01.
SETTLED, MOVING = (0.35, 0.7), (-0.1, 0.95)
SETTLED_TRAVEL = 0.3
LARGEST_LAG = 1.5  # residual of a value behind its targets: sound ones up to 1.1, V that is T and noise of twice T 2.0
LEAST_SPREAD = 0.1  # of targets over states, in RMS sizes of R: below it noise is all there is to see
LOW_TARGET_SPREAD = 0.35  # a young value of full travel that varies by more has learnt something else than its targets
FULL_TRAVEL = 0.7  # of what Adam can have moved a weight by; young healthy critics: 0.97 and more


def measure_critic(subject: Subject, *, light: bool = False) -> Figures:
    """The value against its own targets in imagination, member by member; then against fresh sampled episodes.

    `light`: without the episodes, and without the optimiser's memory.
    """
    imagined = imagine_values(subject, STARTS)
    value, spreads, target_spread = imagined.value, imagined.values.std(-1), float(imagined.targets.std())
    size = max(float(value.square().mean().sqrt()), target_spread)
    figures: Figures = {
        "spread_over_targets": ratio(float(value.std()), target_spread, math.nan),
        "value_varies": float(value.std()) > CONSTANT * size,
        "rewards_accounted_for": accounted_rewards(imagined.values, imagined.targets, imagined.rewards),
        "beside_returns": "",
        "members": len(spreads),
        "member_spreads": spreads.tolist(),
        "dead_members": dead_members(spreads, imagined.slopes),
    }
    if not light:
        figures |= read_history(subject, "critic")[0] | judge_values(subject, subject.episodes)
        figures["real_rewards_accounted_for"] = accounted_real_rewards(subject, subject.episodes)
    return figures | {"state": state_of_value(figures, subject)}


@dataclass(frozen=True)
class Imagined:
    """Of start states: each member's value, TD(lambda) targets, their part of rewards alone, and mean |d V_m / d z|."""

    values: Float[Tensor, "M S"]
    value: Float[Tensor, " S"]
    targets: Float[Tensor, " S"]
    rewards: Float[Tensor, " S"]
    slopes: Float[Tensor, " M"]


def imagine_values(subject: Subject, count: int) -> Imagined:
    """Values and targets of `count` start states, drawn and imagined as training does."""
    agent, generator = subject.agent, subject.generator("critic")
    config = subject.config.training.model_copy(update={"noise_replicas": 1})
    start, context = subject.starts(count, generator)
    with torch.no_grad():  # targets carry no gradient in training either
        objective = updates.actor_objective(agent, start, context, config, generator)
        targets = updates.critic_targets(agent, objective, config).target
        path = objective.imagination
        no_values = torch.zeros_like(path.rewards)
        rewards = td_lambda(path.rewards, no_values, path.continues, objective.gamma, config.lam)[0]
    z = agent.world_model.latent(start).detach().requires_grad_()
    values = agent.critic(z, context)
    slopes = torch.zeros(len(values), device=z.device)
    for index, member in enumerate(values if values.requires_grad else ()):
        (gradient,) = torch.autograd.grad(member.sum(), z, retain_graph=True, allow_unused=True, materialize_grads=True)
        slopes[index] = gradient.norm(dim=-1).mean()
    with torch.no_grad():  # figures of a trained critic
        value = agent.critic.value(z, context)
    return Imagined(values.detach(), value, targets[:count], rewards, slopes)


def accounted_rewards(
    values: Float[Tensor, "M S"], targets: Float[Tensor, " S"], rewards: Float[Tensor, " S"]
) -> Figures:
    """The least-squares slope of V - B on R over start states (1 where the value fits), and what is left of V - T.

    V is the mean of the members (each is regressed on T). `standard_error` is the slope's (White 1980), `low` and
    `high` are two of them from it. `residual` and `spread` are the standard deviations of V - T and of V over that of
    T, `target_spread` that of T over the RMS of R. nan where R (or T) is the same in all states.
    """
    value, target, reward = values.double().mean(0), targets.double(), rewards.double()
    centred = reward - reward.mean()
    accounted = value - (target - reward)
    square, spread, size = float(centred @ centred), float(target.std()), float(reward.square().mean().sqrt())
    slope = error = math.nan
    if square > (1e-6 * size) ** 2 * len(reward):
        slope = float(accounted @ centred) / square
        left = accounted - accounted.mean() - slope * centred
        error = float((left * centred).norm()) / square
    return {
        "slope": slope,
        "standard_error": error,
        "low": None if math.isnan(slope) else slope - SIGMAS * error,
        "high": slope + SIGMAS * error,
        "residual": ratio(float((value - target).std()), spread, math.nan),
        "spread": ratio(float(value.std()), spread, math.nan),
        "target_spread": ratio(spread, size, math.nan),
    }


def dead_members(spreads: Float[Tensor, " M"], slopes: Float[Tensor, " M"]) -> list[int]:
    """Members that do not vary, or pass no gradient to the latent, while others do."""
    flat = (slopes <= SMALLEST_MEMBER_GRADIENT * slopes.max()) & (spreads.max() > 0.0)
    dead = (spreads < SMALLEST_MEMBER * spreads.max()) | flat
    return [int(member) for member in dead.nonzero()]


def output_travel(subject: Subject) -> float | None:
    """RMS change of the critic's output weights, over the farthest that Adam can have taken them (updates x rate).

    Close to 1 in a young critic. None without epochs behind it, or with initial weights neither zero nor at hand.
    """
    training = subject.config.training
    rounds = subject.origin.epoch * training.rounds_per_epoch(subject.config.task.num_envs)
    updates_done = rounds * training.critic_iterations * training.critic_batches
    now = subject.agent.critic.network.weights[-1].detach()
    if subject.initial is None and not subject.config.critic.zero_init:
        return None
    start = now * 0.0 if subject.initial is None else subject.initial().critic.network.weights[-1].detach().to(now)
    farthest = updates_done * training.critic_lr
    return float((now - start).square().mean().sqrt()) / farthest if farthest > 0.0 else None


def state_of_value(figures: Figures, subject: Subject) -> str:
    """What spread, rewards accounted for, and travel of the weights come to: `sound`, or what is the matter.

    `flat`: the value hardly varies while its targets (and real returns) do. `unaccounted`: it holds too little of the
    rewards within the horizon; `behind`: it surely holds them, and is far from its targets otherwise. Weights that have
    gone as far as they could are `young` where it varies, or grows.
    """
    ratio, share = figures["spread_over_targets"], figures["rewards_accounted_for"]
    with_returns = figures.get("returns_vary", False) and figures["spread_over_returns"] < LOW_RETURN_RATIO
    flat = ratio < SMALLEST_TARGET_RATIO or (ratio < LOW_TARGET_RATIO and with_returns)
    if not flat and not _beyond(share, SETTLED):
        return "sound"
    travel = output_travel(subject)  # only now: it may have to build the agent that the run began with
    at_full_speed = travel is not None and travel > FULL_TRAVEL
    if flat and not (at_full_speed and figures["value_varies"]):
        return "flat"
    limits = SETTLED if travel is not None and travel < SETTLED_TRAVEL else MOVING
    if _beyond(share, SETTLED) and _beyond(share, limits):
        if share["low"] is not None and share["low"] > SETTLED[0] and share["residual"] < LARGEST_LAG:
            return "behind"
        growing = 0.0 < share["spread"] < LOW_TARGET_SPREAD and not share["high"] < limits[0]
        return "young and unaccounted" if at_full_speed and growing else "unaccounted"
    return "young and flat" if flat else "sound"


def _beyond(share: Figures, limits: tuple[float, float]) -> bool:
    """It holds less of the rewards than the slope, or leaves more than the residual of clearly varying targets."""
    leaves = share["target_spread"] > LEAST_SPREAD and not share["residual"] <= limits[1]
    return leaves or bool(share["high"] < limits[0])


@torch.no_grad()  # figures of a trained critic
def judge_values(subject: Subject, episodes: Episodes) -> Figures:
    """Values against Monte-Carlo returns of states spread evenly over the episodes, in learning rewards.

    G_t = r_t + gamma G_{t+1}; G_T = V(z_T) at a time limit, else 0. States that are mostly bootstrap are left out.
    """
    agent = subject.agent
    every, share = discounted_returns(subject, episodes)
    t = torch.arange(len(share), device=share.device).unsqueeze(1)
    early = t < (LEAST_SHARE * episodes.length).ceil()
    time, env = (episodes.valid & ((share <= LARGEST_BOOTSTRAP) | early)).nonzero(as_tuple=True)
    kept = torch.linspace(0, len(time) - 1, min(len(time), MOST_STATES), device=time.device).long()
    time, env = time[kept], env[kept]
    s, context = subject.encode(episodes.obs[time, env], episodes.task[env])
    value, returns = agent.critic.value(agent.world_model.latent(s), context), every[time, env].float()
    size, spread = max(float(returns.square().mean().sqrt()), 1e-12), float(returns.std())
    over_returns = ratio(float(value.std()), spread, math.nan)
    returns_vary = spread > SMALLEST_RETURN_SPREAD * size
    return {
        "value_mean": float(value.mean()),
        "return_mean": float(returns.mean()),
        "spread_over_returns": over_returns,
        "correlation": correlation(value, returns),
        "return_per_value": ratio(float(torch.cov(torch.stack([value, returns]))[0, 1]), float(value.var()), math.nan),
        "offset_over_size": float((value - returns).mean()) / size,
        "bootstrapped_share": float(share[time, env].mean()),
        "returns_vary": returns_vary,
        "curves": {"value": value.tolist(), "return": returns.tolist()},
        "beside_returns": f", and {over_returns:.2g} of what real returns vary by" if returns_vary else "",
    }


@torch.no_grad()  # figures of a trained critic
def accounted_real_rewards(subject: Subject, episodes: Episodes) -> Figures:
    """`accounted_rewards` over one horizon of the policy's real episodes: slopes along the steps that it really takes.

    V(z_t) - gamma^k V(z_{t+k}) against sum_{i<k} gamma^i r_{t+i}: a critic that is right in imagination alone, or in
    level alone, holds nothing of what the real states on the way to each other differ by. With their correlation within
    tasks, and the highest that is likely (two standard errors of Fisher's z, windows that do not overlap counted).
    """
    agent, k = subject.agent, subject.config.training.horizon
    window = torch.arange(len(episodes.reward), device=episodes.reward.device).unsqueeze(1)
    time, env = (window + k <= episodes.length - episodes.terminated.long()).nonzero(as_tuple=True)
    kept = torch.linspace(0, len(time) - 1, min(len(time), MOST_STATES), device=time.device).long()
    time, env = time[kept], env[kept]
    s, context = subject.encode(episodes.obs[time, env], episodes.task[env])
    later, _ = subject.encode(episodes.obs[time + k, env], episodes.task[env])
    gamma = updates.discount(context, subject.config.training)
    rewards = torch.zeros_like(gamma)
    for step in reversed(range(k)):
        rewards = agent.learning_reward(episodes.reward[time + step, env]) + gamma * rewards
    values = agent.critic(agent.world_model.latent(s), context)
    behind = gamma**k * agent.critic(agent.world_model.latent(later), context).mean(0)
    figures = accounted_rewards(values, rewards + behind, rewards)
    change, earned = (within_tasks(x, episodes.task[env]) for x in (values.mean(0) - behind, rewards))
    together, apart = correlation(change, earned), len(torch.unique(env * len(window) + time // k))
    judged = apart >= LEAST_STEPS and float(earned.std()) > LEAST_REWARD_SPREAD * float(rewards.square().mean().sqrt())
    high = math.tanh(math.atanh(0.999999 * together) + SIGMAS / math.sqrt(apart - 3)) if judged else math.nan
    return {"correlation": together, "correlation_high": None if math.isnan(high) else high, **figures}


def correlation(a: Float[Tensor, " S"], b: Float[Tensor, " S"]) -> float:
    """Pearson's; nan of fewer than two."""
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1]) if len(a) > 1 else math.nan


@torch.no_grad()  # real returns, and the value behind a time limit
def discounted_returns(subject: Subject, episodes: Episodes) -> tuple[Float[Tensor, "T N"], Float[Tensor, "T N"]]:
    """G_t of every transition, and the share gamma^(T - t) of the bootstrap in it; float64."""
    agent = subject.agent
    last = episodes.length, torch.arange(len(episodes.length), device=episodes.length.device)
    s, context = subject.encode(episodes.obs[last], episodes.task)
    ongoing = (~episodes.terminated).double()
    tail = agent.critic.value(agent.world_model.latent(s), context).double() * ongoing
    gamma = updates.discount(context, subject.config.training).double()
    reward = agent.learning_reward(episodes.reward).double()
    left = episodes.length - torch.arange(len(reward), device=gamma.device).unsqueeze(1)
    returns = torch.zeros_like(reward)
    for t in reversed(range(len(reward))):
        tail = torch.where(left[t] > 0, reward[t] + gamma * tail, tail)
        returns[t] = tail
    return returns, ongoing * gamma ** left.clamp(min=0)
