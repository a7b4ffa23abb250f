"""ESNR against hand-computed tables, known signals and pure noise; its interval; gradients of real agents."""

import math

import pytest
import torch

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.esnr import actor_gradients, collect, light_esnr, measure_esnr, model_gradients
from flowmbpo.diagnostics.esnr_estimate import (
    PER_COORDINATE_FLOOR,
    esnr_from_gram,
    inner_products,
    per_coordinate_snr,
)
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.errors import NonFiniteError
from flowmbpo.training.updates import actor_objective, frozen

M = 64
REPEATS = 200


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def esnr(gradients, generator=None, resamples=1000):
    return esnr_from_gram(inner_products(gradients, gradients), generator, resamples)


def gaussian(mean, rng, count=M):
    return mean + torch.randn(count, len(mean), generator=rng)


def test_hand_computed_table():
    # g_bar = (2, 1), S = diag part (1, 3): tr 4, so (5 - 4/3) / 4
    rows = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])
    found = esnr(rows)
    assert found.value == pytest.approx(11 / 12)
    assert (found.signal, found.noise) == (pytest.approx(11 / 3), pytest.approx(4.0))
    assert found.decibel == pytest.approx(10 * math.log10(11 / 12))
    assert found.norm.value == pytest.approx((1 + 3 + math.sqrt(13)) / 3)
    assert (found.gradients, found.interval) == (3, None)


def test_agrees_with_the_definition_on_random_data():
    rows = gaussian(torch.linspace(-1, 1, 7, dtype=torch.float64), generator())
    mean, trace = rows.mean(0), rows.var(0).sum()
    assert esnr(rows).value == pytest.approx(float((mean.square().sum() - trace / M) / trace), rel=1e-12)


def test_pure_noise_has_no_signal():
    """The naive ratio is 1/64 = 0.0156. One repeat's std is sqrt(2 / 32) / 64 = 0.0039, the mean of 200's 0.0003."""
    rng = generator(1)
    found = [esnr(gaussian(torch.zeros(32), rng)) for _ in range(REPEATS)]
    assert abs(sum(each.value for each in found) / REPEATS) <= 0.002
    negative = [each for each in found if each.value < 0.0]
    assert 0.3 * REPEATS < len(negative) < 0.7 * REPEATS  # unbiased: below zero about half of the time
    assert all(each.decibel is None and "no dB" in str(each) for each in negative)


@pytest.mark.parametrize("truth", [0.3, 3.0])
def test_known_signal_is_found(truth):
    """Unit noise in 50 dimensions: ||mu||^2 = 50 truth. One repeat's relative std is near
    2 sqrt(truth 50 / 64) / (50 truth) <= 0.065; 200 repeats leave 0.005. The bias 2 / (64 x 50) is 0.0006."""
    mean = torch.full((50,), math.sqrt(truth))
    rng = generator(2)
    found = sum(esnr(gaussian(mean, rng)).value for _ in range(REPEATS)) / REPEATS
    assert found == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize(("truth", "dimensions"), [(0.3, 20), (3.0, 3)])
def test_interval_covers_a_known_signal(truth, dimensions):
    """200 repeats at 95% have a standard deviation of 1.5%: 0.91 is 2.6 of them below."""
    mean = torch.full((dimensions,), math.sqrt(truth))
    rng = generator(3)
    found = [esnr(gaussian(mean, rng), rng, resamples=400) for _ in range(REPEATS)]
    hits = sum(each.interval.low <= truth <= each.interval.high for each in found)
    assert 0.91 <= hits / REPEATS <= 0.99
    width = sum(each.interval.high - each.interval.low for each in found) / REPEATS
    spread = 3.92 * torch.tensor([each.value for each in found]).std().item()
    assert 0.75 <= width / spread <= 1.33


def test_interval_of_pure_noise_covers_zero():
    """Too wide there by up to sqrt(3), never too narrow: a degenerate U-statistic."""
    rng = generator(4)
    found = [esnr(gaussian(torch.zeros(20), rng), rng, resamples=400) for _ in range(REPEATS)]
    assert sum(each.interval.low <= 0.0 <= each.interval.high for each in found) / REPEATS >= 0.95
    width = sum(each.interval.high - each.interval.low for each in found) / REPEATS
    assert width / (3.92 * torch.tensor([each.value for each in found]).std().item()) <= 2.0


def test_gradients_without_noise_are_infinite_by_definition():
    rows = torch.randn(1, 9, generator=generator()).repeat(M, 1)
    rounded = rows * (1.0 + 1e-7 * torch.randn(M, 9, generator=generator(5)))
    for same in (rows, rounded):
        found = esnr(same, generator())
        document = found.to_dict()
        assert document["infinite"]
        assert document["value"] is document["interval"] is document["db"] is None
        assert "infinite: all 64 gradients are equal" in str(found)
    assert "are zero" in str(esnr(torch.zeros(M, 9)))
    assert esnr(rows[:2] + torch.tensor([[0.0], [1e-3]])).infinite is False


def test_scale_changes_nothing_but_norms():
    rows = gaussian(torch.ones(5), generator())
    one, many = esnr(rows), esnr(1e-4 * rows)
    assert many.value == pytest.approx(one.value, rel=1e-5)
    assert many.norm.value == pytest.approx(1e-4 * one.norm.value, rel=1e-5)


def test_a_resample_of_one_gradient_alone_is_left_out():
    found = esnr(gaussian(torch.ones(5), generator(), count=2), generator(), resamples=200)
    assert math.isfinite(found.interval.low)


def test_per_coordinate_figure_is_that_of_pwm():
    rows = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [2.0, 3.0, 0.0]])
    assert per_coordinate_snr(rows).value == pytest.approx((4 / 1 + 1 / 3 + 0.0) / 3)
    tiny = torch.tensor([[1e-5], [3e-5]])
    assert per_coordinate_snr(tiny).value == pytest.approx(4e-10 / (2e-10 + PER_COORDINATE_FLOOR))


def test_per_coordinate_figure_of_noise_is_its_floor():
    """M g_bar^2 / var is Student's t squared with M - 1 degrees of freedom: mean (M - 1) / (M - 3)."""
    floor = (M - 1) / (M * (M - 3))
    rng = generator(6)
    found = [per_coordinate_snr(gaussian(torch.zeros(50), rng)) for _ in range(REPEATS)]
    assert sum(each.value for each in found) / REPEATS == pytest.approx(floor, rel=0.05)  # 100 coordinates x 200
    assert sum(each.low <= floor <= each.high for each in found) / REPEATS >= 0.95


def test_inner_products_are_summed_in_double_precision():
    rows = torch.full((1, 200_001), 1.0)
    rows[0, 0] = 4096.0  # its square, 2^24, swallows every further 1 in float32
    assert inner_products(rows, rows).item() == 2**24 + 200_000


def test_few_stored_gradients_give_the_same_figures():
    """Gradients that do not fit are drawn again: 20 rows in blocks of 8."""
    rows = gaussian(torch.linspace(-1, 1, 100), generator(7), count=20)
    drawn = []

    def gradient(row):
        drawn.append(row)
        return rows[row]

    whole, blocks = collect(gradient, 20), collect(gradient, 20, stored_bytes=1)
    assert len(drawn) == 20 + (20 + 12 + 4)
    assert torch.allclose(blocks.gram, rows.double() @ rows.double().T, rtol=1e-12)
    assert torch.allclose(whole.gram, blocks.gram, rtol=1e-12)
    assert blocks.size == 100
    assert blocks.per_coordinate == whole.per_coordinate == per_coordinate_snr(rows)


def test_per_coordinate_figure_of_long_gradients_is_whole():
    rows = gaussian(torch.linspace(-1, 1, 150_000), generator(8), count=4)
    found, whole = collect(rows.__getitem__, 4).per_coordinate, per_coordinate_snr(rows)
    assert found.value == pytest.approx(whole.value, rel=1e-5)  # float32 moments


def test_actor_gradient_is_that_of_the_update(make_subject):
    subject = make_subject(longest=100)
    subject.agent.return_scale.update(torch.tensor([[1.0], [4.0]]))  # population std 1.5
    gradient = actor_gradients(subject, "resampled")(3)
    rng = subject.generator("esnr/actor/resampled/3")
    start, context = subject.starts(subject.batch_size, rng)
    with frozen(subject.agent.world_model, subject.agent.critic):
        loss = actor_objective(subject.agent, start, context, subject.config.training, rng).loss
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in subject.agent.actor.parameters()]) / 1.5
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)
    assert float(gradient.norm()) > 0.0
    assert all(p.requires_grad for p in subject.agent.world_model.parameters())


def test_actor_gradient_has_the_adaptive_horizon_of_training(make_subject):
    """A tolerance that no step meets leaves the minimum, 2 of the 4 steps; one that all meet leaves 4."""
    few, all_steps = (
        make_subject(f"training.adaptive_horizon={{tolerance: {tolerance}, minimum: 2}}") for tolerance in (1e-9, 1e9)
    )
    assert (few.actor_horizon, all_steps.actor_horizon) == (2, 4)
    rng = few.generator("esnr/actor/resampled/0")
    start, context = few.starts(few.batch_size, rng)
    with frozen(few.agent.world_model, few.agent.critic):
        loss = actor_objective(few.agent, start, context, few.config.training, rng, 2).loss
    expected = torch.autograd.grad(loss, list(few.agent.actor.parameters()))
    scale = few.agent.return_scale.std.squeeze(0)
    found = actor_gradients(few, "resampled")(0)
    assert torch.allclose(found, torch.cat([p.flatten() for p in expected]) / scale, rtol=1e-5, atol=1e-8)
    assert measure_esnr(few, Effort(gradients=2, resamples=10)).to_dict()["horizon"] == 2


def test_starts_from_a_replay_buffer_are_those_of_training(make_subject):
    """Of 1 transition in each of 4 lanes, half of what training imagines from is the newest observation."""
    subject = make_subject("model.latent_dim=16")
    env = subject.open_env(4)
    subject.replay = ReplayBuffer(100, 4, env.spec.obs_dim, env.spec.action_dim, env.task_ids)
    subject.replay.start(env.reset(0))
    subject.replay.add(torch.ones(4, 1), env.step(torch.ones(4, 1)))
    obs, task = subject.replay.sample_starts(50, generator(1))
    expected, _ = subject.encode(obs, task)
    assert torch.equal(subject.starts(50, generator(1))[0], expected)
    assert len(expected.unique(dim=0)) == 8


def test_variants_draw_what_they_say(make_subject):
    """Without any noise in policy and model, only the start states make gradients differ."""
    subject = make_subject("actor={kind: gaussian}", "model.dynamics={kind: residual}", longest=100)
    with torch.no_grad():
        subject.agent.actor.logstd.fill_(-100.0)
    fixed, total = actor_gradients(subject, "fixed"), actor_gradients(subject, "resampled")
    assert torch.equal(fixed(0), fixed(1))
    assert not torch.equal(total(0), total(1))
    assert torch.equal(total(1), total(1))
    assert esnr_from_gram(collect(fixed, 4).gram).infinite
    noisy = make_subject("actor={kind: gaussian}")
    assert not torch.equal(actor_gradients(noisy, "fixed")(0), actor_gradients(noisy, "fixed")(1))


def test_without_noise_policy_is_infinite_and_total_is_not(make_subject):
    subject = make_subject("actor={kind: gaussian}", "model.dynamics={kind: residual}")
    with torch.no_grad():
        subject.agent.actor.logstd.fill_(-100.0)
    actor = measure_esnr(subject, Effort(gradients=4, resamples=20)).to_dict()["actor"]
    assert (actor["policy"]["infinite"], actor["total"]["infinite"]) == (True, False)


def test_diagnosis_states_m_and_n(make_subject):
    subject = make_subject("training.actor_batch_size=5", "training.wm_batch_size=7", "training.noise_replicas=2")
    found = measure_esnr(subject, Effort(gradients=6, resamples=50))
    document = found.to_dict()
    actor, model = document["actor"]["total"], document["model"]
    assert (actor["M"], actor["N"], model["M"], model["N"]) == (6, 5, 6, 7)
    assert actor["N_of"] == "start states rolled out 2 times each"
    assert actor["coordinates"] == sum(p.numel() for p in subject.agent.actor.parameters())
    assert {"value", "interval", "db", "infinite", "norm", "per_coordinate_snr"} <= actor.keys()
    assert any("N 5 start states" in value for _, value in found.rows())
    again = measure_esnr(subject, Effort(gradients=6, resamples=50)).to_dict()
    assert again == document


def test_measuring_changes_nothing(make_subject):
    subject = make_subject("model.dynamics={kind: gaussian, geometry: logit}")
    before = {name: value.clone() for name, value in subject.agent.state_dict().items()}
    state = torch.get_rng_state()
    light_esnr(subject, Effort(gradients=2))
    assert all(torch.equal(value, before[name]) for name, value in subject.agent.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in subject.agent.parameters())


def test_light_form_leaves_out_what_has_no_figure(make_subject):
    subject = make_subject()
    assert light_esnr(subject, Effort(gradients=3)).keys() == {"esnr/actor", "esnr/model"}
    with torch.no_grad():
        next(subject.agent.actor.parameters()).fill_(math.nan)
    assert light_esnr(subject, Effort(gradients=3)).keys() == {"esnr/model"}


def test_gradients_that_are_not_finite_are_refused_by_name(make_subject):
    subject = make_subject()
    with torch.no_grad():
        next(subject.agent.world_model.reward_head.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"gradient of the world model is not finite.*diagnose health"):
        model_gradients(subject)(0)
