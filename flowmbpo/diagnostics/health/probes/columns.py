"""Whether dynamics, reward head and policy have the action's columns in the order in which the environment has them.

Where real transitions are predicted better with columns exchanged, with one's sign turned, or with the dynamics' inputs
in another order, they are mixed up between environment, buffer and network. Letters: B rows, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import combinations, product

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowmbpo.config.dynamics import DynamicsDims
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.experience import (
    OneStep,
    Paired,
    TransitionWindows,
    best_of,
    compare_errors,
    newest_windows,
    obs_changes,
    sources_of_rows,
)
from flowmbpo.diagnostics.health.probes import Figures
from flowmbpo.diagnostics.subject import Subject

ROWS = 3072
POLICY_ROWS = 512  # of 1024 rows some are of a policy quite different: young runs then prefer others by 0.4 (z 4.5)
SEARCH_ROWS, SEARCH_LIMIT = 256, 2048  # exchanges; a wider model is only asked for whole blocks
Z = 5.0
FOLLOWS_Z = 3.0  # a second condition: the arrangement itself must be better by Z
SHUFFLED_Z = 4.0
MATTERS = 0.3  # what leaving out the action costs a regression: 0.48 and more
# The log error ratio by which a step of the search must be better. Healthy dynamics are the worse for every one by
# 0.022 (z 6) at least, for the least important pair of an Ant's joints, and otherwise by 0.067 (z 14) and more; rewards
# may be nearly symmetric in the actions: healthy heads prefer others by 0.66; 38 healthy policies prefer no other by
# more than 0.01, where an Ant's adjacent joints exchanged are 0.5.
BETTER, REWARD_BETTER, POLICY_BETTER = 0.01, 0.7, 0.3
BLOCK_MOVED = "actions before"
BLOCK_REPAIRED = 1.2  # a model that is broken in another way gains 0.8 by moving its inputs about

Error = Callable[[Tensor], Tensor]
"""Squared errors of the rows for actions [B, A]."""
Columns = tuple[int, ...]
"""Columns of the action in some order; ~i is column i with its sign turned."""


def _arranged(action: Float[Tensor, "B A"], columns: Columns) -> Float[Tensor, "B A"]:
    return torch.stack([action[:, i] if i >= 0 else -action[:, ~i] for i in columns], dim=-1)


def _neighbours(columns: Columns) -> list[Columns]:
    """One turned sign or one exchange away."""
    places = range(len(columns))
    turned = [(*columns[:i], ~columns[i], *columns[i + 1 :]) for i in places]
    return turned + [_exchanged(columns, i, j) for i, j in combinations(places, 2)]


def _exchanged(order: Columns, i: int, j: int) -> Columns:
    return tuple(order[{i: j, j: i}.get(place, place)] for place in range(len(order)))


@torch.no_grad()  # errors are measured, nothing is learnt
def measure_columns(subject: Subject) -> Figures:
    """Arrangements of the action's columns, on fresh explored episodes and on the replay buffer.

    `certain` is a log error ratio where it is beyond doubt, else 0. `ignored` is there where the action really matters.
    """
    generator = subject.generator("action columns")
    names = "explored", "replay"
    sources = sources_of_rows(subject, subject.explored, names=names, limit=ROWS, generator=generator)
    if not sources:
        return {"judged": "no: too few real transitions were recorded"}
    rows = next(iter(sources.values()))
    obs, action, change = rows.obs[0], rows.action[0], obs_changes(rows.obs[0], rows.obs[1])
    known, unknown = rows.held_out_error((obs, action), change), rows.held_out_error((obs,), change)
    matters = compare_errors(known, unknown, rows.block)  # what leaving out the action costs a regression
    figures: Figures = {}
    # Where it was trained a model may read the action well, and hardly at all far from there.
    shuffled = {source: shuffle_actions(subject, rows, generator) for source, rows in sources.items()}
    if matters.worse(MATTERS, Z):
        best = max(shuffled.values(), key=lambda each: float(each["z"]))
        figures["ignored"] = best | {
            "certain": best["effect"] if best["z"] >= SHUFFLED_Z else 0.0,
            "response": max(each["response"] for each in shuffled.values()),
            "matters": matters.effect,
        }
    for source, rows in sources.items():
        step, reward = OneStep.of(subject, rows), subject.agent.learning_reward(rows.reward[0])

        def reward_error(action: Tensor, step: OneStep = step, reward: Tensor = reward) -> Tensor:
            return (step.model.reward(step.z, action, step.context) - reward).square()

        figures[f"{source}_rearranged"] = improve(rows.action[0], step.error, rows.block, BETTER)[1]
        figures[f"{source}_reward_rearranged"] = improve(rows.action[0], reward_error, rows.block, REWARD_BETTER)[1]
    if len(sources) == 2:
        explored, replayed = (figures[f"{source}_reward_rearranged"] for source in sources)
        figures["reward_rearranged_in_both"] = explored | {"certain": max(explored["certain"], replayed["certain"])}
    if subject.replay is not None:
        figures["policy_rearranged"] = compare_policy_columns(subject, subject.replay)
    if "explored" in sources:
        figures["misplaced_input"] = misplaced_inputs(subject, sources["explored"])
    return figures


def shuffle_actions(subject: Subject, rows: TransitionWindows, generator: torch.Generator) -> Figures:
    """One-step predictions with other rows' actions against those with the rows' own.

    `effect` and `z` compare the errors; `response` is the RMS change of the prediction over the RMS change of the
    latent in a step, 0 where the dynamics does not read the action.
    """
    step, action = OneStep.of(subject, rows), rows.action[0]
    own, shuffled = step.next(action), step.next(action[rows.shuffled(generator)])
    moved, change = (step.target - step.z).square().mean(), (shuffled - own).square().mean()
    own_error, shuffled_error = ((each - step.target).square().mean(-1) for each in (own, shuffled))
    response = float((change / moved.clamp(min=torch.finfo(moved.dtype).tiny)).sqrt())
    return asdict(compare_errors(own_error, shuffled_error, rows.block)) | {"response": response}


def improve(
    action: Float[Tensor, "B A"], error: Error, block: Int[Tensor, " B"], effect: float
) -> tuple[Columns, Figures]:
    """Exchange and turn columns as long as one step more is better (by `effect` and z 5); what it came to."""
    here: Columns = tuple(range(action.shape[-1]))
    baseline = first = error(action)
    for _ in range(2 * len(here)):
        errors = {option: error(_arranged(action, option)) for option in _neighbours(here)}
        compared = {option: compare_errors(baseline, errors[option], block) for option in errors}
        best = best_of(compared)
        if not compared[best].better(effect, Z):
            break
        here, baseline = best, errors[best]
    words = ", ".join(str(i) if i >= 0 else f"-{~i}" for i in here)
    return here, _reached(f"[{words}]", compare_errors(first, baseline, block))


def _reached(arrangement: str, paired: Paired) -> Figures:
    certain = paired.effect if paired.z <= -Z else 0.0
    return {"arrangement": arrangement, "reached": asdict(paired), "certain": certain}


@torch.no_grad()  # actions are compared, nothing is learnt
def compare_policy_columns(subject: Subject, replay: ReplayBuffer) -> Figures | None:
    """Deterministic actions against stored ones, in the newest rows, acted by nearly these weights. None if too few.

    `follows` says whether the policy, as rearranged, is nearer to the stored actions than no action at all, or nearer
    to those of a state than to those of others: random actions say nothing about columns.
    """
    generator = subject.generator("policy columns")
    rows = newest_windows(replay, POLICY_ROWS, generator)
    if not rows.comparable:
        return None
    stored, own = rows.action[0], subject.agent.act(rows.obs[0], rows.task)

    def error(action: Tensor) -> Tensor:
        return (action - stored).square().mean(-1)

    columns, figures = improve(own, error, rows.block, POLICY_BETTER)
    arranged = _arranged(own, columns)
    blunt = (torch.zeros_like(own), arranged[rows.shuffled(generator)])
    compared = [compare_errors(error(each), error(arranged), rows.block) for each in blunt]
    return figures | {"follows": any(each.better(POLICY_BETTER, FOLLOWS_Z) for each in compared)}


def misplaced_inputs(subject: Subject, rows: TransitionWindows) -> Figures | None:
    """The exchange of an action's column with another at the dynamics' input that predicts best, and how well.

    Whole blocks in another order are tried too, and must help more. An exchange counts for nothing where a tenth of all
    do half as much: then anything helps the model. None where the network begins with no linear layer.
    """
    dynamics, dims = subject.agent.world_model.dynamics, subject.agent.world_model.dynamics.dims
    linear = next((part for part in dynamics.modules() if isinstance(part, nn.Linear)), None)
    if linear is None or linear.in_features < dims.latent_dim + dims.task_dim + dims.action_dim:
        return None

    def compare(rows: TransitionWindows, orders: dict[str, list[int]]) -> dict[str, Paired]:
        """Errors with the layer's inputs in these orders against those as they are."""
        error, action = OneStep.of(subject, rows).error, rows.action[0]
        as_is, found = error(action), {}
        for name, order in orders.items():
            with linear.register_forward_pre_hook(lambda module, inputs, order=order: (inputs[0][..., order],)):
                found[name] = compare_errors(as_is, error(action), rows.block)
        return found

    orders = _input_orders(dims, linear.in_features)
    tried = compare(rows.first(SEARCH_ROWS), orders)
    best = best_of(tried)
    alike = sum(paired.effect <= 0.5 * tried[best].effect for paired in tried.values())
    paired = compare(rows, {best: orders[best]})[best]
    whole_block = best.startswith(BLOCK_MOVED)
    doubtful = paired.effect > -BLOCK_REPAIRED if whole_block else alike > max(1, len(orders) // 10)
    return _reached(best, replace(paired, effect=0.0, z=0.0) if doubtful else paired)


def _input_orders(dims: DynamicsDims, inputs: int) -> dict[str, list[int]]:
    before, width, columns = dims.latent_dim + dims.task_dim, dims.action_dim, tuple(range(inputs))
    latent, task = columns[: dims.latent_dim], columns[dims.latent_dim : before]
    actions, rest = columns[before : before + width], columns[before + width :]
    orders = {f"{BLOCK_MOVED} everything else": actions + latent + task + rest}
    if task:
        orders[f"{BLOCK_MOVED} the task"] = latent + actions + task + rest
    if before * width <= SEARCH_LIMIT:
        for i, j in product(range(width), range(before)):
            orders[f"action {i} in the place of input {j}"] = _exchanged(columns, j, before + i)
    return {name: list(order) for name, order in orders.items()}
