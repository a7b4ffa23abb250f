"""The dynamics on real trajectories, through imagination, and inside: errors, latents, velocity, returns.

A displacement is signed and sums to 0 per group. A head that ends in SimNorm hands out points of the
simplex in its place: nothing negative, every total the same.

Letters: W steps, B windows or states, D latent.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.diagnostics.health.experience import TransitionWindows, block_sums, compare_errors, fresh_windows
from flowmbpo.diagnostics.health.probes import Figures
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.statistics import bootstrap_interval, mean_interval
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
from flowmbpo.training.imagination import imagine
from flowmbpo.training.updates import discount

LENGTHS = (16, 8, 4, 1)  # longest first: the longest that enough windows have
ENOUGH = 64
ROWS = 2048
JUDGED = 4
STATES = 256
STEPS = 50
ROUNDING = 1e-3  # of sums and drifts: 9e-7 after 50 steps, until something adds to them
CONSTANT = 1e-3
ALIKE = 0.05  # of every group's gain: SimNorm's is rounding
# Log error ratio and z of a SimNorm behind the head. Healthy: up to 0.6, where SimNorm makes a poor model stay put.
TRAINED_AS_SIMNORM = (0.5, 6.0)
SURELY_SIMNORM = (3.0, 6.0)  # heads that were trained with one: 4.0 to 6.1; a sound but early model 2.1


def measure_errors(subject: Subject, effort: Effort) -> Figures:
    """Errors after 1, 4, 8 and 16 steps on fresh episodes (with exploration), over the better trivial predictor's.

    A single step is no measure by itself: where steps are small, standing still is hard to beat by
    dynamics that are not residual, and says nothing of what they are worth over a horizon.
    """
    generator = subject.generator("dynamics")
    for width in LENGTHS:
        rows = fresh_windows(subject.episodes, subject.explored, width=width, limit=ROWS, generator=generator)
        if len(rows) >= ENOUGH:
            break
    if not len(rows):
        return {"judged": "no: no real transition was recorded"}
    errors = step_errors(subject, rows)
    figures: Figures = {"windows": len(rows), "judged_steps": min(JUDGED, len(errors))}
    for steps in sorted(LENGTHS):
        if steps <= len(errors):
            sums = block_sums(errors[steps - 1].double(), rows.block)
            interval = bootstrap_interval(sums, ratio_to_trivial, generator, effort.resamples)
            figures[f"error_over_trivial_{steps}"] = interval.to_dict()
    figures["error_over_trivial"] = ratio_to_trivial(errors[figures["judged_steps"] - 1])
    return figures


@torch.no_grad()  # errors are measured, nothing is learnt
def step_errors(subject: Subject, rows: TransitionWindows) -> Float[Tensor, "W B 3"]:
    """Squared latent errors after k steps, mean over the latent: the model's, of standing still, of the mean state.

    Open loop from the encoded first observation with the real actions; stochastic dynamics by the mean of samples.
    """
    model = subject.agent.world_model
    z = torch.stack([model.latent(subject.encode(obs, rows.task)[0]) for obs in rows.obs])
    centre = z.flatten(0, 1).mean(0)
    state, context = subject.encode(rows.obs[0], rows.task)
    predicted = unroll_samples(model, state, rows.action, context, subject.generator("k-step noise")).mean(1)
    guesses = (predicted[1:], z[0], centre)
    return torch.stack([(guess - z[1:]).square().mean(-1) for guess in guesses], dim=-1)


def ratio_to_trivial(errors: Float[Tensor, "B 3"]) -> float:
    """The model's mean error over that of the better trivial predictor; 0 where the latent never moves."""
    model, still, mean = errors.double().mean(0).tolist()
    return model / min(still, mean) if min(still, mean) > 0.0 else 0.0


@torch.no_grad()  # two returns are compared, nothing is learnt
def measure_imagined_return(subject: Subject, effort: Effort) -> Figures:
    """Discounted rewards of one training horizon in real units: imagined and earned, from the same real states.

    Windows of fresh episodes of the sampled policy against rollouts of the same policy in the model. A step after a
    real end earns nothing; the model has its termination head for that. `certain_gap` is the difference of the means
    over the size (RMS) of the earned returns, 0 where its interval holds 0.
    """
    agent, config = subject.agent, subject.config.training
    generator = subject.generator("promise")
    batch = subject.episodes.sample(effort.windows, config.horizon, generator)
    start, context = subject.encode(batch.obs[0], batch.task)
    rollout = imagine(agent.world_model, agent.actor, start, context, horizon=config.horizon, generator=generator)
    gamma = discount(context, config)
    weight = gamma ** torch.arange(config.horizon, device=gamma.device).unsqueeze(-1)
    alive = torch.cat([torch.ones_like(rollout.continues[:1]), rollout.continues[:-1].cumprod(0)])
    # A window that the time limit cuts short is compared over the steps that it has.
    running = batch.valid | (batch.terminated.cumsum(0) > 0)
    imagined = (weight * alive * agent.reward_normalizer.inverse(rollout.rewards) * running).sum(0).double()
    earned = (weight * batch.reward * batch.valid).sum(0).double()
    gap = mean_interval(imagined - earned)
    off = gap.value / max(float(earned.square().mean().sqrt()), 1e-12)
    return {
        "horizon": config.horizon,
        "windows": len(earned),
        "imagined_return": mean_interval(imagined).to_dict(),
        "earned_return": mean_interval(earned).to_dict(),
        "gap": gap.to_dict(),
        "gap_over_size": off,
        "certain_gap": 0.0 if gap.low <= 0.0 <= gap.high else off,
        "cause": "the policy exploits its model" if off > 0.0 else "the model misses what the policy is paid for",
    }


def measure_latents(subject: Subject, effort: Effort) -> Figures:
    """Simplex violation over 50 imagined steps, the shape of the velocity, and the spread of encoded states.

    Needs no environment where there is a replay buffer.
    """
    del effort  # 256 states show it; more would not show more
    generator = subject.generator("latents")
    model = subject.agent.world_model
    batch = subject.windows.sample(STATES, 1, generator)
    state, context = subject.encode(batch.obs[0], batch.task)
    velocity = observe_velocity(model, state, batch.action[0], context)
    figures: Figures = {"velocity": velocity}
    z_next = model.latent(subject.encode(batch.obs[1], batch.task)[0])
    errors = errors_as_simnorm(model, state, batch.action[0], context, z_next)
    if errors is not None:
        plain, normalised = errors
        rows = torch.arange(len(state), device=state.device)
        trained_as = compare_errors(plain, normalised, rows)
        # SimNorm makes any velocity small: beside a poor model it wins by hardly moving at all.
        moves = compare_errors((model.latent(state) - z_next).square().mean(-1), normalised, rows)
        surely = trained_as.better(*SURELY_SIMNORM)
        both = moves.better(*TRAINED_AS_SIMNORM) and trained_as.better(*TRAINED_AS_SIMNORM)
        figures["error_with_simnorm_head"] = asdict(trained_as) | {"certain": surely or both}
    if isinstance(model.geometry, SimplexGeometry):
        figures |= walk(subject, model.geometry, generator)
    if any(True for _ in model.encoder.parameters()):  # an observation that is the state cannot collapse
        figures["spread_share"] = spread_share(model.latent(state))
    return figures


@torch.no_grad()  # states are looked at, nothing is learnt
def walk(subject: Subject, geometry: SimplexGeometry, generator: torch.Generator) -> Figures:
    """What 50 imagined steps of the policy, as training makes them, do to the simplex: the largest of all of them.

    The sum error is |group sum - 1| of z, the negative part that of z, the logit drift the |group mean| of centred
    logits over the size of the largest logit (0 in tangent geometry). `sum_gained_per_step` is the mean change of a
    group's sum (of z, or of its logits), `gain_spread` its relative spread over groups and states;
    `equal_gain` is the gain where sums do not stay and every group gets the same, else 0.
    """
    agent = subject.agent
    state, context = subject.starts(STATES, generator)
    sums, negative, drift = [], [], []
    first = grouped(state, geometry.group).sum(-2)
    logits = isinstance(geometry, LogitGeometry)
    for step in range(STEPS + 1):
        z = agent.world_model.latent(state)
        rows, parts = grouped(z, geometry.group), grouped(state, geometry.group)
        sums.append(float((rows.sum(-2) - 1.0).abs().amax()))
        negative.append(float((-rows).clamp(min=0.0).amax()))
        size = float(state.abs().amax().clamp(min=1.0))
        drift.append(float(parts.mean(-2).abs().amax()) / size if logits else 0.0)
        if step < STEPS:
            state = agent.world_model.next(state, agent.actor(z, context, generator), context, generator)
    gained = (grouped(state, geometry.group).sum(-2) - first) / STEPS
    gain = float(gained.mean())
    spread = float(gained.std()) / abs(gain) if gain != 0.0 else 0.0
    off_sum = max(sums) > ROUNDING or max(drift) > ROUNDING
    return {
        "largest_sum_error": max(sums),
        "largest_negative_part": max(negative),
        "largest_logit_drift": max(drift),
        "sum_gained_per_step": gain,
        "gain_spread": spread,
        "equal_gain": gain if off_sum and spread < ALIKE else 0.0,
        "curves": {"violation": [max(parts) for parts in zip(sums, negative, drift, strict=True)]},
    }


def spread_share(z: Tensor) -> float:
    """Variance of the latent over states (summed over coordinates), as a share of its mean square."""
    z = z.double()
    size = float(z.square().sum(-1).mean())
    return float(z.var(0, correction=0).sum()) / size if size > 0.0 else 0.0


@torch.no_grad()  # outputs are looked at, nothing is learnt
def observe_velocity(model: WorldModel, state: Float[Tensor, "B D"], action: Tensor, context: TaskContext) -> Figures:
    """One macro step of the given states, its inside recorded; without noise.

    `deviation` is the largest difference of the velocity from its linear head's output (projected where
    the field is tangent), over the size of the larger of the two; None for dynamics without such a
    head. `displacement` describes next state minus state, `output` the velocity itself.
    """
    heads: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    velocity, tangent = _velocity(model.dynamics)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """The velocity, beside what its linear head made of the same input."""
        pairs.append((output, model.dynamics.geometry.project(heads[-1]) if tangent else heads[-1]))

    with ExitStack() as hooks:
        if velocity is not None:
            hooks.enter_context(_head(velocity).register_forward_hook(lambda m, inputs, output: heads.append(output)))
            hooks.enter_context(velocity.register_forward_hook(keep))
        displacement = describe(model.next(state, action, context) - state)
    output = describe(torch.cat([output for output, _ in pairs])) if pairs else None
    return {
        "deviation": max(_relative_difference(*pair) for pair in pairs) if pairs else None,
        "output": output,
        "displacement": displacement,
        "total": (output or displacement)["total"],
        "on_simplex": displacement["on_simplex"] or (output is not None and output["on_simplex"]),
    }


def describe(x: Float[Tensor, "B D"]) -> Figures:
    """The smallest entry of some rows, mean and relative spread of their totals.

    `on_simplex`: nothing negative, and every row of the same positive total: what ends in a softmax is like that.
    Rounding of totals near 0 counts as spread.
    """
    totals = x.double().sum(-1)
    smallest, total = float(x.amin()), float(totals.mean())
    spread = float(totals.std()) / abs(total) if total != 0.0 else 0.0
    on_simplex = smallest >= 0.0 and total > 0.0 and spread < CONSTANT
    return {"smallest": smallest, "total": total, "total_spread": spread, "on_simplex": on_simplex}


@torch.no_grad()  # errors are measured, nothing is learnt
def errors_as_simnorm(
    model: WorldModel, state: Float[Tensor, "B D"], action: Tensor, context: TaskContext, z_next: Float[Tensor, "B D"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]] | None:
    """Squared one-step errors as the model is, and with a SimNorm behind its linear head.

    The second is smaller only where the head was trained with one. None for dynamics without such a head.
    """
    velocity, _ = _velocity(model.dynamics)
    geometry = model.geometry
    if velocity is None or not isinstance(geometry, SimplexGeometry) or isinstance(model.dynamics, GaussianDynamics):
        return None

    def normalise(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return simnorm(output, geometry.group)

    def error() -> Tensor:
        return (model.latent(model.next(state, action, context)) - z_next).square().mean(-1)

    plain = error()
    with _head(velocity).register_forward_hook(normalise):
        return plain, error()


def _velocity(dynamics: Dynamics) -> tuple[nn.Module | None, bool]:
    """The module whose output is the displacement or its velocity, and whether it is projected on the way out."""
    if isinstance(dynamics, ResidualDynamics | GaussianDynamics):
        return dynamics.network, False  # projected outside, when the state is moved
    for part in dynamics.modules():
        if isinstance(part, VelocityField):
            return part, part.tangent
    return None, False


def _head(velocity: nn.Module) -> nn.Linear:
    return [part for part in velocity.modules() if isinstance(part, nn.Linear)][-1]


def _relative_difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    size = float(torch.maximum(a.abs().amax(), b.abs().amax()))
    return float((a - b).abs().amax()) / size if size > 0.0 else 0.0
