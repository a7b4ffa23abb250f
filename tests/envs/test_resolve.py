"""From a config to what runs: aliases pinned, sets named and checked, notices given."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import pin_as_stored, resolve
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.errors import ConfigError

LEGS = ("ant", "toy-lqr", "hopper")


@pytest.fixture
def without_dflex(monkeypatch):
    """dflex looks as if it were not installed, whatever this machine has."""
    missing = type(SIMULATORS["dflex"])("dflex", "dflex", ("no_such_module",), "pip install it", "NO SALE", ("a-task",))
    for module in ("resolve", "tasks"):
        monkeypatch.setattr(f"flowmbpo.envs.{module}.SIMULATORS", {**SIMULATORS, "dflex": missing})


def own_set(*names, name="mine", **options):
    return TaskConfig(name=None, set=name, tasks=names, **options)


def test_aliases_of_a_set_are_pinned_and_announced_each(without_dflex):
    config = own_set(*LEGS)
    pinned = resolve(config).config
    assert pinned.tasks == ("mujoco-ant", "toy-lqr", "mujoco-hopper")
    assert resolve(config) == resolve(pinned)
    for settings in (config, pinned):
        assert [notice.partition(" (")[0] for notice in resolve(settings).notices] == [
            "'ant' runs as mujoco-ant",
            "'hopper' runs as mujoco-hopper",
        ]
    assert resolve(TaskConfig(name=None, set="mini3")).notices == []
    assert resolve(own_set("toy-lqr")).config == own_set("toy-lqr")


def test_alias_and_its_task_are_one_named_twice(without_dflex):
    with pytest.raises(ConfigError, match=r"task\.tasks: 'ant' and 'mujoco-ant' are the same task.*leave one out"):
        resolve(own_set("ant", "mujoco-ant"))
    assert len(resolve(own_set("ant", "dflex-ant")).spec.tasks) == 2


def test_what_is_left_open_is_taken_from_the_run(without_dflex):
    stored = own_set("rewarped-ant", "toy-lqr", "dflex-hopper")
    assert pin_as_stored(own_set(*LEGS), stored) == stored
    other = own_set("ant", "toy-gust", "mujoco-hopper")
    assert pin_as_stored(other, stored).tasks == ("rewarped-ant", "toy-gust", "mujoco-hopper")
    run = TaskConfig(name="ant", backend="dflex")
    assert pin_as_stored(TaskConfig(name="ant"), run) == run
    for kept in (TaskConfig(name="ant", backend="mujoco"), TaskConfig(name="hopper"), own_set("ant")):
        assert pin_as_stored(kept, run) == kept


@pytest.mark.parametrize("name", ["", "../../x", "a b/c", ".hidden"])
def test_name_of_a_set_is_part_of_a_path(name):
    with pytest.raises(ValidationError, match="names a folder: use letters"):
        own_set("toy-lqr", name=name)


@pytest.mark.parametrize(
    ("name", "what"),
    [("mt30", "a shipped set"), ("walker-walk", "a task"), ("ant", "a task"), ("mujoco-ant", "a task")],
)
def test_name_of_a_set_is_nobody_elses(name, what):
    with pytest.raises(ConfigError, match=rf"task\.set: '{name}' is {what}; give yours another name"):
        resolve(own_set("toy-lqr", name=name))


def test_unknown_member_is_reported_under_its_own_key():
    with pytest.raises(ConfigError, match=r"^task\.tasks: no task is called 'toy-lqq'.*Did you mean 'toy-lqr'"):
        resolve(own_set("toy-lqq"))
    with pytest.raises(ConfigError, match=r"^task\.name: no task"):
        resolve(TaskConfig(name="toy-lqq"))


def test_members_are_found_by_plain_name_and_alias(without_dflex):
    legs = resolve(own_set("toy-lqr", "rewarped-ant", "mujoco-ant"))
    assert [legs.member(name) for name in ("toy-lqr", "ant", "rewarped-ant", "hopper")] == [0, 2, 1, None]
    pushed = resolve(own_set("reacher-easy", "walker-stand", perturbation={"rate": 0.1}))
    assert pushed.member("walker-stand") == 1


@pytest.mark.parametrize("names", [("toy-lqr", "cartpole-swingup"), ("pendulum-swingup", "cartpole-swingup")])
@pytest.mark.parametrize("only", [0, 1])
def test_one_task_of_a_set_keeps_its_widths_and_ids(names, only):
    env = make_env(resolve(own_set(*names)).alone(only), 3, 0)
    alone = make_env(TaskConfig(name=names[only]), 3, 0)
    assert env.spec == resolve(own_set(*names)).spec
    assert env.task_ids.tolist() == [only] * 3
    obs, width = env.reset(5), env.spec.tasks[only].obs_dim
    assert obs.shape == (3, 5) if "cartpole-swingup" in names else True
    assert obs[:, :width].equal(alone.reset(5))
    assert (obs[:, width:] == 0).all()
    env.close()
    alone.close()


def test_batch_simulated_set_of_one_keeps_its_name():
    env = make_env(own_set("toy-lqr", name="alone"), 2)
    env.reset(0)
    assert env.spec.label == "alone"
    again = make_env(own_set("toy-lqr", name="alone"), 2)
    again.load_state_dict(env.state_dict())
