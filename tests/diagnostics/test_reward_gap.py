"""The same policy's rewards in the model and in the environment."""

import json

import pytest
import torch
from matplotlib.figure import Figure

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.reward_gap import RewardPairs, imagine_rewards, measure_reward_gap
from flowmbpo.diagnostics.statistics import resample_counts
from flowmbpo.errors import DataError
from flowmbpo.evaluation.episodes import Episodes

EFFORT = Effort(resamples=200, windows=32, horizon=16)


def open_loop(agent, batch, replicas):
    return imagine_rewards(agent, batch, torch.Generator(), replicas, actor=None, sampled=False)


def test_a_perfect_model_has_no_gap(make_regulator):
    """Whole episodes (50 steps), windows and every step, to float32's rounding over 50 steps."""
    found = measure_reward_gap(make_regulator(), EFFORT)
    for gaps in (found.deterministic, found.sampled):
        for gap in (gaps.episodes, gaps.open_loop, gaps.closed_loop):
            assert gap.real.value < -0.1
            assert gap.relative.value == pytest.approx(0.0, abs=1e-4)
            assert gap.gap.value == pytest.approx(0.0, abs=1e-4)
        assert gaps.episodes.steps == 50
        assert gaps.open_loop.steps == 8
        for fit in gaps.curves.open_loop_fit:
            assert fit.slope == pytest.approx(1.0, abs=1e-3)
            assert fit.correlation == pytest.approx(1.0, abs=1e-4)


def test_reward_head_that_predicts_too_much_is_measured(make_regulator):
    """.1 more at every step: 5 over an episode of 50, .8 over a window of 8 (windows cut by the limit: less)."""
    found = measure_reward_gap(make_regulator(offset=0.1), EFFORT).deterministic
    assert found.episodes.gap.value == pytest.approx(5.0, abs=1e-3)
    assert found.episodes.relative.value == pytest.approx(5.0 / abs(found.episodes.real.value), rel=1e-3)
    assert found.episodes.relative.low > 0.0
    assert 0.6 < found.open_loop.gap.value <= 0.8 + 1e-4
    differences = [p.value - r.value for p, r in zip(found.curves.open_loop, found.curves.real, strict=True)]
    assert differences == pytest.approx([0.1] * 16, abs=1e-4)


def test_wrong_model_differs_more_in_closed_loop(make_regulator):
    """Actions push the wrong way: imagined carts drift off, and each step costs more than the real one.

    16 episodes: the interval is one of few, heavy-tailed sums, and 4 do not tell the gap from 0 at every seed.
    """
    found = measure_reward_gap(make_regulator(control=-1.0, episodes=16), EFFORT).deterministic
    assert found.closed_loop.gap.high < 0.0
    assert found.episodes.gap.value < found.closed_loop.gap.value


def batch_of(reward, terminated=None, valid=None):
    steps, rows = reward.shape
    return Batch(
        obs=torch.zeros(steps + 1, rows, 3),
        action=torch.zeros(steps, rows, 1),
        reward=reward,
        terminated=torch.zeros(steps, rows, dtype=torch.bool) if terminated is None else terminated,
        valid=torch.ones(steps, rows, dtype=torch.bool) if valid is None else valid,
        task=torch.zeros(rows, dtype=torch.long),
    )


def test_imagined_rewards_are_weighted_by_predicted_survival(make_subject):
    """A termination head that says 1/2 at every step halves what follows it, and not the first reward."""
    plain, ending = make_subject(), make_subject("model.termination.units=[4]")
    for name, tensor in plain.agent.state_dict().items():
        ending.agent.state_dict()[name].copy_(tensor)
    with torch.no_grad():
        for parameter in ending.agent.world_model.termination_head.parameters():
            parameter.zero_()
    batch = batch_of(torch.zeros(4, 5))
    one, other = (open_loop(subject.agent, batch, 1) for subject in (plain, ending))
    assert one.abs().min() > 0.0
    torch.testing.assert_close(other, one * 0.5 ** torch.arange(4.0, dtype=torch.float64).unsqueeze(1))


def test_imagined_rewards_are_in_real_units(make_subject):
    subject = make_subject()
    batch = batch_of(torch.zeros(3, 5))
    before = open_loop(subject.agent, batch, 1)
    subject.agent.reward_normalizer.update(torch.full((100,), 7.0))
    after = open_loop(subject.agent, batch, 1)
    torch.testing.assert_close(after, before * float(subject.agent.reward_normalizer.moments.rms))
    assert float(subject.agent.reward_normalizer.moments.rms) > 2.0


def test_gaps_of_hand_made_rewards():
    """Two episodes of two windows; the last step of the last window lies behind a time limit."""
    model = torch.tensor([[2.0, 2.0, 1.0, 1.0], [2.0, 2.0, 1.0, 9.0]])
    real = torch.tensor([[1.0, 3.0, 1.0, 1.0], [1.0, 3.0, 3.0, 9.0]])
    present = torch.ones(2, 4, dtype=torch.bool)
    present[1, 3] = False
    pairs = RewardPairs(model, real, present, episodes=2)
    counts = resample_counts(2, 100, torch.Generator())
    gap = pairs.gap(2, counts)
    assert gap.model.value == pytest.approx((4.0 + 1.5) / 2)  # window sums 4, 4 and 2, 1
    assert gap.real.value == pytest.approx((4.0 + 2.5) / 2)  # 2, 6 and 4, 1
    assert gap.relative.value == pytest.approx(-1.0 / 6.5)
    assert (gap.relative.low, gap.relative.high) == pytest.approx((-0.4, 0.0))  # the second episode alone, the first
    assert (gap.episodes, gap.starts, gap.steps) == (2, 4, 2)
    predicted, lived = pairs.curve(model, counts), pairs.curve(real, counts)
    assert [each.value for each in predicted] == pytest.approx([1.5, 5.0 / 3])
    assert [each.value for each in lived] == pytest.approx([1.5, 7.0 / 3])
    second = pairs.rows(torch.tensor([False, True])).gap(2, resample_counts(1, 10, torch.Generator()))
    assert second.gap.value == pytest.approx(-1.0)
    assert second.relative is None  # one episode: nothing is known


def test_a_real_sum_that_may_be_0_divides_nothing():
    """Episodes of 1, -1, 2 and -2.5: the sum is -.5, and another four would as well give 1."""
    real = torch.tensor([[1.0, -1.0, 2.0, -2.5]])
    pairs = RewardPairs(real + 1.0, real, torch.ones(1, 4, dtype=torch.bool), episodes=4)
    gap = pairs.gap(1, resample_counts(4, 100, torch.Generator().manual_seed(0)))
    assert gap.gap.value == pytest.approx(1.0)
    assert gap.relative is None
    assert gap.to_dict()["relative"] is None
    assert "real sum may be 0" in gap.to_dict()["note"]
    assert "real sum may be 0" in str(gap)


def test_terminations_forgo_rewards_and_time_limits_cut_them(make_regulator):
    """Both episodes stop after 2 of 50 steps. The ended one is compared over 50, the broken-off one over 2."""
    subject = make_regulator(offset=1.0)
    zero = torch.zeros(2, 2, 4)
    subject.episodes = Episodes(
        obs=torch.zeros(3, 2, 4),
        action=zero[..., :2],
        reward=torch.ones(2, 2),
        length=torch.tensor([2, 2]),
        terminated=torch.tensor([True, False]),
        broken=torch.tensor([False, False]),
        task=torch.tensor([0, 0]),
    )
    found = measure_reward_gap(subject, EFFORT).sampled
    # At rest and never pushed, the model pays 1 a step: 50 where 2 were earned, and 2 where 2 were.
    assert found.episodes.model.value == pytest.approx((50.0 + 2.0) / 2)
    assert found.episodes.real.value == pytest.approx(2.0)


def test_only_broken_episodes_are_refused(make_regulator):
    subject = make_regulator()
    subject.episodes = Episodes(
        obs=torch.zeros(2, 2, 4),
        action=torch.zeros(1, 2, 2),
        reward=torch.zeros(1, 2),
        length=torch.tensor([0, 0]),
        terminated=torch.tensor([False, False]),
        broken=torch.tensor([True, True]),
        task=torch.tensor([0, 0]),
    )
    with pytest.raises(DataError, match="broke in all 2 episodes"):
        measure_reward_gap(subject, EFFORT)


def test_a_set_is_reported_task_by_task(make_pair):
    subject = make_pair()
    found = measure_reward_gap(subject, EFFORT)
    assert list(found.deterministic.per_task) == ["toy-pendulum-swingup", "toy-pendulum-push"]
    assert [gap.episodes for gap in found.deterministic.per_task.values()] == [2, 2]
    told = [name for name, _ in found.rows()]
    assert "toy-pendulum-push, deterministic policy" in told


def test_equal_seeds_give_equal_figures_and_the_report_is_whole(make_subject):
    first, second = (measure_reward_gap(make_subject(), EFFORT) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    document = json.loads(json.dumps(first.to_dict()))
    assert document["episodes_cut_at"] is None
    assert len(document["sampled"]["curves"]["real"]) == 16
    told = [name for name, _ in first.rows()]
    assert told[0] == "whole episodes, deterministic policy"
    figure = Figure()
    first.draw(figure)
    assert len(figure.axes) == 2


def test_only_stochastic_models_are_imagined_in_several_draws(make_subject):
    stochastic = make_subject(preset="mini-cartpole-gaussian").agent
    batch = batch_of(torch.zeros(3, 4))
    batch = Batch(**{**vars(batch), "obs": torch.zeros(4, 4, stochastic.spec.obs_dim)})
    single, several = (open_loop(stochastic, batch, n) for n in (1, 8))
    assert not single[1:].equal(several[1:])
    plain = make_subject().agent
    batch = batch_of(torch.zeros(3, 4))
    single, several = (open_loop(plain, batch, n) for n in (1, 8))
    assert single.equal(several)
