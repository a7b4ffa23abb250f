"""The tail-risk experiment's presets are comparable, and its tables hold what they say."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from flowmbpo.config.experiment import config_differences
from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.systems import toy_system
from flowmbpo.models.agent import build_meta_agent
from flowmbpo.parity.comparison import COMPARED
from flowmbpo.parity.flops import parameter_counts
from flowmbpo.presets.load import load_experiment


@pytest.fixture(scope="module")
def risk():
    path = Path(__file__).parents[2] / "benchmarks" / "risk.py"
    spec = importlib.util.spec_from_file_location("risk_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def parameters(name):
    config = load_experiment(name)
    counts = parameter_counts(build_meta_agent(config, resolve(config.task).spec))
    return sum(counts[part] for part in COMPARED)


@pytest.mark.parametrize("state", ["obs", "latent"])
def test_arms_differ_in_the_dynamics_alone_and_have_equal_parameters(state, risk):
    base = f"risk-{state}-residual"
    size = parameters(base)
    assert 20_000 <= size <= 22_000
    for model in risk.MODELS[1:]:
        name = f"risk-{state}-{model}"
        changed = {d.key for d in config_differences(load_experiment(base), load_experiment(name))}
        assert all(key.startswith("model.dynamics.") for key in changed - {"name", "description"})
        assert parameters(name) == pytest.approx(size, rel=0.01)
        assert load_experiment(name).model.dynamics.source == "teacher"


def test_states_differ_in_the_model_alone():
    changed = {d.key for d in config_differences(*map(load_experiment, ("risk-obs-teacher", "risk-latent-teacher")))}
    assert all(key.startswith("model.") for key in changed - {"name", "description"})


@pytest.mark.parametrize("state", ["obs", "latent"])
def test_an_arm_trains_to_a_row(state, risk, tmp_path):
    small = ["training.epochs=1", "training.warmup_model_updates=1", "training.random_episodes=1"]
    small += ["evaluation.episodes=2", "task.num_envs=2", "training.rounds=1", "training.wm_batch_size=8"]
    row = risk.run(3, "toy-skew-push", state, "genflow-k4", small)
    assert row.key == (3, "toy-skew-push", state, "genflow-k4")
    assert 0.0 <= row.reward <= 100.0
    assert row.params == parameters(f"risk-{state}-genflow-k4")
    risk.append(tmp_path / "rows.csv", row)
    risk.append(tmp_path / "rows.csv", row)
    assert risk.read_rows(tmp_path / "rows.csv") == [row, row]


def rows(risk, **arms):
    return [
        risk.Row("toy-rare-push", "obs", model.replace("_", "-"), seed, reward, 10.0 + seed, 20_000)
        for model, rewards in arms.items()
        for seed, reward in enumerate(rewards)
    ]


def test_figures_are_over_seeds(risk):
    rewards = np.array([4.0, 1.0, 3.0, 2.0, 10.0])
    assert float(risk.mean(rewards)) == 4.0
    assert float(risk.worst_quartile(rewards)) == 1.5  # the lower two of five
    assert float(risk.spread(rewards)) == pytest.approx(np.std(rewards, ddof=1))
    assert float(risk.spread(np.array([5.0]))) == 0.0


def test_a_constant_arm_has_a_point_as_interval(risk):
    assert risk.with_interval(np.full(10, 7.0), risk.mean) == "7.0 [7.0, 7.0]"


def test_the_interval_of_a_mean_has_the_normal_width(risk):
    rewards = np.random.default_rng(1).normal(50.0, 5.0, 400)
    low, high = map(float, risk.with_interval(rewards, risk.mean).split("[")[1].rstrip("]").split(","))
    # 2 x 1.96 x 5 / sqrt(400) = .98; rounding to one decimal and 10,000 draws leave .15.
    assert high - low == pytest.approx(0.98, abs=0.15)


def test_differences_pair_seeds_and_leave_single_ones_out(risk):
    found = rows(risk, teacher=[1.0, 2.0, 3.0], genflow_k8=[5.0, 5.0])
    assert risk.paired(found, "toy-rare-push", "obs", "genflow-k8", "teacher").tolist() == [4.0, 3.0]
    printed = "\n".join(risk.tables(found))
    assert "| toy-rare-push | obs | teacher | 3 | 2.0 [" in printed
    assert "| toy-rare-push | obs | teacher | 2 | 3.5 [3.0, 4.0] | +16.2 |" in printed
    assert "latent" not in printed


def test_runs_that_the_file_has_are_not_run_again(risk, tmp_path, monkeypatch):
    out = tmp_path / "rows.csv"
    for row in rows(risk, residual=[1.0], teacher=[2.0, 3.0]):
        risk.append(out, row)
    asked = []

    def run(seed, task, state, model, overrides):
        asked.append((seed, model))
        return risk.Row(task, state, model, seed, 1.0, 1.0, 1)

    monkeypatch.setattr(risk, "run", run)
    chosen = ["--tasks", "toy-rare-push", "--representations", "obs", "--models", "residual", "teacher"]
    monkeypatch.setattr(sys, "argv", ["risk.py", "--out", str(out), *chosen, "--seeds", "0", "1", "2"])
    risk.main()
    assert asked == [(1, "residual"), (2, "residual"), (2, "teacher")]  # whole rounds of a seed first
    assert len(risk.read_rows(out)) == 6


def test_a_fixed_target_earns_what_the_system_pays_for_standing_there(risk):
    """Without pushes or time to walk, the reward of standing at y = .5 is exp(-.5)."""
    system = toy_system(task_info("toy-gust"))
    system.rate_up = system.rate_down = 0.0
    start = lambda rng: [0.5]  # noqa: E731
    system.start = start
    assert risk.earn(system, 0.5, episodes=3) == pytest.approx(100 * np.exp(-0.5), rel=1e-5)
