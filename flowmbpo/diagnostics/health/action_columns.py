"""Whether the dynamics reads the actions' columns in the order in which the environment has them.

Real transitions are predicted once with the actions as taken and once with columns exchanged, or with
one's sign turned. Where another arrangement predicts better, the columns are mixed up somewhere between
environment, buffer and network.

Letters: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmbpo.diagnostics.health.arrangement import Arrangement, Z, dynamics_error, improve, reward_error
from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.experience import Stretches, fresh_stretches, sampled_stretches
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.misplaced import misplaced_inputs
from flowmbpo.diagnostics.health.policy_columns import compare_policy_columns
from flowmbpo.diagnostics.health.regression import predict_held_out
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject

ROWS = 3072
# Calibrated on 20 healthy checkpoints: every arrangement is worse, by a log error ratio of 0.022 (z 6) at least
# for the least important pair of an Ant's joints, and otherwise by 0.067 (z 14) and more.
BETTER = 0.01
REWARD_BETTER = 0.7  # rewards may be nearly symmetric in the actions: healthy heads prefer others by 0.66
POLICY_BETTER = 0.3  # 38 healthy policies prefer no other by more than 0.01; an Ant's adjacent joints exchanged: 0.5
MATTERS = 0.3  # what leaving out the action costs a regression: 0.48 and more
IGNORED, IGNORED_Z = 0.03, 4.0  # what shuffled actions cost healthy models: 0.17 (z 12) and more
DEAF = 0.05  # what other actions change of a prediction, over what a step changes: healthy 0.14 to 1.2
REPAIRED = 0.08  # exchanges with latents: healthy models are the worse for every one, planted ones -0.15 and beyond


@dataclass(frozen=True)
class Shuffled:
    """What other rows' actions do to one-step predictions.

    `cost` compares the errors; `response` is the RMS change of the prediction over the RMS change of the
    latent in a step, 0 where the dynamics does not read the action.
    """

    cost: Paired
    response: float

    def to_dict(self) -> dict[str, float]:
        """The JSON object."""
        return {**self.cost.to_dict(), "response": self.response}


@torch.no_grad()  # errors are measured, nothing is learnt
def check_action_columns(subject: Subject, effort: Effort) -> Check:
    """Arrangements of the action's columns, on fresh explored episodes and on the replay buffer.

    Findings: `swapped-action-columns` (of dynamics, reward head or policy); `action-ignored`, where the
    action matters in reality and not in the model.
    """
    del effort  # a fixed number of rows
    generator = subject.generator("action columns")
    sources = {"explored": fresh_stretches(subject.explored, width=1, limit=ROWS, generator=generator)}
    if subject.replay is not None:
        sources["replay"] = sampled_stretches(subject.replay, 1, ROWS, generator)
    sources = {source: rows for source, rows in sources.items() if rows.comparable}
    if not sources:
        return Check("action_columns", {"judged": "no: too few real transitions were recorded"})
    figures: dict[str, Any] = {}
    matters = reality(next(iter(sources.values())))
    # Where it was trained a model may read the action well, and hardly at all far from there.
    shuffled = {source: shuffle_actions(subject, rows, generator) for source, rows in sources.items()}
    figures["without_action_in_reality"] = matters.to_dict()
    figures |= {f"{source}_shuffled_in_model": each.to_dict() for source, each in shuffled.items()}
    findings = _ignored(matters, shuffled, deaf=True)
    if not findings:
        findings = _rearranged(subject, sources, figures)
    if not findings and "explored" in sources:
        findings = _misplaced(subject, sources["explored"], figures)
    if not findings:
        findings = _ignored(matters, shuffled, deaf=False)
    return Check("action_columns", figures, tuple(findings[:1]))


def _rearranged(subject: Subject, sources: dict[str, Stretches], figures: dict[str, Any]) -> list[Finding]:
    findings: list[Finding] = []
    rewards: list[tuple[Arrangement, Paired]] = []
    for source, rows in sources.items():
        arrangement, paired, nearest = improve(rows.action[0], dynamics_error(subject, rows), rows.block, BETTER)
        figures[f"{source}_rearranged"] = nearest.to_dict()
        if paired.better(BETTER, Z):
            findings.append(_swapped("dynamics", source, str(arrangement), paired))
        arrangement, paired, nearest = improve(rows.action[0], reward_error(subject, rows), rows.block, REWARD_BETTER)
        figures[f"{source}_reward_rearranged"] = nearest.to_dict()
        rewards.append((arrangement, paired))
    if all(paired.better(REWARD_BETTER, Z) for _, paired in rewards) and len(rewards) == 2:
        findings.append(_swapped("reward head", "explored", str(rewards[0][0]), rewards[0][1]))
    policy = None if subject.replay is None else compare_policy_columns(subject, subject.replay, POLICY_BETTER)
    if policy is not None:
        figures["policy_rearranged"] = policy.nearest.to_dict()
        if policy.reached.better(POLICY_BETTER, Z) and policy.follows:
            findings.append(_swapped("policy", "replay", str(policy.arrangement), policy.reached))
    return findings


def _misplaced(subject: Subject, rows: Stretches, figures: dict[str, Any]) -> list[Finding]:
    found = misplaced_inputs(subject, rows)
    if found is None:
        figures["misplaced_input"] = "not judged: the dynamics' network begins with no linear layer"
        return []
    name, paired = found
    figures["misplaced_input"] = {"exchange": name, **paired.to_dict()}
    return [_swapped("dynamics", "explored", name, paired)] if paired.better(REPAIRED, Z) else []


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


def shuffle_actions(subject: Subject, rows: Stretches, generator: torch.Generator) -> Shuffled:
    """Predictions with other rows' actions against those with the rows' own."""
    model, action = subject.agent.world_model, rows.action[0]
    state, context = subject.encode(rows.obs[0], rows.task)
    target = model.latent(subject.encode(rows.obs[1], rows.task)[0])
    other = torch.randperm(len(rows), generator=generator, device=generator.device).to(action.device)
    own = model.latent(model.next(state, action, context))
    shuffled = model.latent(model.next(state, action[other], context))
    step, response = (target - model.latent(state)).square().mean(), (shuffled - own).square().mean()
    cost = compare_errors((own - target).square().mean(-1), (shuffled - target).square().mean(-1), rows.block)
    return Shuffled(cost, float((response / step.clamp(min=torch.finfo(step.dtype).tiny)).sqrt()))


def _swapped(part: str, source: str, arrangement: str, paired: Paired) -> Finding:
    where = "explored real episodes" if source == "explored" else "the replay buffer"
    message = (
        f"On {where} the {part} agrees better with the action's columns as {arrangement} (log error ratio "
        f"{paired.effect:.2f}, z {paired.z:.1f}): columns are exchanged or turned between environment, buffer and "
        "network. Check the order of the inputs, and train anew."
    )
    return Finding("swapped-action-columns", "broken", message, paired.to_dict())


def _ignored(matters: Paired, shuffled: dict[str, Shuffled], *, deaf: bool) -> list[Finding]:
    """`deaf`: only where the dynamics hardly reads the action, and not where it merely makes nothing good of it."""
    best = max(shuffled.values(), key=lambda each: each.cost.z)
    response = max(each.response for each in shuffled.values())
    ignored = response < DEAF if deaf else best.cost.effect < IGNORED or best.cost.z < IGNORED_Z
    if not (ignored and matters.effect >= MATTERS and matters.z >= Z):
        return []
    message = (
        f"The dynamics predicts as well with other rows' actions (log error ratio {best.cost.effect:.3f}, z "
        f"{best.cost.z:.1f}; they change its predictions by {response:.2g} of a step), though in reality they matter "
        f"(a regression without them errs by {matters.effect:.2f} more): no gradient of any use reaches the actor "
        "through it. Check the action's way into the network, and its alignment."
    )
    figures = {"shuffled": best.cost.effect, "shuffled_z": best.cost.z, "response": response}
    return [Finding("action-ignored", "broken", message, figures | {"reality": matters.effect})]
