"""Whether actions and rewards stand beside the observations that they belong to.

For every shift k a regression is asked how well (obs[t], action[t+k]) explains obs[t+1] - obs[t], and (obs[t],
action[t], obs[t+1]) reward[t+k]. Which shift explains best depends on the task, so the profile over k is compared with
that of fresh episodes, whose alignment is known. A model that was trained on shifted rows predicts best with such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.experience import (
    OneStep,
    Paired,
    TransitionWindows,
    best_of,
    compare_errors,
    fit_regression,
    fresh_windows,
    obs_changes,
    sampled_windows,
    stored_windows,
)
from flowmbpo.diagnostics.health.probes import Figures
from flowmbpo.diagnostics.subject import Subject

REACH = 3
WIDTH = 2 * REACH + 1
SHIFTS = tuple(range(-REACH, REACH + 1))
CANDIDATES = (-2, -1, 1, 2)
ROWS = 2048
REWARD_FEATURES = 256
ENOUGH_ROWS = 200  # fewer leave the regression too little to learn from
PARTS, PERIODS, PART_ROWS = 8, 4, 1024
Z = 6.0  # two-sided 2e-9: beyond any number of shifts and tasks tried
# Calibrated on 14 trained runs of 9 presets and 6 tasks. Whole buffers: aligned actions have an unshifted similarity
# of 0.97 and more, above every shifted one by 0.99; aligned rewards 0.56 and more, above by 0.34. Shifted on
# purpose, actions 0.98 by 0.95, rewards 0.57 by 0.30. Parts of buffers, actions: aligned at worst 0.64 by 0.17,
# shifted 0.99 by 1.0; profiles of rewards tell nothing there.
SIMILAR = 0.5
PART_SIMILAR, PART_GAP, PART_PREFERS = 0.9, 0.5, 0.05
DEEP = 0.3  # their fresh profiles are 0.7 to 11 deep, stored ones 0.6 to 12
VANISHED, VANISHED_DEPTH = 0.25, 0.15
DENIED = 0.25  # by so much fresh rewards are explained worse by the shift that the model prefers in the buffer
# On 28 trained runs sound environments have shifts worse by 0.07 and more, and mostly by 1 to 8; sound quarters
# of the time better by 0.02 (z 0.6) at most. Rewards one row late in half of the environments: better by 0.2 to 4.9
# (z 1.4 to 17), by 0.45 (z 3) in all but two runs. Both directions must be better.
DISAGREE = (0.25, 3.5)


Profile = dict[int, Paired]
"""How much worse (log ratio of squared errors, and z) each shift explains the same rows than shift 0."""


def make_profile(error: Callable[[int], Float[Tensor, " B"]], block: Int[Tensor, " B"]) -> Profile:
    """The profile of `error(shift)`, the squared error of every row."""
    baseline = error(0)
    return {shift: compare_errors(baseline, error(shift), block) for shift in SHIFTS}


def depth(profile: Profile) -> float:
    """Log error ratio of the worst to the best shift."""
    return max(each.effect for each in profile.values()) - min(each.effect for each in profile.values())


def similarity(stored: Profile, fresh: Profile, shift: int) -> float:
    """Correlation of a profile with another one moved by `shift`: 1 where the first is the other misaligned by it."""
    here = [k for k in stored if k + shift in fresh]
    pair = [[stored[k].effect for k in here], [fresh[k + shift].effect for k in here]]
    return float(torch.corrcoef(torch.tensor(pair, dtype=torch.float64))[0, 1])


@torch.no_grad()  # errors are measured, nothing is learnt
def measure_alignment(subject: Subject) -> Figures:
    """Actions and rewards against observations, in the replay buffer and in fresh episodes.

    Without a replay buffer only the model's own preference is seen.
    """
    generator = subject.generator("alignment")
    fresh_rows = fresh_windows(subject.episodes, subject.explored, width=WIDTH, limit=ROWS, generator=generator)
    stored_rows = None if subject.replay is None else sampled_windows(subject.replay, WIDTH, ROWS, generator)
    fresh, stored = (profiles(subject, rows) if rows and enough(rows) else None for rows in (fresh_rows, stored_rows))
    figures: Figures = {}
    if fresh and stored:
        for kind in ("action", "reward"):
            figures[f"replay_{kind}_alignment"] = compare_profiles(stored[kind], fresh[kind])
    if subject.replay is not None:
        families = stored_parts(subject.replay, generator)
        if fresh:
            shifted = shifted_parts(families[0] | families[1], fresh_rows)
            figures["shifted_parts"] = next(iter(shifted.values()), {}) | {"names": list(shifted)}
        figures["disagreement"] = next(filter(None, map(find_disagreement, families)), {"effect": 0.0})
    if fresh:  # what a head makes of states of one policy is no evidence of rewards; the whole buffer's is
        figures["preference_fresh_action"] = _preference(fresh["model_action"])
    if stored:
        for kind in ("action", "reward"):
            figures[f"preference_replay_{kind}"] = _preference(stored[f"model_{kind}"])
    if fresh and stored:
        preference = figures["preference_replay_reward"]
        contradicted = fresh["model_reward"][preference["shift"]].worse(DENIED, Z)
        preference["effect_denied_by_fresh"] = preference["effect"] if contradicted else None
    return figures


def enough(rows: TransitionWindows) -> bool:
    """Whether a regression has what it needs to learn."""
    return len(rows) >= ENOUGH_ROWS and rows.comparable


def profiles(subject: Subject, rows: TransitionWindows) -> dict[str, Profile]:
    """The four profiles of the rows: by regression and by the model, of actions and of rewards."""
    obs, obs_next, action = rows.obs[REACH], rows.obs[REACH + 1], rows.action[REACH]
    change, step = obs_changes(obs, obs_next), OneStep.of(subject, rows, REACH)
    predicted = subject.agent.predict_reward(step.z, action, step.context)
    now, reward = (obs, action, obs_next), rows.reward.unsqueeze(-1)
    errors: dict[str, Callable[[int], Tensor]] = {
        "action": lambda shift: rows.held_out_error((obs, rows.action[REACH + shift]), change),
        "reward": lambda shift: rows.held_out_error(now, reward[REACH + shift], REWARD_FEATURES),
        "model_action": lambda shift: step.error(rows.action[REACH + shift]),
        "model_reward": lambda shift: (predicted - rows.reward[REACH + shift]).square(),
    }
    return {name: make_profile(error, rows.block) for name, error in errors.items()}


def compare_profiles(stored: Profile, fresh: Profile) -> Figures:
    """How the stored profile lies against the fresh one: most like it moved by `shift` (never 0), or as it is.

    `gap` says by how much that similarity exceeds the unshifted one, None where it is not similar at all; `mends` is
    false where moving the rows back explains them worse than leaving them; `vanished` says that the profile is flat
    where the fresh one is not. Nothing is said where the fresh one is flat.
    """
    if depth(fresh) < DEEP or not any(abs(paired.z) >= Z for paired in fresh.values()):
        return {"judged": "no: fresh experience does not tell the shifts apart"}
    alike = {shift: similarity(stored, fresh, shift) for shift in (0, *CANDIDATES)}
    shift = max(CANDIDATES, key=lambda k: alike[k])
    return {
        "shift": shift,
        "steps": abs(shift),
        "direction": "late" if shift < 0 else "early",
        "similarity": alike[shift],
        "similarity_unshifted": alike[0],
        "mends": not (stored[-shift].effect > 0.0 and stored[-shift].z >= Z),
        "gap": alike[shift] - alike[0] if alike[shift] >= SIMILAR else None,
        "vanished": depth(stored) < VANISHED * depth(fresh) and depth(stored) < VANISHED_DEPTH,
    }


def _preference(profile: Profile) -> Figures:
    """The shift that the model predicts best with, and its log error ratio: 0 where that may be chance."""
    best = best_of(profile)
    effect, z, direction = profile[best].effect, profile[best].z, "later" if best > 0 else "before"
    return {"shift": best, "steps": abs(best), "direction": direction, "effect": effect if z <= -Z else 0.0, "z": z}


def shifted_parts(parts: dict[str, TransitionWindows], fresh: TransitionWindows) -> dict[str, Figures]:
    """Those parts of the replay buffer whose actions are misaligned, by name."""
    reference = _action_profile(fresh.first(PART_ROWS))
    shifted = {}
    for name, rows in parts.items():
        profile = _action_profile(rows)
        judged = compare_profiles(profile, reference)
        # Few rows of a noisy task can look like anything: here the shift must stand out by itself as well.
        stands_out = profile[best_of(profile)].better(PART_PREFERS, Z)
        if stands_out and judged.get("similarity", 0.0) >= PART_SIMILAR and judged["gap"] >= PART_GAP:
            shifted[name] = judged
    return shifted


def stored_parts(replay: ReplayBuffer, generator: torch.Generator) -> list[dict[str, TransitionWindows]]:
    """Windows of some of the environments, and of each quarter of the stored time, by name; too few are left out."""
    order = torch.randperm(replay.num_envs, generator=generator, device=generator.device).tolist()

    def windows(envs: Sequence[int], oldest: float = 0.0, newest: float = 1.0) -> TransitionWindows:
        return stored_windows(replay, envs, WIDTH, PART_ROWS, generator, (oldest, newest))

    environments = {f"environment {env}": windows((env,)) for env in sorted(order[:PARTS])}
    everywhere = range(replay.num_envs)
    quarters = {f"quarter {k + 1}": windows(everywhere, k / PERIODS, (k + 1) / PERIODS) for k in range(PERIODS)}
    return [{name: rows for name, rows in family.items() if enough(rows)} for family in (environments, quarters)]


def _action_profile(rows: TransitionWindows) -> Profile:
    """By regression, on the very rows that it was fitted to: as many weights for every shift, so all gain alike."""
    change = obs_changes(rows.obs[REACH], rows.obs[REACH + 1])

    def error(shift: int) -> Tensor:
        inputs = torch.cat([rows.obs[REACH], rows.action[REACH + shift]], dim=-1)
        return (fit_regression(inputs, change)(inputs) - change).square().mean(-1)

    return make_profile(error, rows.block)


def find_disagreement(parts: Mapping[str, TransitionWindows]) -> Figures | None:
    """Whether the rewards of one part of a replay buffer stand as those of another do: the clearest disagreement.

    A regression of reward[t] on (obs[t], action[t], obs[t+1]) is fitted in one part and asked in another how well it
    explains reward[t+k] there. Where rewards of one part were stored a row off, the parts contradict each other, in
    opposite directions: `effect` and `z` are the weaker evidence of the two. None where all agree or none is sure.
    """

    inputs = {
        name: torch.cat([rows.obs[REACH], rows.action[REACH], rows.obs[REACH + 1]], dim=-1)
        for name, rows in parts.items()
    }
    models = {
        name: fit_regression(inputs[name], rows.reward[REACH].unsqueeze(-1), REWARD_FEATURES)
        for name, rows in parts.items()
    }

    def asked(source: str, part: str) -> Profile:
        """Errors with the rewards of every shift against those with the rewards as stored."""
        rows, predicted = parts[part], models[source](inputs[part]).squeeze(-1)
        return make_profile(lambda shift: (predicted - rows.reward[REACH + shift]).square(), rows.block)

    evidence = {pair: asked(*pair) for pair in permutations(parts, 2)}
    clearest, found = 0.0, None
    for (early, late), steps in product(evidence, (1, 2)):
        both = evidence[early, late][steps], evidence[late, early][-steps]
        if all(paired.better(*DISAGREE) for paired in both) and both[0].effect + both[1].effect < clearest:
            clearest, weaker = both[0].effect + both[1].effect, max(both, key=lambda paired: paired.z)
            found = {"late": late, "early": early, "steps": steps, "effect": weaker.effect, "z": weaker.z}
    return found
