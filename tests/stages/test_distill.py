"""Dynamics of one kind taught by those of another, on windows of the toy pendulum."""

import pytest
import torch

from flowmbpo.config.model import ModelConfig
from flowmbpo.config.task import TaskConfig
from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.envs.make import make_env
from flowmbpo.errors import NonFiniteError
from flowmbpo.models.world_model import WorldModel
from flowmbpo.stages.distill import distill_dynamics
from flowmbpo.training.model_loss import model_loss
from flowmbpo.training.optimiser import GuardedOptimiser

HORIZON = 4
KINDS = {
    "mlp": {"kind": "mlp"},
    "residual": {"kind": "residual", "retraction": "project"},
    "flow": {"kind": "flow", "integrator": "euler", "substeps": 2, "endpoint_weight": 1.0, "retraction": "project"},
    "logit flow": {"kind": "flow", "integrator": "euler", "substeps": 2, "geometry": "logit", "endpoint_weight": 1.0},
    "neural_ode": {"kind": "neural_ode", "integrator": "euler", "substeps": 2},
    "gaussian": {"kind": "gaussian", "source": "teacher"},
    "generative": {"kind": "flow", "mode": "generative", "integrator": "euler", "substeps": 2},
}


@pytest.fixture(scope="module")
def pendulum():
    """Observations [T+1, N, 3], actions [T, N, 1] (each torque held for some steps) and rewards [T, N]."""
    env = make_env(TaskConfig(name="toy-pendulum-swingup", num_envs=64))
    generator = torch.Generator().manual_seed(0)
    obs, actions, rewards = [env.reset(0)], [], []
    for step in range(60):
        if step % 5 == 0:
            action = torch.rand(64, 1, generator=generator) * 2 - 1
        taken = env.step(action)
        actions.append(action)
        obs.append(taken.obs)
        rewards.append(taken.reward)
    env.close()
    return env.spec, torch.stack(obs), torch.stack(actions), torch.stack(rewards)


def windows(pendulum, *, seed=0, width=64):
    """A source of batches of random windows."""
    _, obs, actions, rewards = pendulum
    generator = torch.Generator().manual_seed(seed)

    def batch():
        start = torch.randint(0, len(actions) - HORIZON, (width,), generator=generator)
        copy = torch.randint(0, obs.shape[1], (width,), generator=generator)
        steps = start + torch.arange(HORIZON + 1).unsqueeze(-1)
        return Batch(
            obs=obs[steps, copy],
            action=actions[steps[:-1], copy],
            reward=rewards[steps[:-1], copy],
            terminated=torch.zeros(HORIZON, width, dtype=torch.bool),
            valid=torch.ones(HORIZON, width, dtype=torch.bool),
            task=torch.zeros(width, dtype=torch.long),
        )

    return batch


def world_model(spec, kind, units, seed):
    section = {"latent_dim": 16, "encoder": {"kind": "mlp", "units": [32]}, "reward": {"kind": "scalar", "units": [8]}}
    config = ModelConfig.model_validate({**section, "dynamics": {**KINDS[kind], "units": units}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldModel(config, spec)


def random_teacher(spec, kind):
    """Any map will do: weights large enough that states move."""
    teacher = world_model(spec, kind, [16], seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in teacher.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter.data, std=0.5, generator=generator)
    return teacher.eval()


def pupil(teacher, spec, kind):
    """The teacher's encoder, reward head and embeddings; dynamics of its own."""
    student = world_model(spec, kind, [48, 48], seed=2)
    for part in ("encoder", "reward_head", "tasks"):
        getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
    return student


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def trained(pendulum):
    """World models that know the pendulum, by kind; made once."""
    made = {}

    def get(kind):
        if kind not in made:
            model, batch = world_model(pendulum[0], kind, [32, 32], seed=0), windows(pendulum, seed=9)
            config = TrainingConfig(horizon=HORIZON, dynamics_weight=20.0, reward_weight=1.0)
            optimiser = GuardedOptimiser(model, lr=3e-3, betas=(0.9, 0.999), weight_decay=0.0, clip=20.0)
            generator = torch.Generator().manual_seed(0)
            for _ in range(100):
                window = batch()
                optimiser.step(model_loss(model, window, window.reward, config, generator).total)
            made[kind] = model.eval().requires_grad_(False)
        return made[kind]

    return get


@pytest.fixture
def distill():
    """300 updates, or as many as asked for, with draws of its own."""

    def run(teacher, student, batches, updates=300, **changes):
        config = TrainingConfig.model_validate({"horizon": HORIZON, "model_lr": 3e-3, **changes})
        generator = torch.Generator().manual_seed(3)
        return distill_dynamics(teacher, student, batches, updates=updates, config=config, generator=generator)

    return run


@pytest.mark.parametrize(
    ("kind", "other", "updates"),
    [
        ("mlp", "logit flow", 100),
        pytest.param("logit flow", "mlp", 500, marks=pytest.mark.slow),  # an MLP must first learn the identity
    ],
)
def test_a_trained_model_teaches_another_kind_of_dynamics(trained, pendulum, distill, kind, other, updates):
    """A fifth of the trivial predictor's error is asked for; 0.02 and some 0.1 were measured."""
    teacher = trained(kind)
    report = distill(teacher, pupil(teacher, pendulum[0], other), windows(pendulum), updates=updates)
    assert report.relative < 0.2
    assert report.skipped == 0 and report.updates == updates


@pytest.mark.parametrize(
    ("kind", "other", "updates"),
    [
        ("mlp", "neural_ode", 100),
        pytest.param("mlp", "flow", 100, marks=pytest.mark.slow),
        pytest.param("flow", "mlp", 150, marks=pytest.mark.slow),
        pytest.param("logit flow", "residual", 150, marks=pytest.mark.slow),
        pytest.param("flow", "gaussian", 200, marks=pytest.mark.slow),
        # Each update sees one noise and one flow time per transition.
        pytest.param("residual", "generative", 500, marks=pytest.mark.slow),
    ],
)
def test_every_kind_learns_by_its_own_loss(pendulum, distill, kind, other, updates):
    teacher = random_teacher(pendulum[0], kind)
    report = distill(teacher, pupil(teacher, pendulum[0], other), windows(pendulum), updates=updates)
    assert report.relative < 0.2
    assert len(report.before) == len(report.after) == len(report.trivial) == HORIZON


def drifting_teacher(spec):
    """s' = s + 0.02 (c + eps), c alternately 2 and -2, eps standard normal: a drift with as known a spread."""
    teacher = world_model(spec, "gaussian", [8], seed=0)
    dynamics = teacher.dynamics
    for parameter in dynamics.parameters():
        torch.nn.init.zeros_(parameter.data)
    dynamics.network[-1].bias.data[:16] = torch.tensor([2.0, -2.0]).repeat_interleave(2).repeat(4)
    dynamics.scale.weight.fill_(1.0)
    dynamics.scale.square.fill_(4e-4)
    return teacher.eval()


@pytest.mark.parametrize("other", ["neural_ode", "gaussian"])
def test_a_stochastic_teacher_teaches_its_mean_and_to_those_that_have_one_its_spread(pendulum, distill, other):
    teacher = drifting_teacher(pendulum[0])
    student = pupil(teacher, pendulum[0], other)
    report = distill(teacher, student, windows(pendulum), updates=100)
    assert report.relative < 0.2
    batch = windows(pendulum, width=256)()
    with torch.no_grad():
        context = student.context(batch.task)
        s = student.encode(batch.obs[0], context)
        mean, drawn = (student.next(s, batch.action[0], context, rng) for rng in (None, torch.Generator()))
    # Of 256 x 16 draws the std is known to 1%; the students' are off by what 100 updates leave.
    assert float((drawn - mean).std()) == pytest.approx(0.02 if other == "gaussian" else 0.0, rel=0.1)


def test_nothing_but_the_student_s_dynamics_moves(pendulum, distill):
    teacher = random_teacher(pendulum[0], "mlp")
    student = pupil(teacher, pendulum[0], "gaussian").eval()
    before, taught, rng = snapshot(student), snapshot(teacher), torch.get_rng_state()
    distill(teacher, student, windows(pendulum), updates=3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(tensor, taught[name]) for name, tensor in teacher.state_dict().items())
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("dynamics.")}  # weights, and the running scale
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not student.dynamics.training and not teacher.training


def test_equal_draws_give_equal_students(pendulum, distill):
    teacher = random_teacher(pendulum[0], "gaussian")
    students = [pupil(teacher, pendulum[0], "generative") for _ in range(2)]
    for student in students:
        distill(teacher, student, windows(pendulum), updates=3)
    assert all(torch.equal(a, b) for a, b in zip(*(s.state_dict().values() for s in students), strict=True))


def test_a_student_that_is_its_teacher_has_no_error(pendulum, distill):
    teacher = random_teacher(pendulum[0], "flow")
    student = world_model(pendulum[0], "flow", [16], seed=4)
    student.load_state_dict(teacher.state_dict())
    report = distill(teacher, student, windows(pendulum), updates=0)
    assert report.before == report.after == (0.0,) * HORIZON
    assert report.relative == 0.0 and min(report.trivial) > 0.0


def test_a_student_that_stands_still_has_the_trivial_error(pendulum, distill):
    """A residual head starts at zero: no change is predicted."""
    teacher = random_teacher(pendulum[0], "mlp")
    report = distill(teacher, pupil(teacher, pendulum[0], "residual"), windows(pendulum), updates=0)
    assert report.before == pytest.approx(report.trivial, rel=1e-5)  # retraction rounds
    assert report.relative == pytest.approx(1.0, rel=1e-5)


def test_padding_counts_in_no_error_and_no_update(pendulum, distill):
    """The last steps of half the windows do not exist; what stands there changes nothing."""
    teacher = random_teacher(pendulum[0], "mlp")
    found = []
    for filler in (0.0, 0.9):
        student, draw = pupil(teacher, pendulum[0], "gaussian"), windows(pendulum)

        def padded(draw=draw, filler=filler):
            batch = draw()
            batch.valid[2:, ::2] = False
            batch.action[2:, ::2] = filler
            return batch

        report = distill(teacher, student, padded, updates=2)
        found.append((report.before, report.after, report.trivial, snapshot(student)))
    for first, second in zip(*(held[:3] for held in found), strict=True):
        assert first == second
    assert all(torch.equal(tensor, found[1][3][name]) for name, tensor in found[0][3].items())


def spoiled(pendulum, bad):
    """Batches of which those numbered in `bad` hold NaN; four are held out before the first update."""
    draw, count = windows(pendulum), iter(range(1_000_000))

    def batch():
        found = draw()
        if next(count) in bad:
            found.obs[0, 0, 0] = float("nan")
        return found

    return batch


def test_a_batch_that_is_no_number_is_skipped_and_counted(pendulum, distill):
    teacher = random_teacher(pendulum[0], "mlp")
    student = pupil(teacher, pendulum[0], "residual")
    report = distill(teacher, student, spoiled(pendulum, {5, 7}), updates=6)
    assert report.skipped == 2 and report.after < report.before
    assert "6 updates" in report.lines()[0] and "2 skipped" in report.lines()[0]


def test_too_many_bad_updates_stop_it(pendulum, distill):
    teacher = random_teacher(pendulum[0], "mlp")
    student = pupil(teacher, pendulum[0], "residual")
    with pytest.raises(NonFiniteError, match=r"3 of 3 updates .*max_nonfinite 2\); lower training\.model_lr"):
        distill(teacher, student, spoiled(pendulum, range(4, 99)), updates=9, max_nonfinite=2)


def test_predictions_that_are_no_numbers_are_refused(pendulum, distill):
    teacher = random_teacher(pendulum[0], "mlp")
    student = pupil(teacher, pendulum[0], "mlp")
    with torch.no_grad():
        student.dynamics.network[0].linear.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="predictions are not finite after 0 updates"):
        distill(teacher, student, windows(pendulum), updates=0)


def test_the_report_is_plain(pendulum, distill):
    teacher = random_teacher(pendulum[0], "mlp")
    report = distill(teacher, pupil(teacher, pendulum[0], "flow"), windows(pendulum), updates=1)
    told = report.to_dict()
    assert told["relative"] == report.relative and told["after"] == list(report.after)
    assert set(told) == {"updates", "skipped", "seconds", "before", "after", "trivial", "relative"}
    assert report.lines()[1].endswith("at step 4")
