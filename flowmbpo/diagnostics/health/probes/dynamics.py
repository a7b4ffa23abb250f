"""The dynamics on real trajectories, through imagination, and inside: errors, latents, velocity, returns.

A displacement is signed and sums to 0 per group; a head that ends in SimNorm hands out points of the simplex in its
place. Letters: B states, D latent.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.diagnostics.health.experience import OneStep, TransitionWindows, compare_errors, fresh_windows
from flowmbpo.diagnostics.health.probes import Figures, ratio
from flowmbpo.diagnostics.reward_gap import imagine_rewards
from flowmbpo.diagnostics.statistics import mean_interval
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.flows.simplex import LogitGeometry, SimplexGeometry
from flowmbpo.models.dynamics.base import Dynamics
from flowmbpo.models.dynamics.gaussian import GaussianDynamics
from flowmbpo.models.dynamics.residual import ResidualDynamics
from flowmbpo.models.dynamics.velocity import VelocityField
from flowmbpo.models.open_loop import unroll_samples
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel
from flowmbpo.nets.simnorm import grouped, simnorm
from flowmbpo.training.updates import discount

LENGTHS = (16, 8, 4, 1)  # longest first: the longest that enough windows have
ENOUGH = 64
ROWS = 2048
JUDGED = 4
STATES = WINDOWS = 256
STEPS = 50
ROUNDING = 1e-3  # of sums and drifts: 9e-7 after 50 steps, until something adds to them
CONSTANT = 1e-3
HIGH_ERROR = 0.5  # of the trivial one; healthy runs: mostly below 0.3
ALIKE = 0.05  # of every group's gain: SimNorm's is rounding
# Log error ratio and z of a SimNorm behind the head. Healthy: up to 0.6, where SimNorm makes a poor model stay put.
TRAINED_AS_SIMNORM = (0.5, 6.0)
SURELY_SIMNORM = (3.0, 6.0)  # heads that were trained with one: 4.0 to 6.1; a sound but early model 2.1


@torch.no_grad()  # errors are measured, nothing is learnt
def measure_errors(subject: Subject) -> Figures:
    """The error after 4 steps on fresh episodes (with exploration), over the better trivial predictor's.

    Not of one step: where steps are small, dynamics that are not residual hardly beat standing still.
    """
    generator = subject.generator("dynamics")
    for width in LENGTHS:
        rows = fresh_windows(subject.episodes, subject.explored, width=width, limit=ROWS, generator=generator)
        if len(rows) >= ENOUGH:
            break
    if not len(rows):
        return {"judged": "no: no real transition was recorded"}
    steps = min(JUDGED, width)
    error = error_over_trivial(subject, rows, steps)
    training, copies = subject.config.training, subject.config.task.num_envs
    updates = training.rounds_per_epoch(copies) * training.wm_iterations / (training.horizon * copies)
    collects = training.mode == "online" and subject.trains_model and subject.origin.epoch > 0
    return {
        "judged_steps": steps,
        "error_over_trivial": error,
        "error_is_high": error > HIGH_ERROR,
        "updates_per_step": updates if collects else None,
    }


def error_over_trivial(subject: Subject, rows: TransitionWindows, steps: int) -> float:
    """Mean squared latent error of the open loop over that of standing still or the mean state; 0 if none moves."""
    model = subject.agent.world_model
    z = torch.stack([model.latent(subject.encode(obs, rows.task)[0]) for obs in rows.obs])
    state, context = subject.encode(rows.obs[0], rows.task)
    generator = subject.generator("k-step noise")
    predicted = unroll_samples(model, state, rows.action[:steps], context, generator)[-1].mean(0)
    guesses = (predicted, z[0], z.flatten(0, 1).mean(0))
    own, *trivial = (float((guess - z[steps]).square().mean(-1).double().mean()) for guess in guesses)
    return ratio(own, min(trivial))


@torch.no_grad()  # two returns are compared, nothing is learnt
def measure_imagined_return(subject: Subject) -> Figures:
    """Discounted rewards of one training horizon in real units: imagined and earned, from the same real states.

    `certain_gap` is the difference of the means over the RMS of the earned returns, 0 where its interval holds 0.
    """
    agent, config, generator = subject.agent, subject.config.training, subject.generator("promise")
    batch = subject.episodes.sample(WINDOWS, config.horizon, generator)
    rewards = imagine_rewards(agent, batch, generator, 1, actor=agent.actor, sampled=True)
    gamma = discount(agent.world_model.context(batch.task), config)
    weight = gamma ** torch.arange(config.horizon, device=gamma.device).unsqueeze(-1)
    # A window that the time limit cuts short is compared over the steps that it has.
    running = batch.valid | (batch.terminated.cumsum(0) > 0)
    imagined = (weight * rewards * running).sum(0)
    earned = (weight * batch.reward * batch.valid).sum(0).double()
    gap = mean_interval(imagined - earned)
    off = gap.value / max(float(earned.square().mean().sqrt()), 1e-12)
    return {
        "horizon": config.horizon,
        "imagined_return": mean_interval(imagined).to_dict(),
        "earned_return": mean_interval(earned).to_dict(),
        "certain_gap": 0.0 if gap.low <= 0.0 <= gap.high else off,
        "cause": "the policy exploits its model" if off > 0.0 else "the model misses what the policy is paid for",
    }


@torch.no_grad()  # states and errors are looked at, nothing is learnt
def measure_latents(subject: Subject) -> Figures:
    """Simplex violation over 50 imagined steps, the shape of the velocity, and the spread of encoded states."""
    model, generator = subject.agent.world_model, subject.generator("latents")
    batch = subject.windows.sample(STATES, 1, generator)
    step, action = OneStep.of(subject, batch), batch.action[0]
    figures: Figures = {"velocity": observe_velocity(model, step.state, action, step.context)}
    velocity, _ = _velocity(model.dynamics)
    if isinstance(model.geometry, SimplexGeometry):
        if velocity is not None and not isinstance(model.dynamics, GaussianDynamics):
            figures["error_with_simnorm_head"] = trained_as_simnorm(step, action, velocity, model.geometry.group)
        figures |= walk(subject, model.geometry, generator)
    if any(True for _ in model.encoder.parameters()):  # an observation that is the state cannot collapse
        figures["spread_share"] = spread_share(step.z)
    return figures


def trained_as_simnorm(step: OneStep, action: Tensor, velocity: nn.Module, group: int) -> Figures:
    """One-step errors with a SimNorm behind the velocity's linear head against those without.

    SimNorm makes any velocity small, which helps a poor model: it must beat standing still as well.
    """
    plain = step.error(action)
    with _head(velocity).register_forward_hook(lambda module, inputs, output: simnorm(output, group)):
        normalised = step.error(action)
    rows, still = torch.arange(len(action), device=action.device), (step.z - step.target).square().mean(-1)
    trained_as, moves = (compare_errors(error, normalised, rows) for error in (plain, still))
    both = all(each.better(*TRAINED_AS_SIMNORM) for each in (trained_as, moves))
    return asdict(trained_as) | {"certain": trained_as.better(*SURELY_SIMNORM) or both}


@torch.no_grad()  # states are looked at, nothing is learnt
def walk(subject: Subject, geometry: SimplexGeometry, generator: torch.Generator) -> Figures:
    """What 50 imagined steps of the policy, as training makes them, do to the simplex: the largest of all of them.

    The sum error is |group sum - 1| of z, the negative part that of z, the logit drift the |group mean| of centred
    logits over the size of the largest logit (0 in tangent geometry). `equal_gain` is the mean change per step of a
    group's sum (of z, or of its logits) where sums do not stay and every group and state gets the same, else 0.
    """
    agent = subject.agent
    state, context = subject.starts(STATES, generator)
    off = []  # sum error, negative part and logit drift of every step
    first = grouped(state, geometry.group).sum(-2)
    for step in range(STEPS + 1):
        z = agent.world_model.latent(state)
        rows = grouped(z, geometry.group)
        size, means = float(state.abs().amax().clamp(min=1.0)), grouped(state, geometry.group).mean(-2)
        drift = float(means.abs().amax()) / size if isinstance(geometry, LogitGeometry) else 0.0
        off.append((float((rows.sum(-2) - 1.0).abs().amax()), float((-rows).clamp(min=0.0).amax()), drift))
        if step < STEPS:
            state = agent.world_model.next(state, agent.actor(z, context, generator), context, generator)
    gained = (grouped(state, geometry.group).sum(-2) - first) / STEPS
    gain = float(gained.mean())
    alike = float(gained.std()) < ALIKE * abs(gain)
    sums, negative, drift = (max(each) for each in zip(*off, strict=True))
    return {
        "largest_sum_error": sums,
        "largest_negative_part": negative,
        "largest_logit_drift": drift,
        "equal_gain": gain if alike and max(sums, drift) > ROUNDING else 0.0,
        "curves": {"violation": [max(each) for each in off]},
    }


def spread_share(z: Tensor) -> float:
    """Variance of the latent over states (summed over coordinates), as a share of its mean square."""
    return ratio(float(z.double().var(0, correction=0).sum()), float(z.double().square().sum(-1).mean()))


@torch.no_grad()  # outputs are looked at, nothing is learnt
def observe_velocity(model: WorldModel, state: Float[Tensor, "B D"], action: Tensor, context: TaskContext) -> Figures:
    """One macro step of the given states, its inside recorded; without noise.

    `deviation` is the largest difference of the velocity from its linear head's output (projected where the field is
    tangent), over the larger of the two; None without such a head. `total` and `on_simplex` are those of `describe`, of
    the velocity where it is seen, else of next state minus state.
    """
    heads: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []  # velocities, and what their linear head made of the same input
    velocity, tangent = _velocity(model.dynamics)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pairs.append((output, model.dynamics.geometry.project(heads[-1]) if tangent else heads[-1]))

    with ExitStack() as hooks:
        if velocity is not None:
            hooks.enter_context(_head(velocity).register_forward_hook(lambda m, inputs, output: heads.append(output)))
            hooks.enter_context(velocity.register_forward_hook(keep))
        displacement = describe(model.next(state, action, context) - state)
    seen = describe(torch.cat([output for output, _ in pairs])) if pairs else displacement
    return {
        "deviation": max(_relative_difference(*pair) for pair in pairs) if pairs else None,
        "total": seen["total"],
        "on_simplex": displacement["on_simplex"] or seen["on_simplex"],
    }


def describe(x: Float[Tensor, "B D"]) -> Figures:
    """The mean total of some rows, and whether they lie `on_simplex`: none negative, all of one positive total."""
    totals = x.double().sum(-1)
    total = float(totals.mean())
    alike = total > 0.0 and float(totals.std()) / total < CONSTANT
    return {"total": total, "on_simplex": float(x.amin()) >= 0.0 and alike}


def _velocity(dynamics: Dynamics) -> tuple[nn.Module | None, bool]:
    """The module whose output is the displacement or its velocity, and whether it is projected on the way out."""
    if isinstance(dynamics, ResidualDynamics | GaussianDynamics):
        return dynamics.network, False  # projected outside, when the state is moved
    field = next((part for part in dynamics.modules() if isinstance(part, VelocityField)), None)
    return field, field is not None and field.tangent


def _head(velocity: nn.Module) -> nn.Linear:
    return [part for part in velocity.modules() if isinstance(part, nn.Linear)][-1]


def _relative_difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return ratio(float((a - b).abs().amax()), float(torch.stack((a, b)).abs().amax()))
