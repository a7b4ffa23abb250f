"""The import of rewarped, on packages of that name and of Warp's that do what theirs do; nothing is installed."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmbpo.envs.adapters import quiet
from flowmbpo.envs.rewarped import KERNELS, announce_compilation, load_task
from flowmbpo.envs.tasks import all_tasks
from flowmbpo.errors import EnvironmentUnavailableError

PACKAGE = """
import os

import warp
from gym import spaces

print("printed noise")
os.write(1, b"noise of the C library")
os.write(2, b"no CUDA driver")
"""
NAMES = ("rewarped", "warp")


def loaded_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in NAMES]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `rewarped` and a `warp` to import; installed ones are set aside meanwhile."""
    aside = {name: sys.modules.pop(name) for name in loaded_modules()}
    folder = tmp_path / "rewarped"
    (folder / "envs" / "dflex").mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    for part in (folder / "envs", folder / "envs" / "dflex"):
        (part / "__init__.py").write_text("")
    (folder / "envs" / "dflex" / "ant.py").write_text("class Ant:\n    pass\n")
    (tmp_path / "warp").mkdir()
    (tmp_path / "warp" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in loaded_modules():
        del sys.modules[name]
    sys.modules.update(aside)


def test_rows_have_rewarpeds_widths_and_episode_lengths():
    rows = {
        task.name: (task.obs_dim, task.action_dim, task.episode_length, task.can_terminate)
        for task in all_tasks("rewarped")
    }
    assert rows == {
        "rewarped-ant": (37, 8, 1000, True),
        "rewarped-humanoid": (76, 21, 1000, True),
        "rewarped-cartpole": (5, 1, 240, False),
    }
    assert {(task.simulator, task.action_repeat) for task in all_tasks("rewarped")} == {("rewarped", 1)}
    assert [task.discount for task in all_tasks("rewarped")] == [0.995, 0.995, pytest.approx(47 / 48)]


def test_without_rewarped_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr("flowmbpo.envs.simulators.find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnavailableError) as caught:
        load_task("rewarped-ant")
    message = str(caught.value)
    assert "'rewarped-ant'" in message
    assert "rewarped==1.3.3" in message
    assert "mujoco-ant" in message


def test_import_prints_nothing_and_leaves_no_stand_in(package, capfd):
    names = set(sys.modules)
    warp, environment = load_task("rewarped-ant")
    assert warp is sys.modules["warp"]
    assert environment is sys.modules["rewarped.envs.dflex.ant"].Ant
    new = {name.partition(".")[0] for name in set(sys.modules) - names}
    assert not new & {name for name in ("gym", "urchin", "imp") if importlib.util.find_spec(name) is None}
    assert capfd.readouterr() == ("", "")
    os.write(1, b"heard again")
    assert capfd.readouterr().out == "heard again"


def test_a_failed_import_shows_its_output_and_can_be_repeated(package):
    (package / "envs" / "dflex" / "ant.py").write_text("import warp.sim\n")
    with pytest.raises(EnvironmentUnavailableError, match=r"No module named 'warp\.sim'.*warp-lang 1\.3\.3") as caught:
        load_task("rewarped-ant")
    for words in ("printed noise", "noise of the C library", "no CUDA driver"):
        assert words in caught.value.__notes__[0]
    assert not loaded_modules()
    (package / "envs" / "dflex" / "ant.py").write_text("class Ant:\n    '''Of another length than before.'''\n")
    assert load_task("rewarped-ant")[1].__name__ == "Ant"


def test_a_release_without_the_task_is_refused(package):
    (package / "envs" / "dflex" / "ant.py").write_text("")
    with pytest.raises(EnvironmentUnavailableError, match="has no attribute 'Ant'"):
        load_task("rewarped-ant")


def test_compiling_is_announced_until_all_modules_are_there(tmp_path, caplog):
    def announced(device: str) -> bool:
        caplog.clear()
        announce_compilation(tmp_path, device)
        assert {record.levelno for record in caplog.records} <= {logging.WARNING}
        return f"compiling rewarped's kernels into {tmp_path}" in caplog.text

    for module in KERNELS:
        assert announced("cpu")
        folder = tmp_path / f"wp_{module}_0123abc"
        folder.mkdir()
        assert announced("cpu")
        (folder / "module_codegen.o").touch()
    assert not announced("cpu")
    assert announced("cuda")
    for module, binary in zip(KERNELS, 2 * ("module_codegen.sm75.ptx", "module_codegen.sm90.cubin"), strict=True):
        (tmp_path / f"wp_{module}_0123abc" / binary).touch()
    assert not announced("cuda")


def test_quiet_swallows_prints_only_while_it_lasts(capsys):
    with quiet():
        print("swallowed")
    print("heard")
    assert capsys.readouterr().out == "heard\n"


def test_the_table_imports_no_torch_and_no_simulator():
    code = "import sys, flowmbpo.envs.tasks; assert not {'torch', 'numpy', 'warp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
