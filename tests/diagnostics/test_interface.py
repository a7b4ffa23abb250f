"""The sentence that every diagnosis ends in switches where its figures do."""

import math
from types import SimpleNamespace

import pytest

from flowmbpo.diagnostics.actions import MOSTLY, NARROW, ActionsDiagnosis
from flowmbpo.diagnostics.compute import ComputeDiagnosis
from flowmbpo.diagnostics.esnr import EsnrDiagnosis
from flowmbpo.diagnostics.gradient.diagnosis import ALIGNED, GradientDiagnosis
from flowmbpo.diagnostics.interface import SUMMARIES
from flowmbpo.diagnostics.jacobians import EXPLODES, VANISHES, JacobianDiagnosis
from flowmbpo.diagnostics.registry import DIAGNOSTICS
from flowmbpo.diagnostics.reward_gap import RewardGapDiagnosis
from flowmbpo.diagnostics.rollout.diagnosis import RolloutDiagnosis
from flowmbpo.diagnostics.statistics import Interval

EPS = 1e-6


def reading(diagnosis, **figures):
    """The sentence of a diagnosis that has these figures and no others."""
    found = object.__new__(diagnosis)
    vars(found).update(figures)
    return found.reading


def about(value, half=0.1):
    return Interval(value, value - half, value + half)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (EXPLODES + EPS, "explode."),
        (EXPLODES, "neither"),
        (VANISHES, "neither"),
        (VANISHES - EPS, "vanish."),
    ],
)
def test_jacobians_name_the_growth_through_the_horizon(gain, words):
    def norms(horizon, loop, gain):
        return SimpleNamespace(of="z", horizon=horizon, loop=loop, model_noise="none", gain=gain)

    told = reading(
        JacobianDiagnosis, horizon=(norms(1, "closed", 1.0), norms(16, "open", 1.0), norms(16, "closed", gain))
    )
    assert words in told and "16 steps" in told


@pytest.mark.parametrize(
    ("value", "interval", "words"),
    [
        (None, None, "are equal"),
        (0.5, (-EPS, 1.0), "no signal"),
        (0.5, (EPS, 1.0), "in the mean of 2."),
        (1.0 - EPS, (EPS, 2.0), "mostly noise"),
        (1.0, (EPS, 2.0), "more signal than noise"),
    ],
)
def test_esnr_says_how_much_of_an_update_is_signal(value, interval, words):
    bounds = interval and Interval(value, *interval)
    snr = SimpleNamespace(batch=8, esnr=SimpleNamespace(value=value, interval=bounds, gradients=64))
    assert words in reading(EsnrDiagnosis, actor={"total": snr})


@pytest.mark.parametrize(
    ("cosine", "words"),
    [
        (Interval(math.nan, math.nan, math.nan), "cannot be told"),
        (Interval(0.9, -EPS, 1.0), "cannot be told"),
        (Interval(-0.5, -0.9, -EPS), "against"),
        (Interval(ALIGNED, EPS, 1.0), "policy where the real"),
        (Interval(ALIGNED - EPS, EPS, 1.0), "but partly"),
    ],
)
def test_gradient_says_where_the_model_pulls(cosine, words):
    same = SimpleNamespace(cosine=cosine)
    told = reading(GradientDiagnosis, input_gradient="through", through=same, rewards=same)
    assert words in told and "critic" not in told


def test_gradient_names_a_critic_that_turns_it():
    whole, rewards = SimpleNamespace(cosine=about(0.2)), SimpleNamespace(cosine=about(0.8))
    told = reading(GradientDiagnosis, input_gradient="detached", detached=whole, rewards=rewards)
    assert told.endswith("without the critic's value the cosine is 0.8.")


@pytest.mark.parametrize(
    ("relative", "words"),
    [
        ((1.0, 0.5, 0.5), "Already after one step"),
        ((0.9, 0.9, 1.0, 0.5), "then worse: the end of its 3-step horizon"),
        ((0.9, 0.9, 0.9, 1.0), "covers the 3"),
        ((0.9, 0.9, 0.9), "as far as was measured"),
    ],
)
def test_rollout_says_how_far_the_model_may_be_followed(relative, words):
    steps = tuple(SimpleNamespace(step=k, relative=about(value)) for k, value in enumerate(relative, start=1))
    assert words in reading(RolloutDiagnosis, steps=steps, trained_horizon=3)


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (Interval(5.0, EPS, 10.0), "5 more than the environment pays for an episode (25% of it)"),
        (Interval(5.0, 0.0, 10.0), "agree as far as 8 episodes"),
        (Interval(-5.0, -10.0, -EPS), "5 less"),
    ],
)
def test_reward_gap_says_who_pays_more(gap, words):
    whole = SimpleNamespace(gap=gap, relative=about(0.25), episodes=8)
    assert words in reading(RewardGapDiagnosis, deterministic=SimpleNamespace(episodes=whole))


def dimension(saturation=0.1, std=0.5):
    return SimpleNamespace(saturation=about(saturation, 0.0), std_within=about(std, 0.0))


@pytest.mark.parametrize(
    ("dimensions", "shape", "words"),
    [
        (
            [dimension(saturation=MOSTLY + EPS), dimension(saturation=MOSTLY)],
            None,
            "1 of 2 action dimensions are saturated",
        ),
        ([dimension(std=NARROW - EPS), dimension(std=NARROW)], None, "1 of 2 action dimensions have lost their spread"),
        ([dimension()], None, "spread and unsaturated."),
        ([dimension()], Interval(2.0, 0.0, 4.0), "earns no more"),
        ([dimension()], Interval(2.0, EPS, 4.0), "earns 2 more"),
        ([dimension()], Interval(-2.0, -4.0, -EPS), "earns 2 less"),
    ],
)
def test_actions_name_stuck_dimensions_then_the_worth_of_shape(dimensions, shape, words):
    returns = shape and SimpleNamespace(sampled_minus_gaussian=shape)
    assert words in reading(ActionsDiagnosis, dimensions=tuple(dimensions), returns=returns)


def test_compute_names_the_largest_part_of_an_epoch():
    measured = {"model": SimpleNamespace(seconds=0.1), "actor": SimpleNamespace(seconds=0.6)}
    cost = SimpleNamespace(updates_per_epoch={"model": 18, "actor": 2})
    assert reading(ComputeDiagnosis, measured=measured, cost=cost).endswith("60% of it in those of the model.")
    cost.updates_per_epoch = {"model": 0, "actor": 0}
    assert "no updates" in reading(ComputeDiagnosis, measured=measured, cost=cost)


def test_every_name_has_its_measurement():
    assert DIAGNOSTICS.keys() == SUMMARIES.keys()
