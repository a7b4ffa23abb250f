"""Task sets against the published lists."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flowmbpo.envs.task_sets import MT50, task_set
from flowmbpo.envs.tasks import task_info
from flowmbpo.errors import ConfigError
from flowmbpo.spec import EnvSpec

# Name, observation width, action width, by task id (TD-MPC2).
PUBLISHED_MT30 = """
walker-stand 24 6, walker-walk 24 6, walker-run 24 6, cheetah-run 17 6, reacher-easy 6 2, reacher-hard 6 2,
acrobot-swingup 6 1, pendulum-swingup 3 1, cartpole-balance 5 1, cartpole-balance-sparse 5 1, cartpole-swingup 5 1,
cartpole-swingup-sparse 5 1, cup-catch 8 2, finger-spin 9 2, finger-turn-easy 12 2, finger-turn-hard 12 2,
fish-swim 24 5, hopper-stand 15 4, hopper-hop 15 4, walker-walk-backwards 24 6, walker-run-backwards 24 6,
cheetah-run-backwards 17 6, cheetah-run-front 17 6, cheetah-run-back 17 6, cheetah-jump 17 6,
hopper-hop-backwards 15 4, reacher-three-easy 8 3, reacher-three-hard 8 3, cup-spin 8 2, pendulum-spin 3 1
"""
PUBLISHED_META_WORLD = """
assembly, basketball, button-press-topdown, button-press-topdown-wall, button-press, button-press-wall, coffee-button,
coffee-pull, coffee-push, dial-turn, disassemble, door-open, door-close, drawer-close, drawer-open, faucet-open,
faucet-close, hammer, handle-press-side, handle-press, handle-pull-side, handle-pull, lever-pull, peg-insert-side,
peg-unplug-side, pick-out-of-hole, pick-place, pick-place-wall, plate-slide, plate-slide-side, plate-slide-back,
plate-slide-back-side, push-back, push, push-wall, reach, reach-wall, shelf-place, soccer, stick-push, stick-pull,
sweep-into, sweep, window-open, window-close, bin-picking, box-close, door-lock, door-unlock, hand-insert
"""


def test_mt30_has_the_published_tasks_widths_and_order():
    rows = [task_info(name) for name in task_set("mt30")]
    published = [entry.split() for entry in PUBLISHED_MT30.split(",")]
    assert [[task.name, str(task.obs_dim), str(task.action_dim)] for task in rows] == published
    assert {(task.episode_length, task.action_repeat, task.can_terminate) for task in rows} == {(500, 2, False)}
    assert {task.discount for task in rows} == {0.99}


def test_mt30_is_as_wide_as_its_data():
    spec = EnvSpec(tuple(task_info(name) for name in task_set("mt30")))
    assert (spec.obs_dim, spec.action_dim) == (24, 6)


def test_mt80_is_mt30_and_then_meta_world():
    published = tuple(f"mw-{name.strip()}" for name in PUBLISHED_META_WORLD.split(","))
    tasks = task_set("mt80")
    assert len(set(tasks)) == 80
    assert tasks[:30] == task_set("mt30")
    assert tasks[30:] == MT50 == published


def test_mini3_are_three_small_tasks_of_mt30():
    assert task_set("mini3") == ("reacher-easy", "walker-stand", "cheetah-run")


def test_unknown_set_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"task.set: .*'mt31'.*Did you mean 'mt30'\?.*mt30, mt80, mini3"):
        task_set("mt31")


def test_importing_the_sets_imports_no_torch_and_no_numpy():
    program = "import sys, flowmbpo.envs.task_sets; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
