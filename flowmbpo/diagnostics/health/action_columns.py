"""Whether the dynamics reads the actions' columns in the order in which the environment has them.

Real transitions are predicted once with the actions as taken and once with columns exchanged, or with
one's sign turned. Where another arrangement predicts better, the columns are mixed up somewhere between
environment, buffer and network.

Letters: B rows, D latent, E task embedding, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.experience import Stretches, fresh_stretches, sampled_stretches
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.regression import predict_held_out
from flowmbpo.diagnostics.subject import Subject

ROWS = 3072
SEARCH_ROWS = 256
SEARCH_LIMIT = 2048  # exchanges; a wider model is only asked for whole blocks
# Calibrated on 20 healthy checkpoints: every arrangement is worse, by a log error ratio of 0.022 (z 6) at least
# for the least important pair of an Ant's joints, and otherwise by 0.067 (z 14) and more.
BETTER, Z = 0.01, 5.0
REWARD_BETTER = 0.7  # rewards may be nearly symmetric in the actions: healthy heads prefer others by 0.66
MATTERS = 0.3  # what leaving out the action costs a regression: 0.48 and more
IGNORED, IGNORED_Z = 0.03, 4.0  # what shuffled actions cost healthy models: 0.17 (z 12) and more
BLOCK_MOVED = "actions before"
BLOCK_REPAIRED = 1.2  # a model that is broken in another way gains 0.8 by moving its inputs about
REPAIRED = 0.08  # exchanges with latents: healthy models are the worse for every one, planted ones -0.15 and beyond


@dataclass(frozen=True)
class Arrangement:
    """Columns of the action in another order, each with a sign."""

    order: tuple[int, ...]
    signs: tuple[float, ...]

    def apply(self, action: Float[Tensor, "B A"]) -> Float[Tensor, "B A"]:
        """The rearranged actions."""
        return action[:, list(self.order)] * action.new_tensor(self.signs)

    def exchanged(self, i: int, j: int) -> Arrangement:
        """Columns i and j exchanged."""
        order = list(self.order)
        order[i], order[j] = order[j], order[i]
        return replace(self, order=tuple(order))

    def turned(self, i: int) -> Arrangement:
        """The sign of column i turned."""
        return replace(self, signs=tuple(-sign if k == i else sign for k, sign in enumerate(self.signs)))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{'-' if s < 0 else ''}{i}" for i, s in zip(self.order, self.signs, strict=True)) + "]"


Error = Callable[[Tensor], Tensor]
"""Squared errors of the rows for actions [B, A]."""


def neighbours(arrangement: Arrangement) -> list[Arrangement]:
    """One exchange or one turned sign away."""
    width = len(arrangement.order)
    turned = [arrangement.turned(i) for i in range(width)]
    return turned + [arrangement.exchanged(i, j) for i, j in combinations(range(width), 2)]


def improve(rows: Stretches, error: Error, effect: float) -> tuple[Arrangement, Paired, Paired]:
    """Exchange and turn columns as long as one step more is better beyond doubt (by `effect` and z 5).

    Returns the arrangement reached and its comparison with the actions as taken, then the comparison of
    the first step that came closest to being better: what a healthy model's margin is.
    """
    action = rows.action[0]
    width = action.shape[-1]
    here = start = Arrangement(tuple(range(width)), (1.0,) * width)
    baseline = first = error(action)
    nearest: Paired | None = None
    for _ in range(2 * width):
        tried = [(option, error(option.apply(action))) for option in neighbours(here)]
        compared = [(option, found, compare_errors(baseline, found, rows.block)) for option, found in tried]
        option, found, paired = min(compared, key=lambda each: each[2].effect)
        nearest = nearest or paired
        if not paired.better(effect, Z):
            break
        here, baseline = option, found
    assert nearest is not None
    reached = compare_errors(first, baseline, rows.block) if here != start else Paired(0.0, 0.0, nearest.n)
    return here, reached, nearest


@torch.no_grad()  # errors are measured, nothing is learnt
def check_action_columns(subject: Subject, effort: Effort) -> Check:
    """Arrangements of the action's columns, on fresh explored episodes and on the replay buffer.

    Findings: `swapped-action-columns`; `action-ignored`, where the action matters in reality and not in
    the model.
    """
    del effort  # a fixed number of rows
    generator = subject.generator("action columns")
    sources = {"explored": fresh_stretches(subject.explored, width=1, limit=ROWS, generator=generator)}
    if subject.replay is not None:
        sources["replay"] = sampled_stretches(subject.replay, 1, ROWS, generator)
    figures: dict[str, Any] = {}
    findings: list[Finding] = []
    rewards: list[tuple[Arrangement, Paired]] = []
    for source, rows in sources.items():
        arrangement, paired, nearest = improve(rows, dynamics_error(subject, rows), BETTER)
        figures[f"{source}_rearranged"] = nearest.to_dict()
        if paired.better(BETTER, Z):
            findings.append(_swapped("dynamics", source, str(arrangement), paired))
        arrangement, paired, nearest = improve(rows, reward_error(subject, rows), REWARD_BETTER)
        figures[f"{source}_reward_rearranged"] = nearest.to_dict()
        rewards.append((arrangement, paired))
    if all(paired.better(REWARD_BETTER, Z) for _, paired in rewards) and len(rewards) == len(sources) == 2:
        findings.append(_swapped("reward head", "explored", str(rewards[0][0]), rewards[0][1]))
    explored = sources["explored"]
    matters = reality(explored)
    # Where it was trained a model may read the action well, and hardly at all far from there.
    costs = {source: compare_shuffled(subject, rows, generator) for source, rows in sources.items()}
    shuffled = max(costs.values(), key=lambda paired: paired.z)
    figures["without_action_in_reality"] = matters.to_dict()
    figures |= {f"{source}_shuffled_in_model": paired.to_dict() for source, paired in costs.items()}
    if not findings:
        name, paired = misplaced_inputs(subject, explored)
        figures["misplaced_input"] = {"exchange": name, **paired.to_dict()}
        if paired.better(REPAIRED, Z):
            findings.append(_swapped("dynamics", "explored", name, paired))
    blind = matters.effect >= MATTERS and matters.z >= Z and (shuffled.effect < IGNORED or shuffled.z < IGNORED_Z)
    if not findings and blind:
        findings.append(_ignored(matters, shuffled))
    return Check("action_columns", figures, tuple(findings[:1]))


def dynamics_error(subject: Subject, rows: Stretches) -> Error:
    """One-step latent errors; stochastic dynamics take their mean."""
    model = subject.agent.world_model
    state, context = subject.encode(rows.obs[0], rows.task)
    target = model.latent(subject.encode(rows.obs[1], rows.task)[0])
    return lambda action: (model.latent(model.next(state, action, context)) - target).square().mean(-1)


def reward_error(subject: Subject, rows: Stretches) -> Error:
    """Errors of the predicted learning reward."""
    model = subject.agent.world_model
    state, context = subject.encode(rows.obs[0], rows.task)
    z, reward = model.latent(state), subject.agent.reward_normalizer(rows.reward[0])
    return lambda action: (model.reward(z, action, context) - reward).square()


def reality(rows: Stretches) -> Paired:
    """What leaving out the action costs a regression of obs[t+1] - obs[t], on held-out rows."""
    obs, action = rows.obs[0], rows.action[0]
    change = rows.obs[1] - obs
    moving = change.std(0) > 1e-6 * (1.0 + obs.std(0))
    change = change[:, moving] / change[:, moving].std(0)
    half = rows.block % 2 == 0

    def error(inputs: Tensor) -> Tensor:
        return (predict_held_out(inputs, change, half, seed=0) - change).square().mean(-1)

    return compare_errors(error(torch.cat([obs, action], dim=-1)), error(obs), rows.block)


def compare_shuffled(subject: Subject, rows: Stretches, generator: torch.Generator) -> Paired:
    """What other rows' actions cost the dynamics."""
    error = dynamics_error(subject, rows)
    other = torch.randperm(len(rows), generator=generator, device=generator.device).to(rows.action.device)
    return compare_errors(error(rows.action[0]), error(rows.action[0][other]), rows.block)


def misplaced_inputs(subject: Subject, rows: Stretches) -> tuple[str, Paired]:
    """The exchange of an action's column with another at the network's input that predicts best, and how well.

    Whole blocks in another order are tried too, and must help more. An exchange counts for nothing where a
    tenth of all exchanges do half as much: then the model is broken in another way, and anything helps it.
    """
    linear = next(part for part in subject.agent.world_model.dynamics.modules() if isinstance(part, nn.Linear))
    error, action = dynamics_error(subject, rows), rows.action[0]
    few = rows.first(SEARCH_ROWS)
    quick, few_action = dynamics_error(subject, few), few.action[0]
    baseline = quick(few_action)
    orders = _orders(subject, linear.in_features)
    effects = {}
    for name, order in orders.items():
        with _reordered(linear, order):
            effects[name] = compare_errors(baseline, quick(few_action), few.block).effect
    best = min(effects, key=lambda name: effects[name])
    alike = sum(effect <= 0.5 * effects[best] for effect in effects.values())
    baseline = error(action)
    with _reordered(linear, orders[best]):
        paired = compare_errors(baseline, error(action), rows.block)
    whole_block = best.startswith(BLOCK_MOVED)
    doubtful = paired.effect > -BLOCK_REPAIRED if whole_block else alike > max(1, len(orders) // 10)
    return best, replace(paired, effect=0.0, z=0.0) if doubtful else paired


def _orders(subject: Subject, inputs: int) -> dict[str, list[int]]:
    dims = subject.agent.world_model.dynamics.dims
    before, width = dims.latent_dim + dims.task_dim, dims.action_dim
    columns = list(range(inputs))
    latent, task = columns[: dims.latent_dim], columns[dims.latent_dim : before]
    actions, rest = columns[before : before + width], columns[before + width :]
    orders = {f"{BLOCK_MOVED} everything else": actions + latent + task + rest}
    if task:
        orders[f"{BLOCK_MOVED} the task"] = latent + actions + task + rest
    if before * width <= SEARCH_LIMIT:
        for i in range(width):
            for j in range(before):
                order = columns.copy()
                order[j], order[before + i] = order[before + i], order[j]
                orders[f"action {i} in the place of input {j}"] = order
    return orders


def _reordered(linear: nn.Linear, order: list[int]) -> AbstractContextManager[Any]:
    def reorder(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][..., order],)

    return linear.register_forward_pre_hook(reorder)


def _swapped(part: str, source: str, arrangement: str, paired: Paired) -> Finding:
    where = "explored real episodes" if source == "explored" else "the replay buffer"
    message = (
        f"On {where} the {part} predicts better with the action's columns as {arrangement} (log error ratio "
        f"{paired.effect:.2f}, z {paired.z:.1f}): columns are exchanged or turned between environment, buffer and "
        "network. Check the order of the inputs, and train anew."
    )
    return Finding("swapped-action-columns", "broken", message, paired.to_dict())


def _ignored(matters: Paired, shuffled: Paired) -> Finding:
    message = (
        f"The dynamics predicts as well with other rows' actions (log error ratio {shuffled.effect:.3f}, z "
        f"{shuffled.z:.1f}), though in reality they matter (a regression without them errs by {matters.effect:.2f} "
        "more): no gradient reaches the actor through it. Check the action's way into the network, and its alignment."
    )
    figures = {"shuffled": shuffled.effect, "shuffled_z": shuffled.z, "reality": matters.effect}
    return Finding("action-ignored", "broken", message, figures)
