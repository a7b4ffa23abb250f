"""Does the gradient of the imagined return reach the actor, whole and of a useful size? What does the actor do?

Actions in the flat ends of their tanh get no gradient; episodes of a policy that fails end early.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowmbpo.diagnostics.health.probes import Figures, ratio
from flowmbpo.diagnostics.health.probes.weights import declared_fixed, frozen_tensors, read_history
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.models.task_context import TaskContext
from flowmbpo.training import updates  # functions are read through it, as `update_actor` reads them

# How many start states, drawn for what. The comparison of slopes is exact at any number.
STARTS = (8, "actor slopes"), (64, "actor sensitivity")
LIGHT_STARTS = (4, "light slope"), (16, "light sensitivity")
HISTORY_DRAWS = 4
STEP = 1e-6  # of a tensor's RMS weight: central differences in float64 are then exact to some 1e-6
SMALLEST_WEIGHT = 1e-2  # the RMS of tensors that are (nearly) zero
LARGEST_TENSOR_MISMATCH = 0.05  # healthy runs: below 2e-4
JUDGED_SHARE = 1e-3  # of the whole slope; below it a tensor's own slope is not judged
LOST_GRADIENT = 1e-3  # of what the optimiser remembers of one tensor's; healthy runs: 0.15 and more
STATES, LIGHT_STATES = 512, 256  # whose actions are looked at
NOISE_DRAWS = 8  # actions of every state whose spread is the noise's
SATURATED = 0.99
DEEP = math.tanh(7.0)  # 1 - a^2 is 3e-6 there: no gradient to speak of; float32 still tells it from 1
SMALLEST_SLOPE = 0.003  # of one dimension; healthy runs: 0.02 and more, where |u| is 2.7 on average
LOST_SHARE = 0.5  # of the states in which a dimension lies beyond tanh(7)
EARLY = 0.2  # of the time limit
GRACE = 0.2  # of the configured epochs: a policy that still learns to stand may fall

Slopes = dict[str, tuple[float, float]]
"""d loss along a random direction within one tensor of the actor: by autograd, and by finite difference."""


def measure_actor(subject: Subject, *, light: bool = False) -> Figures:
    """Autograd against finite differences (`light`: along one direction), gradients through the horizon, and memory."""
    fixed = declared_fixed(subject, "actor")
    slopes, sensitivity = LIGHT_STARTS if light else STARTS
    figures = {
        **match_slopes(DoubleObjective(subject, *slopes).slopes(fixed, joint=light)),
        "input_gradient": subject.config.training.actor_input_gradient,
        **DoubleObjective(subject, *sensitivity).sensitivity(),
        "frozen_tensors": frozen_tensors(subject, "actor", fixed),
    }
    if light:
        return figures
    history, remembered = read_history(subject, "actor")
    fresh = _fresh_gradients(subject) if remembered else {}
    measured = math.hypot(*fresh.values())
    return {
        **figures,
        **history,
        "lost_tensors": [n for n, norm in remembered.items() if not fresh.get(n, 0.0) >= LOST_GRADIENT * norm],
        "saved_over_measured_gradient": math.hypot(*remembered.values()) / measured if measured > 0.0 else None,
    }


def match_slopes(slopes: Slopes) -> Figures:
    """Autograd's slopes against finite differences: the share that is wrong, and the share that arrives.

    `gradient_arrives` is 1 where autograd is right, 0 where the gradient is cut, 1e-3 where it is scaled by that.
    """
    size = math.hypot(*(difference for _, difference in slopes.values()))
    error = math.hypot(*(autograd - difference for autograd, difference in slopes.values()))
    if size == 0.0:
        mismatch, arrives = (0.0, 1.0) if error == 0.0 else (math.inf, math.inf)
        return {"gradient_mismatch": mismatch, "gradient_arrives": arrives, "wrong_tensors": []}
    largest = {name: max(map(abs, both)) for name, both in slopes.items()}
    wrong = [
        name
        for name, (autograd, difference) in slopes.items()
        if largest[name] > JUDGED_SHARE * size and abs(autograd - difference) > LARGEST_TENSOR_MISMATCH * largest[name]
    ]
    arrives = sum(autograd * difference for autograd, difference in slopes.values()) / size**2
    return {"gradient_mismatch": error / size, "gradient_arrives": arrives, "wrong_tensors": wrong}


class DoubleObjective:
    """The actor's objective as a function of its weights at fixed start states and noise, in float64."""

    def __init__(self, subject: Subject, rows: int, purpose: str) -> None:
        self.subject, self.agent, self.purpose = subject, subject.agent, purpose
        self.config = subject.config.training.model_copy(update={"noise_replicas": 1})
        start, context = subject.starts(rows, subject.generator(purpose))
        self.start = start.detach().double()
        parts = (context.embedding, context.action_mask, context.discount)
        self.context = TaskContext(*(x.detach().double() for x in parts))

    def slopes(self, fixed: set[str], *, joint: bool = False) -> Slopes:
        """One random direction within every tensor of the actor that is not `fixed`, or (`joint`) one for all of them.

        It changes every weight by the same share of its tensor's RMS, up or down. With `actor_input_gradient: detached`
        the difference holds the actor's inputs too. Gradients are those of `backward`: every hook has its say.
        """
        generator = torch.Generator().manual_seed(self.subject.seed)
        actor = self.agent.actor
        with in_double(self.agent), updates.frozen(self.agent.world_model, self.agent.critic):
            inputs: list[Tensor] = []
            with actor.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach())):
                loss = self._objective().loss
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            moves: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
            for name, p in actor.named_parameters():
                if name not in fixed:
                    signs = (torch.randint(0, 2, p.shape, generator=generator) * 2.0 - 1.0).to(p.data)
                    size = max(float(p.data.square().mean().sqrt()), SMALLEST_WEIGHT)
                    moves.setdefault("all" if joint else name, []).append((p, signs * size))
            replayed = inputs if self.config.actor_input_gradient == "detached" else []
            return {name: self._slopes_along(group, replayed) for name, group in moves.items()}

    def sensitivity(self) -> Figures:
        """How the imagined return depends on the action of every step, through model and critic.

        The curve `action_gradient_norms` has the RMS over start states of |d return / d a_h|; `sensitivity` is the
        largest in spreads of the return over start states, `growth_through_horizon` the first norm over the last.
        """
        shifts: list[Tensor] = []

        def shift(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            shifts.append(torch.zeros_like(output).requires_grad_())
            return output + shifts[-1]

        with in_double(self.agent), updates.frozen(self.agent.world_model, self.agent.critic):
            with self.agent.actor.register_forward_hook(shift):
                returns = self._objective().returns
            norms = [0.0] * len(shifts)
            if returns.requires_grad:
                found = torch.autograd.grad(returns.sum(), shifts, allow_unused=True, materialize_grads=True)
                norms = [float(g.square().sum(-1).mean().sqrt()) for g in found]
        return sensitivity_figures(norms, returns.detach())

    def _objective(self) -> updates.ActorObjective:
        generator = self.subject.generator(f"{self.purpose} noise")  # the same noise each time
        return updates.actor_objective(self.agent, self.start, self.context, self.config, generator)

    @torch.no_grad()  # two values of the function; its gradient is what they are compared with
    def _slopes_along(self, moves: list[tuple[nn.Parameter, Tensor]], replayed: list[Tensor]) -> tuple[float, float]:
        """By the gradients in `.grad`, and by the difference."""
        autograd = sum(float((p.grad * direction).sum()) for p, direction in moves if p.grad is not None)
        actor, weights, losses = self.agent.actor, [p.data for p, _ in moves], []
        for step in (STEP, -STEP):
            for (p, direction), weight in zip(moves, weights, strict=True):
                p.data = weight + step * direction
            rest = iter(replayed)  # what the actor is given, call after call; its own latents where there is none
            given = actor.register_forward_pre_hook(lambda m, args, rest=rest: (next(rest, args[0]), *args[1:]))
            with given:
                losses.append(float(self._objective().loss))
        for (p, _), weight in zip(moves, weights, strict=True):
            p.data = weight
        return autograd, (losses[0] - losses[1]) / (2.0 * STEP)


def sensitivity_figures(norms: list[float], returns: Tensor) -> Figures:
    """From |d return / d a_h| and the returns of the start states; see `DoubleObjective.sensitivity`."""
    spread = max(float(returns.std()), 1e-2 * float(returns.square().mean().sqrt()))
    return {
        "sensitivity": ratio(max(norms), spread),
        "growth_through_horizon": ratio(norms[0], norms[-1], math.inf),
        "curves": {"action_gradient_norms": norms},
    }


@contextmanager
def in_double(module: nn.Module) -> Iterator[None]:
    """Inside, floating-point parameters and buffers are float64; afterwards the very tensors from before are back.

    In place, so that hooks that hold on to the modules see the same weights. `.grad` is set aside meanwhile.
    """
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    kept = [(tensor, tensor.data, tensor.grad) for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.grad = None
            tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, data, gradient in kept:
            tensor.grad = None
            tensor.data = data
            tensor.grad = gradient


def _fresh_gradients(subject: Subject) -> dict[str, float]:
    """By tensor, the RMS norm over draws of the gradient, after clipping, that `update_actor` would step on."""
    agent, config = subject.agent, subject.config.training
    parameters = {name: parameter for name, parameter in agent.actor.named_parameters() if parameter.requires_grad}
    means = dict.fromkeys(parameters, 0.0)
    for generator in (subject.generator(f"actor update {draw}") for draw in range(HISTORY_DRAWS)):
        start, context = subject.starts(subject.batch_size, generator)
        with updates.frozen(agent.world_model, agent.critic):
            objective = updates.actor_objective(agent, start, context, config, generator)
            loss = updates.actor_loss(agent, objective, start, context, config, generator)
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True, materialize_grads=True)
        squares = [float(gradient.double().square().sum()) for gradient in gradients]
        total, clip = sum(squares), config.clip.actor
        scale = 1.0 if clip is None or total <= clip**2 else clip**2 / total
        for name, square in zip(parameters, squares, strict=True):
            means[name] += scale * square / HISTORY_DRAWS
    return {name: math.sqrt(mean) for name, mean in means.items()}


@torch.no_grad()  # what the policy does is measured, not changed
def measure_saturation(subject: Subject, *, light: bool = False) -> Figures:
    """Of sampled actions at start states: shares with |a| > 0.99 and (deeply) > tanh(7), the mean slope 1 - a^2.

    `noise_spread` is the standard deviation that the policy's noise gives them before the tanh.
    """
    agent, generator = subject.agent, subject.generator("policy")
    start, context = subject.starts(LIGHT_STATES if light else STATES, generator)
    z = agent.world_model.latent(start)
    action = agent.actor(z, context, generator)
    draws = torch.stack([agent.actor.preactivation(z, context, generator) for _ in range(NOISE_DRAWS)])
    mask = context.action_mask
    used, having = mask.sum(0) > 0, mask.sum(0).clamp(min=1.0)

    def mean(x: Tensor) -> Tensor:
        return ((x * mask).sum(0) / having)[used]

    deep, slope = mean(action.abs() > DEEP), mean(1.0 - action.square())
    return {
        "noise_spread": float(mean((draws.var(0) + agent.actor.config.noise_floor**2).sqrt()).mean()),
        "saturated_share": float(mean(action.abs() > SATURATED).mean()),
        "deeply_saturated_share": float(deep.mean()),
        "tanh_slope": float(slope.mean()),
        "smallest_tanh_slope": float(slope.min()),
        "lost_dimensions": ((deep > LOST_SHARE) | (slope < SMALLEST_SLOPE)).nonzero().flatten().tolist(),
    }


def measure_endings(subject: Subject) -> Figures:
    """How many fresh episodes of the sampled policy the task ends within a fifth of their time limit."""
    episodes = subject.episodes
    limits = torch.tensor([subject.agent.spec.tasks[int(task)].episode_length for task in episodes.task])
    length = episodes.length.cpu().double()
    early = episodes.terminated.cpu() & (length < EARLY * limits)
    young = subject.origin.epoch < GRACE * subject.config.training.epochs
    return {
        "episodes": len(length),
        "limit": float(limits.double().mean()),
        "ended_early": int(early.sum()),
        "ended_early_share": float(early.double().mean()),
        "ended_early_length": float(length[early].mean()) if bool(early.any()) else 0.0,
        "broken_episodes": int(episodes.broken.sum()),
        "young": young,
        "grown": not young,
    }
