"""Whether actions and rewards stand beside the observations that they belong to.

For every shift k the experience itself is asked how well obs[t+1] - obs[t] is explained by
(obs[t], action[t+k]), and reward[t+k] by (obs[t], action[t], obs[t+1]): by regression, without the
model. Which shift explains best depends on the task (a policy's next action betrays the state that it
answers to; a reward of the next state is as well a reward of the next step), so the profile over k is
compared with that of fresh episodes, whose alignment is known. The model is asked as well: one
that was trained on shifted rows predicts best with shifted rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.experience import (
    Part,
    Stretches,
    fresh_stretches,
    sampled_stretches,
    stored_stretches,
)
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.regression import fit_regression, predict_held_out
from flowmbpo.diagnostics.health.stored_rewards import Disagreement, find_disagreement
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject

REACH = 3
ROWS = 2048
REWARD_FEATURES = 256
ENOUGH_ROWS = 200  # fewer leave the regression too little to learn from
WIDTH = 2 * REACH + 1
Z = 6.0  # two-sided 2e-9: beyond any number of shifts and tasks tried
# Calibrated on 14 trained runs of 9 presets and 6 tasks. Whole buffers: aligned actions have an unshifted similarity
# of 0.97 and more, above every shifted one by 0.99; aligned rewards 0.56 and more, above by 0.34. Shifted on
# purpose, actions 0.98 by 0.95, rewards 0.57 by 0.30. Parts of buffers, actions: aligned at worst 0.64 by 0.17,
# shifted 0.99 by 1.0; profiles of rewards tell nothing there.
SIMILAR = 0.5
SIMILARITY_GAP = 0.2
PART_SIMILAR, PART_GAP = 0.9, 0.5
PARTS, PERIODS, PART_ROWS = 8, 4, 1024
DEEP = 0.3  # their fresh profiles are 0.7 to 11 deep, stored ones 0.6 to 12
VANISHED, VANISHED_DEPTH = 0.25, 0.15
CONTRADICTED = 0.25
"""A model that prefers a shift of the stored rewards by this, and none on fresh ones, contradicts the buffer."""
PREFERENCES = {"action": 0.05, "reward": 0.7}  # healthy models prefer shift 0, actions by 0.06 and rewards by 0.02
SHIFTS = tuple(range(-REACH, REACH + 1))
CANDIDATES = (-2, -1, 1, 2)


@dataclass(frozen=True)
class Profile:
    """How much worse (log ratio of squared errors, and z) each shift explains the same rows than shift 0."""

    shifts: dict[int, Paired]

    @property
    def depth(self) -> float:
        """Log error ratio of the worst to the best shift."""
        effects = [paired.effect for paired in self.shifts.values()]
        return max(effects) - min(effects)

    @property
    def significant(self) -> bool:
        """Whether some shift differs from shift 0 beyond chance."""
        return any(abs(paired.z) >= Z for paired in self.shifts.values())

    def preferred(self, effect: float) -> int | None:
        """The shift that is better than 0 by `effect` beyond doubt, if any."""
        best = min(self.shifts, key=lambda shift: self.shifts[shift].effect)
        return best if self.shifts[best].better(effect, Z) else None

    def similarity(self, other: Profile, shift: int) -> float:
        """Correlation of this profile with `other` moved by `shift`: 1 where this is `other` misaligned by it."""
        here = [k for k in self.shifts if k + shift in other.shifts]
        pair = torch.tensor(
            [[self.shifts[k].effect for k in here], [other.shifts[k + shift].effect for k in here]],
            dtype=torch.float64,
        )
        return float(torch.corrcoef(pair)[0, 1])

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {f"{shift:+d}": paired.effect for shift, paired in self.shifts.items()}


def make_profile(error: Callable[[int], Float[Tensor, " B"]], block: Int[Tensor, " B"]) -> Profile:
    """The profile of `error(shift)`, the squared error of every row."""
    baseline = error(0)
    return Profile({shift: compare_errors(baseline, error(shift), block) for shift in SHIFTS})


@dataclass(frozen=True)
class Misalignment:
    """How the stored profile lies against the fresh one: most like it moved by `shift` (never 0), or as it is.

    `vanished`: flat, where the fresh one is not.
    """

    shift: int
    similarity: float
    similarity_unshifted: float
    vanished: bool

    @property
    def gap(self) -> float:
        """By how much the shifted similarity exceeds the unshifted one; negative where the rows are aligned."""
        return self.similarity - self.similarity_unshifted

    @property
    def found(self) -> bool:
        """Whether the stored rows are misaligned, beyond doubt."""
        return self.vanished or (self.similarity >= SIMILAR and self.gap >= SIMILARITY_GAP)


def compare_profiles(stored: Profile, fresh: Profile) -> Misalignment | None:
    """None where the fresh profile is flat: then no shift could be told from another."""
    if fresh.depth < DEEP or not fresh.significant:
        return None
    similarity = {shift: stored.similarity(fresh, shift) for shift in CANDIDATES}
    shift = max(similarity, key=lambda k: similarity[k])
    vanished = stored.depth < VANISHED * fresh.depth and stored.depth < VANISHED_DEPTH
    return Misalignment(shift, similarity[shift], stored.similarity(fresh, 0), vanished)


@torch.no_grad()  # errors are measured, nothing is learnt
def check_alignment(subject: Subject, effort: Effort) -> Check:
    """Actions and rewards against observations, in the replay buffer and in fresh episodes.

    Findings: `off-by-one-replay`. Without a replay buffer only the model's own preference is seen.
    """
    del effort  # a fixed number of rows: fewer would not do, more would not help
    generator = subject.generator("alignment")
    fresh = fresh_stretches(subject.episodes, subject.explored, width=WIDTH, limit=ROWS, generator=generator)
    stored = None if subject.replay is None else sampled_stretches(subject.replay, WIDTH, ROWS, generator)
    figures: dict[str, Any] = {"fresh_rows": len(fresh), "replay_rows": 0 if stored is None else len(stored)}
    measured = {}
    for source, rows in (("fresh", fresh), ("replay", stored)):
        if rows is not None and len(rows) >= ENOUGH_ROWS and rows.comparable:
            measured[source] = profiles(subject, rows)
            figures |= {f"{source}_{name}": profile.to_dict() for name, profile in measured[source].items()}
    findings = _compare_whole(measured, figures)
    if not findings and subject.replay is not None:
        findings = _compare_parts(subject.replay, fresh if "fresh" in measured else None, generator, figures)
    for source, found in measured.items():
        for kind, least in PREFERENCES.items():
            profile = found[f"model_{kind}"]
            needed = least
            if source == "replay" and kind == "reward" and "fresh" in measured:
                needed = _needed_preference(profile, measured["fresh"][f"model_{kind}"], least)
            preferred = profile.preferred(needed)
            # What a head makes of states of one policy is no evidence of rewards; the whole buffer's is.
            if preferred is not None and (kind == "action" or source == "replay"):
                findings.append(_model_prefers(source, kind, preferred, profile.shifts[preferred]))
    return Check("alignment", figures, tuple(findings[:1]))


def _needed_preference(stored: Profile, fresh: Profile, alone: float) -> float:
    """How clearly the model must prefer its best shift of the stored rewards: less where fresh rewards deny it."""
    best = min(stored.shifts, key=lambda shift: stored.shifts[shift].effect)
    denied = fresh.shifts[best].effect > CONTRADICTED and fresh.shifts[best].z >= Z
    return CONTRADICTED if denied else alone


def _compare_whole(measured: dict[str, dict[str, Profile]], figures: dict[str, Any]) -> list[Finding]:
    """The buffer's profiles against those of fresh episodes."""
    findings: list[Finding] = []
    if not {"fresh", "replay"} <= measured.keys():
        return findings
    for kind in ("action", "reward"):
        judged = compare_profiles(measured["replay"][kind], measured["fresh"][kind])
        if judged is None:
            figures[f"replay_{kind}_alignment"] = "cannot be judged: fresh experience does not tell the shifts apart"
            continue
        figures[f"replay_{kind}_alignment"] = asdict(judged)
        if judged.found and not (kind == "action" and _denied(measured["replay"][kind], judged)):
            findings.append(_shifted(f"{kind}s in the replay buffer", judged))
    return findings


def _denied(stored: Profile, judged: Misalignment) -> bool:
    """Whether the shift that would mend the actions explains the stored rows worse than none: it mends nothing."""
    mended = stored.shifts[-judged.shift]
    return not judged.vanished and mended.effect > 0.0 and mended.z >= Z


def _compare_parts(
    replay: ReplayBuffer, fresh: Stretches | None, generator: torch.Generator, figures: dict[str, Any]
) -> list[Finding]:
    """Actions of parts of the buffer against fresh episodes, rewards of parts against each other."""
    families = (stored_lanes(replay, generator), stored_periods(replay, generator))
    if fresh is not None:
        shifted = shifted_parts(families[0] | families[1], fresh)
        figures["shifted_parts_of_replay"] = {name: part.shift for name, part in shifted.items()}
        if shifted:
            named = f"actions in {', '.join(shifted)} of the replay buffer"
            return [_shifted(named, next(iter(shifted.values())))]
    disagreements = [find_disagreement(parts) for parts in families]
    return [_rewards_disagree(each) for each in disagreements if each is not None]


def shifted_parts(parts: dict[str, Stretches], fresh: Stretches) -> dict[str, Misalignment]:
    """Those parts of the replay buffer whose actions are misaligned, by name.

    Some hundred transitions of a noisy task are not enough to tell.
    """
    reference = _action_profile(fresh.first(PART_ROWS))
    found = {}
    for name, rows in parts.items():
        profile = _action_profile(rows)
        judged = compare_profiles(profile, reference)
        # Few rows of a noisy task can look like anything: here the shift must stand out by itself as well.
        stands_out = profile.preferred(PREFERENCES["action"]) is not None
        if judged is not None and stands_out and judged.similarity >= PART_SIMILAR and judged.gap >= PART_GAP:
            found[name] = judged
    return found


def stored_lanes(replay: ReplayBuffer, generator: torch.Generator) -> dict[str, Stretches]:
    """Stretches of some of the lanes, by name; lanes with too few are left out."""
    order = torch.randperm(replay.num_envs, generator=generator, device=generator.device).tolist()
    return _stored(replay, {f"lane {lane}": Part((lane,)) for lane in sorted(order[:PARTS])}, generator)


def stored_periods(replay: ReplayBuffer, generator: torch.Generator) -> dict[str, Stretches]:
    """Stretches of each quarter of the stored time, oldest first."""
    every = tuple(range(replay.num_envs))
    parts = {f"quarter {k + 1}": Part(every, k / PERIODS, (k + 1) / PERIODS) for k in range(PERIODS)}
    return _stored(replay, parts, generator)


def _stored(replay: ReplayBuffer, parts: dict[str, Part], generator: torch.Generator) -> dict[str, Stretches]:
    rows = {name: stored_stretches(replay, part, WIDTH, PART_ROWS, generator) for name, part in parts.items()}
    return {name: each for name, each in rows.items() if len(each) >= ENOUGH_ROWS and each.comparable}


def _action_profile(rows: Stretches) -> Profile:
    """By regression, on the very rows that it was fitted to: as many weights for every shift, so all gain alike."""
    change = _change(rows)

    def error(shift: int) -> Tensor:
        inputs = torch.cat([rows.obs[REACH], rows.action[REACH + shift]], dim=-1)
        return (fit_regression(inputs, change, seed=0)(inputs) - change).square().mean(-1)

    return make_profile(error, rows.block)


def _change(rows: Stretches) -> Tensor:
    """obs[t + 1] - obs[t] of the coordinates that move, in their standard deviations."""
    obs = rows.obs[REACH]
    change = rows.obs[REACH + 1] - obs
    moving = change.std(0) > 1e-6 * (1.0 + obs.std(0))
    return change[:, moving] / change[:, moving].std(0)


def _shifted(what: str, judged: Misalignment) -> Finding:
    figures = {"shift": float(judged.shift), "similarity": judged.similarity}
    figures["similarity_unshifted"] = judged.similarity_unshifted
    if judged.vanished:
        said = f"no shift of the {what} explains the observations beside them, though in fresh episodes one does"
    else:
        said = (
            f"the {what} stand {abs(judged.shift)} step(s) too "
            f"{'late' if judged.shift < 0 else 'early'}: their profile over shifts correlates {judged.similarity:.2f} "
            f"with that of fresh episodes when moved so, {judged.similarity_unshifted:.2f} unmoved"
        )
    message = f"{said[0].upper()}{said[1:]}. Check where transitions are stored and windows are cut, and train anew."
    return Finding("off-by-one-replay", "broken", message, figures)


def _rewards_disagree(found: Disagreement) -> Finding:
    message = (
        f"In the replay buffer the rewards of {found.late} stand {found.steps} step(s) later than those of "
        f"{found.early}: a regression of the reward fitted on either explains the other's better when moved so (log "
        f"error ratio {found.paired.effect:.2f}, z {found.paired.z:.1f}, at least). Check where transitions are "
        "stored, and train anew."
    )
    return Finding("off-by-one-replay", "broken", message, {"shift": float(found.steps), **found.paired.to_dict()})


def _model_prefers(source: str, kind: str, shift: int, paired: Paired) -> Finding:
    where = "fresh episodes" if source == "fresh" else "the replay buffer"
    message = (
        f"On {where} the model agrees better with the {kind} of {abs(shift)} step(s) "
        f"{'later' if shift > 0 else 'before'} (log error ratio {paired.effect:.2f}, z {paired.z:.1f}): it was "
        "trained on misaligned rows, or these rows are. Check where transitions are stored and windows are cut."
    )
    return Finding("off-by-one-replay", "broken", message, {"shift": float(shift), **paired.to_dict()})


@torch.no_grad()  # errors are measured, nothing is learnt
def profiles(subject: Subject, rows: Stretches) -> dict[str, Profile]:
    """The four profiles of the rows: by regression and by the model, of actions and of rewards."""
    model, middle = subject.agent.world_model, REACH
    obs, obs_next, action = rows.obs[middle], rows.obs[middle + 1], rows.action[middle]
    change = _change(rows)
    half = rows.block % 2 == 0
    state, context = subject.encode(obs, rows.task)
    target = model.latent(subject.encode(obs_next, rows.task)[0])
    predicted = subject.agent.reward_normalizer.inverse(model.reward(model.latent(state), action, context))

    def explained_change(shift: int) -> Tensor:
        inputs = torch.cat([obs, rows.action[middle + shift]], dim=-1)
        return (predict_held_out(inputs, change, half, seed=0) - change).square().mean(-1)

    def explained_reward(shift: int) -> Tensor:
        inputs = torch.cat([obs, action, obs_next], dim=-1)
        reward = rows.reward[middle + shift].unsqueeze(-1)
        return (predict_held_out(inputs, reward, half, seed=0, features=REWARD_FEATURES) - reward).square().mean(-1)

    def model_change(shift: int) -> Tensor:
        moved = model.latent(model.next(state, rows.action[middle + shift], context))
        return (moved - target).square().mean(-1)

    def model_reward(shift: int) -> Tensor:
        return (predicted - rows.reward[middle + shift]).square()

    found = {"action": explained_change, "reward": explained_reward}
    found |= {"model_action": model_change, "model_reward": model_reward}
    return {name: make_profile(error, rows.block) for name, error in found.items()}
