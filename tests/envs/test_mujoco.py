"""Random impulses: how often, how large, which way, and that they change nothing else."""

import numpy as np
import pytest
from pydantic import ValidationError

from flowmbpo.config.task import PerturbationConfig, TaskConfig
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.mujoco import draw_impulses
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import ConfigError


@pytest.mark.parametrize(("skew", "share"), [(-1.0, 0.0), (0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_rate_size_skew_and_axes_are_the_configs(skew, share):
    config = PerturbationConfig(rate=0.1, magnitude=2.0, skew=skew)
    axes, change = draw_impulses(config, axes=3, length=100_000, seed=episode_seed(0, 0, 0), skewed=3)
    pushed = change != 0
    assert pushed.mean() == pytest.approx(0.1, abs=0.005)
    assert set(np.abs(change[pushed])) == {2.0}
    assert (change[pushed] > 0).mean() == pytest.approx(share, abs=0.02)
    assert np.bincount(axes[pushed], minlength=3) / pushed.sum() == pytest.approx([1 / 3] * 3, abs=0.02)


@pytest.mark.parametrize("skew", [-1.0, 0.5])
def test_across_the_forward_axis_a_push_prefers_no_side(skew):
    config = PerturbationConfig(rate=1.0, skew=skew)
    axes, change = draw_impulses(config, axes=2, length=20_000, seed=episode_seed(0, 0, 0))
    positive = [(change[axes == axis] > 0).mean() for axis in range(2)]
    assert positive == pytest.approx([(1 + skew) / 2, 0.5], abs=0.02)


def test_impulses_depend_on_the_seed_and_disturb_no_other_draw():
    config = PerturbationConfig(rate=0.5)
    seed = episode_seed(3, 1, 2)
    before = np.random.default_rng(seed).random(4)
    first, second = (draw_impulses(config, 2, 50, seed) for _ in range(2))
    assert np.array_equal(first[1], second[1]) and np.array_equal(first[0], second[0])
    assert np.array_equal(np.random.default_rng(seed).random(4), before)
    other = draw_impulses(config, 2, 50, episode_seed(3, 1, 3))
    assert not np.array_equal(first[1], other[1])


def test_a_disturbed_task_says_so_in_its_name():
    perturbation = PerturbationConfig(rate=0.02, magnitude=1.5, skew=-0.5)
    spec = resolve(TaskConfig(name="walker-walk", perturbation=perturbation)).spec
    assert spec.label == "walker-walk+push_r0.02_m1.5_s-0.5"
    assert spec.tasks[0].plain_name == "walker-walk"
    assert resolve(TaskConfig(name=None, set="mini3", perturbation=perturbation)).spec.label.startswith(
        "mini3+push_r0.02"
    )
    assert resolve(TaskConfig(name="walker-walk", perturbation=PerturbationConfig())).spec.label == "walker-walk"


def test_configs_that_differ_in_the_last_digit_have_different_names():
    values = (0.1, float(np.nextafter(0.1, 1.0)), 0.123456789, 0.12345678)
    suffixes = {PerturbationConfig(rate=value).suffix for value in values}
    assert len(suffixes) == 4
    assert "+push_r0.123456789_m1_s0" in suffixes
    assert PerturbationConfig(rate=1e-7, magnitude=100.0, skew=-0.0).suffix == "+push_r1e-07_m100_s0"


def test_tasks_that_cannot_be_pushed_are_refused():
    with pytest.raises(ConfigError, match=r"task.perturbation: 'mw-reach' cannot be disturbed"):
        resolve(TaskConfig(name="mw-reach", perturbation=PerturbationConfig(rate=0.1)))


@pytest.mark.parametrize("wrong", [{"rate": 1.5}, {"magnitude": 0.0}, {"skew": -2.0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        PerturbationConfig(**wrong)
