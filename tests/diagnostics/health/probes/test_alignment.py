"""Actions and rewards against observations, by shift."""

import pytest
import torch

from flowmbpo.diagnostics.health.experience import (
    Paired,
    TransitionWindows,
    best_of,
    fresh_windows,
    sampled_windows,
)
from flowmbpo.diagnostics.health.probes.alignment import (
    CANDIDATES,
    REACH,
    SHIFTS,
    WIDTH,
    Z,
    compare_profiles,
    depth,
    find_disagreement,
    make_profile,
    profiles,
    shifted_parts,
    stored_parts,
)


def profile_of(*effects, z=20.0):
    return {shift: Paired(effect, z, 100) for shift, effect in zip(SHIFTS, effects, strict=True)}


SHARP = profile_of(5.0, 4.0, 3.0, 0.0, 2.0, 3.0, 4.5)
BETRAYED = profile_of(9.0, 8.0, 0.0, 0.0, 7.0, 8.0, 9.0)  # a reward of the next state: two shifts explain alike


def moved(profile, by):
    """What a buffer shows whose rows stand `-by` steps late; what lies beyond the window is as its end."""
    return {shift: profile[max(-REACH, min(REACH, shift + by))] for shift in SHIFTS}


@pytest.mark.parametrize("reference", [SHARP, BETRAYED])
@pytest.mark.parametrize("by", CANDIDATES)
def test_a_moved_profile_is_recognised_with_its_shift(reference, by):
    judged = compare_profiles(moved(reference, by), reference)
    assert judged["gap"] > 0.2 and judged["shift"] == by and judged["similarity"] > 0.9


@pytest.mark.parametrize("reference", [SHARP, BETRAYED])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_a_profile_of_another_depth_is_still_the_same(reference, scale):
    """Older experience is explained less well than today's, by every shift alike."""
    stored = {shift: Paired(scale * p.effect, p.z, p.n) for shift, p in reference.items()}
    judged = compare_profiles(stored, reference)
    assert judged["similarity_unshifted"] == pytest.approx(1.0)
    assert not judged["vanished"] and (judged["gap"] is None or judged["gap"] < 0.2)


def test_a_profile_that_is_flat_where_the_fresh_one_is_not_has_vanished():
    judged = compare_profiles(profile_of(0.01, 0.0, 0.02, 0.0, 0.01, 0.02, 0.0), SHARP)
    assert judged["vanished"]


def test_actions_that_are_best_where_they_stand_are_aligned(found_in):
    """As found with a policy that does the same everywhere: the fresh profile has a second dent, two steps off."""
    fresh = profile_of(0.16, 0.47, 0.4, 0.0, 0.27, 0.07, 0.41)
    stored = profile_of(0.33, 0.22, 0.19, 0.0, 0.27, 0.29, 0.32)
    judged = compare_profiles(stored, fresh)
    assert judged["shift"] == 2
    assert not judged["mends"]
    assert found_in("alignment", {"replay_action_alignment": judged}) == []
    judged["mends"] = True
    assert found_in("alignment", {"replay_action_alignment": judged}) == [("off-by-one-replay", "broken")]


def test_nothing_is_judged_by_a_fresh_profile_that_is_flat_or_chance():
    assert compare_profiles(SHARP, profile_of(0.1, 0.0, 0.1, 0.0, 0.1, 0.0, 0.1)).keys() == {"judged"}
    assert compare_profiles(SHARP, profile_of(5.0, 4.0, 3.0, 0.0, 2.0, 3.0, 4.5, z=2.0)).keys() == {"judged"}


def test_errors_make_the_profile():
    errors = {shift: torch.full((60,), 1.0 + abs(shift)) for shift in SHIFTS}
    profile = make_profile(lambda shift: errors[shift], torch.arange(60) // 2)
    assert profile[0].effect == 0.0
    assert depth(profile) == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-3)
    assert best_of(profile) == 0


def test_a_shift_that_is_better_by_a_little_is_not_preferred():
    """Beyond doubt, and of no matter."""
    rows = torch.rand(400, generator=torch.Generator().manual_seed(0)) + 1.0
    profile = make_profile(lambda shift: rows * (1.0 - 0.01 * (shift == 1)), torch.arange(400))
    assert not profile[1].better(0.05, Z)
    assert best_of(profile) == 1 and profile[1].better(0.001, Z)


def test_the_regression_knows_where_the_actions_belong(sound):
    subject = sound
    rows = fresh_windows(
        subject.episodes, subject.explored, width=WIDTH, limit=1000, generator=subject.generator("test")
    )
    found = profiles(subject, rows)
    for name in ("action", "model_action"):
        assert min(p.effect for shift, p in found[name].items() if shift) > 0.5, name


def test_a_sound_buffer_is_aligned(sound_health):
    figures = sound_health.checks["alignment"]
    assert figures["replay_action_alignment"]["similarity_unshifted"] > 0.9
    assert figures["shifted_parts"]["names"] == []


@pytest.mark.parametrize("by", [-2, 1])
def test_shifted_stored_actions_are_found_with_their_direction(by, load_small, examine):
    subject = load_small()
    subject.replay.action = subject.replay.action.roll(by, 0)
    figures, (finding,) = examine(subject, "alignment")
    assert finding.name == "off-by-one-replay"
    assert (
        figures["replay_action_alignment"]["shift"] == -by
    )  # stored one row late: the true action stands a row earlier
    assert ("late" if by > 0 else "early") in finding.message


def test_shuffled_actions_are_found_though_no_shift_mends_them(load_small, named):
    subject = load_small()
    replay = subject.replay
    order = torch.randperm(len(replay.action), generator=torch.Generator().manual_seed(0))
    replay.action = replay.action[order]
    assert named(subject, "alignment") == ["off-by-one-replay"]


def test_single_environments_that_are_shifted_are_named(load_small):
    subject = load_small()
    subject.replay.action[:, 2] = subject.replay.action[:, 2].roll(1, 0)
    generator = subject.generator("test")
    fresh = fresh_windows(subject.episodes, subject.explored, width=WIDTH, limit=1000, generator=generator)
    assert list(shifted_parts(stored_parts(subject.replay, generator)[0], fresh)) == ["environment 2"]


def test_a_model_that_prefers_shifted_actions_is_found_without_a_buffer(load_small, monkeypatch):
    """A model that was trained on rows one late reads, of a window, the action before."""
    subject = load_small()
    subject.replay = None
    model = subject.agent.world_model
    generator = subject.generator("test")
    rows = fresh_windows(subject.explored, width=WIDTH, limit=1000, generator=generator)
    after = {tuple(then.tolist()): now for now, then in zip(rows.action[REACH], rows.action[REACH - 1], strict=True)}
    step = model.next

    def late(state, action, context):
        told = torch.stack([after.get(tuple(a.tolist()), a) for a in action])
        return step(state, told, context)

    monkeypatch.setattr(model, "next", late)
    found = profiles(subject, rows)["model_action"]
    assert best_of(found) == -1 and found[-1].better(0.05, Z)


def test_windows_of_a_buffer_are_enough_for_its_profile(sound):
    subject = sound
    assert len(sampled_windows(subject.replay, WIDTH, 500, subject.generator("test"))) > 200


STEPS = 600


def env(seed, late=0):
    """A damped walk whose reward is obs + action, stored `late` rows late."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(STEPS, 1, generator=generator) * 2.0 - 1.0
    obs = torch.zeros(STEPS + 1, 1)
    for step in range(STEPS):
        obs[step + 1] = 0.8 * obs[step] + action[step]
    reward = (obs[:-1] + action).squeeze(-1).roll(late)
    starts = torch.arange(10, STEPS - WIDTH - 10)
    steps = starts + torch.arange(WIDTH + 1).unsqueeze(1)
    zero = torch.zeros_like(starts)
    return TransitionWindows(obs[steps], action[steps[:-1]], reward[steps[:-1]], zero, starts // 25)


def test_environments_that_agree_are_left_alone():
    assert find_disagreement({f"environment {seed}": env(seed) for seed in range(4)}) is None


def test_the_later_environment_is_named_with_its_distance():
    found = find_disagreement({"a": env(0), "b": env(1, late=1), "c": env(2)})
    assert found["late"] == "b" and found["early"] in "ac" and found["steps"] == 1
    swapped = find_disagreement({"b": env(1, late=1), "a": env(0)})
    assert (swapped["late"], swapped["early"]) == ("b", "a")


def test_environments_all_late_do_not_contradict_each_other():
    """That is for the comparison with fresh episodes."""
    assert find_disagreement({"a": env(0, late=1), "b": env(1, late=1)}) is None


def test_rewards_of_noise_contradict_nothing():
    parts = {}
    for seed in range(6):
        rows = env(seed)
        rows.reward.copy_(torch.randn(rows.reward.shape, generator=torch.Generator().manual_seed(seed)))
        parts[str(seed)] = rows
    assert find_disagreement(parts) is None


def test_rewards_late_in_half_the_environments_are_found(load_small, named):
    subject = load_small()
    replay = subject.replay
    replay.reward[:, ::2] = replay.reward[:, ::2].roll(1, 0)
    assert named(subject, "alignment") == ["off-by-one-replay"]
