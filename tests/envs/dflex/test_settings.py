"""The table of dflex tasks and what its rows set in dflex."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowmbpo
from flowmbpo.envs.dflex.library import load_dflex
from flowmbpo.envs.dflex.settings import SETTINGS
from flowmbpo.envs.tasks import all_tasks
from flowmbpo.errors import EnvironmentUnavailableError


def test_rows_have_dflexs_widths_and_episode_lengths():
    rows = {
        task.name: (task.obs_dim, task.action_dim, task.episode_length, task.can_terminate)
        for task in all_tasks("dflex")
    }
    assert rows == {
        "dflex-ant": (37, 8, 1000, True),
        "dflex-hopper": (11, 3, 1000, True),
        "dflex-anymal": (49, 12, 1000, True),
        "dflex-humanoid": (76, 21, 1000, True),
        "dflex-snu-humanoid": (53, 152, 1000, True),
        "dflex-cartpole": (5, 1, 240, False),
        "dflex-double-pendulum": (6, 1, 240, False),
    }
    assert {(task.simulator, task.action_repeat) for task in all_tasks("dflex")} == {("dflex", 1)}
    assert [task.discount for task in all_tasks("dflex")] == [0.995] * 5 + [pytest.approx(47 / 48)] * 2


def test_tasks_and_settings_are_the_same():
    assert [task.name for task in all_tasks("dflex")] == list(SETTINGS)


def test_the_ant_is_set_as_published():
    assert SETTINGS["dflex-ant"][0] == "AntEnv"
    assert SETTINGS["dflex-ant"][1] == {
        "MM_caching_frequency": 16,
        "early_termination": True,
        "termination_height": 0.27,
        "action_penalty": 0.0,
        "joint_vel_obs_scaling": 0.1,
        "up_rew_scale": 0.1,
    }


def test_without_dflex_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr("flowmbpo.envs.simulators.find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnavailableError) as caught:
        load_dflex("dflex-ant")
    message = str(caught.value)
    assert "'dflex-ant' needs dflex" in message
    assert 'pip install "git+https://github.com/imgeorgiev/DiffRL.git#subdirectory=dflex"' in message
    assert "Tasks that may run now: mujoco-ant, mujoco-hopper" in message
    assert "NON-COMMERCIAL" in message


@pytest.mark.parametrize("name", ["dflex/README", "dflex.py"])
def test_a_folder_or_file_of_that_name_is_no_package(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    code = "from flowmbpo.envs.simulators import SIMULATORS; raise SystemExit(SIMULATORS['dflex'].installed)"
    # Without site-packages, where the package may lie; the project's own folder is all it needs.
    root = Path(flowmbpo.__file__).parents[1]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(root)))}
    subprocess.run([sys.executable, "-S", "-c", code], check=True, timeout=60, env=variables, cwd=tmp_path)


def test_the_table_and_the_build_import_no_torch():
    code = (
        "import sys; import flowmbpo.envs.tasks, flowmbpo.envs.dflex.kernels; "
        "assert not {'torch', 'numpy', 'dflex'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
