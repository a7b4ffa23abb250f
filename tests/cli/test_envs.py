"""`flowmbpo envs`."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from flowmbpo.envs import resolve, tasks
from flowmbpo.envs.inspection import conformance
from flowmbpo.envs.inspection.conformance import CheckResult
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.task_sets import MT30, TASK_SETS
from flowmbpo.envs.tasks import ALIASES, task_names
from flowmbpo.errors import EnvironmentUnavailableError
from flowmbpo_cli import environments as catalogue
from flowmbpo_cli.sources import complete_environment

SET_FILE = "extends: quickstart\ntask: {name: null, set: mine, tasks: [toy-lqr, toy-gust, toy-pendulum-swingup]}\n"


@pytest.fixture
def without_dflex(monkeypatch):
    """dflex looks as if it were not installed, whatever this machine has."""
    missing = type(SIMULATORS["dflex"])("dflex", "dflex", ("no_such_module",), "pip install it", "NO SALE", ("a-task",))
    shown = {**SIMULATORS, "dflex": missing}
    for module in (catalogue, resolve, tasks):
        monkeypatch.setattr(module, "SIMULATORS", shown)


def test_list_is_the_table_of_tasks_with_aliases_and_sets(command):
    document = command("envs", "list", "--json").document
    names = [row["name"] for row in document["tasks"]]
    assert names == [name for name in task_names() if name not in ALIASES]
    row = next(row for row in document["tasks"] if row["name"] == "walker-stand")
    assert row == {
        "name": "walker-stand",
        "simulator": "dmcontrol",
        "obs_dim": 24,
        "action_dim": 6,
        "episode_length": 500,
        "action_repeat": 2,
        "discount": 0.99,
        "can_terminate": False,
        "runs_here": True,
    }
    assert {row["name"]: row["tasks"] for row in document["sets"]} == {"mt30": 30, "mt80": 80, "mini3": 3}
    assert [row["name"] for row in document["aliases"]] == ["ant", "hopper"]
    assert sum(row["tasks"] for row in document["simulators"]) == len(names)


def test_list_for_people_has_a_line_per_task(command, without_dflex):
    text = command("envs", "list").stdout
    assert all(f" {name} " in text for name in task_names())
    assert "task sets" in text and "For dflex (NO SALE): pip install it" in text
    here = sum(row["runs_here"] for row in command("envs", "list", "--json").document["tasks"])
    assert f"{here} of {len(task_names()) - len(ALIASES)} tasks run here." in text


def test_list_of_one_simulator(command):
    document = command("envs", "list", "--simulator", "mujoco", "--json").document
    assert [row["name"] for row in document["tasks"]] == ["mujoco-ant", "mujoco-hopper"]
    assert "sets" not in document
    finished = command("envs", "list", "--simulator", "mujocco")
    assert finished.code == 2 and "Did you mean 'mujoco'?" in finished.stderr


def test_show_tells_a_tasks_numbers_its_physics_and_its_ids(command):
    document = command("envs", "show", "mw-reach", "--json").document
    assert (document["kind"], document["obs_dim"], document["action_dim"]) == ("task", 39, 4)
    assert (document["episode_length"], document["action_repeat"], document["control_steps"]) == (100, 2, 200)
    assert document["discount"] == 0.95
    assert "v3 physics" in document["physics"] and document["licence"] == "MIT"
    assert document["task_ids"] == {"mt80": 65}
    assert "v3 physics" in command("envs", "show", "mw-reach").stdout


def test_show_says_what_an_alias_means_here(command, without_dflex):
    document = command("envs", "show", "ant", "--json").document
    assert (document["kind"], document["runs_as"], document["simulator"]) == ("alias", "mujoco-ant", "mujoco")
    assert document["backends"]["dflex"] == "dflex-ant"
    assert "physics differ" in document["notice"]
    assert command("envs", "show", "mujoco-ant", "--json").document["aliases"] == ["ant"]


def test_show_says_what_to_install_or_run_instead(command, without_dflex):
    document = command("envs", "show", "dflex-ant", "--json").document
    assert document["runs_here"] is False
    assert (document["install"], document["instead"]) == (["pip install it"], ["a-task"])
    text = command("envs", "show", "dflex-ant").stdout
    assert "pip install it" in text and "NO SALE" in text


def test_show_of_a_set_lists_its_tasks_by_id(command):
    document = command("envs", "show", "mt30", "--json").document
    assert (document["kind"], document["obs_dim"], document["action_dim"]) == ("task set", 24, 6)
    assert [(row["task_id"], row["name"]) for row in document["members"]] == list(enumerate(MT30))


def test_a_set_of_ones_own_is_shown_from_its_file(command, tmp_path):
    (tmp_path / "mine.yaml").write_text(SET_FILE)
    document = command("envs", "show", "mine.yaml", "--json").document
    assert document["runs_as"] == "mine"
    assert [row["name"] for row in document["members"]] == ["toy-lqr", "toy-gust", "toy-pendulum-swingup"]


@pytest.mark.parametrize("verb", ["show", "check", "bench"])
def test_an_unknown_name_is_answered_with_the_nearest(command, verb):
    finished = command("envs", verb, "walker-stnd", "--json")
    assert finished.code == 2
    assert finished.document["error"]["kind"] == "config"
    assert "Did you mean 'walker-stand'?" in finished.document["error"]["message"]


def test_listing_and_showing_import_no_torch_and_no_simulator():
    code = (
        "import sys\nfrom flowmbpo_cli.main import app\n"
        "for args in (['envs', 'list'], ['envs', 'show', 'mt30', '--json']):\n"
        "    try:\n        app(args)\n    except SystemExit as done:\n        assert not done.code\n"
        "print('loaded', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded" and "flowmbpo.envs.tasks" in loaded
    assert not {"torch", "numpy", "mujoco", "dm_control", "metaworld"} & set(loaded)


def test_completion_offers_tasks_aliases_and_sets():
    assert complete_environment("m") == [name for name in [*task_names(), *TASK_SETS] if name.startswith("m")]
    assert {"mt30", "mujoco-ant", "mw-reach"} <= set(complete_environment("m"))


def test_check_passes_a_sound_environment(command):
    finished = command("envs", "check", "toy-lqr", "--steps", "60", "--json")
    assert finished.code == 0
    [environment] = finished.document["environments"]
    assert (finished.document["ok"], environment["name"], environment["ok"]) == (True, "toy-lqr", True)
    verdicts = {check["name"]: check["verdict"] for check in environment["checks"]}
    assert verdicts["resume"] == verdicts["time limit"] == "passed"
    assert "failed" not in verdicts.values()


def test_check_of_a_set_of_ones_own(command, tmp_path):
    (tmp_path / "mine.yaml").write_text(SET_FILE)
    finished = command("envs", "check", "mine.yaml", "--quick")
    assert finished.code == 0
    assert "masked actions" in finished.stdout and "1 of 1 environments keep the contract" in finished.stdout


def test_check_exits_with_1_and_names_what_failed(command, monkeypatch):
    def fail_gust(config, **options):
        verdict = "failed" if config.name == "toy-gust" else "passed"
        return [CheckResult(config.name, "resume", verdict, "obs of copy 0 in step 3", 0.1, 0.1)]

    monkeypatch.setattr(conformance, "check_environment", fail_gust)
    finished = command("envs", "check", "toy-lqr", "toy-gust")
    assert finished.code == 1
    assert "1 of 2 environments keep the contract" in finished.stdout
    assert "obs of copy 0 in step 3" in finished.stdout
    assert "[2/2] toy-gust: FAILED: resume" in finished.stderr
    document = command("envs", "check", "toy-gust", "--json").document
    assert document["ok"] is False


def test_check_of_all_leaves_out_what_cannot_run(command, monkeypatch, without_dflex):
    asked = []

    def refuse_gust(config, **options):
        asked.append((config.name, options["steps"], options["workers"], options["whole_episodes"]))
        if config.name == "toy-gust":
            raise EnvironmentUnavailableError("its driver is missing")
        return [CheckResult(config.name, "rollout", "passed", "", 0.1, 0.1)]

    monkeypatch.setattr(conformance, "check_environment", refuse_gust)
    document = command("envs", "check", "--all", "--quick", "--json").document
    installed = [row["name"] for row in command("envs", "list", "--json").document["tasks"] if row["runs_here"]]
    assert asked == [(name, 60, 0, False) for name in installed]
    assert not any(name.startswith("dflex") for name in installed)
    assert document["left_out"] == [{"name": "toy-gust", "reason": "its driver is missing"}]
    assert len(document["environments"]) == len(installed) - 1
    alone = command("envs", "check", "toy-gust")
    assert alone.code == 2 and "its driver is missing" in alone.stderr


def test_check_of_nothing_that_runs_here_says_so_and_fails(command, monkeypatch):
    def refuse(config, **options):
        raise EnvironmentUnavailableError("its driver is missing")

    monkeypatch.setattr(conformance, "check_environment", refuse)
    finished = command("envs", "check", "toy-lqr", "toy-gust")
    assert finished.code == 1
    assert "Nothing was checked: none of 2 environments runs here" in finished.stdout
    assert "keep the contract" not in finished.stdout and "its driver is missing" in finished.stdout
    as_json = command("envs", "check", "toy-lqr", "toy-gust", "--json")
    assert (as_json.code, as_json.document["ok"]) == (1, False)


@pytest.mark.parametrize("args", [[], ["toy-lqr", "--all"]])
def test_check_wants_names_or_all(command, args):
    finished = command("envs", "check", *args)
    assert finished.code == 2 and "--all" in finished.stderr


def test_bench_measures_the_copies_that_were_asked_for(command):
    document = command("envs", "bench", "toy-lqr", "--copies", "5", "--seconds", "0.1", "--json").document
    assert (document["environment"], document["copies"]) == ("toy-lqr", 5)
    assert document["agent_steps"] % 5 == 0 and document["steps_per_cpu_s"] > 0
    assert "steps per cpu s" in command("envs", "bench", "toy-lqr", "--seconds", "0.1").stdout
    refused = command("envs", "bench", "toy-lqr", "--seconds", "0")
    assert refused.code == 2 and "not a positive number" in refused.stderr


def test_render_writes_the_picture_after_that_many_steps(command, tmp_path):
    for steps in (0, 0, 20):
        assert command("envs", "render", "toy-gust", f"{steps}.png", "--steps", str(steps)).code == 0
    start, later = imread(tmp_path / "0.png"), imread(tmp_path / "20.png")
    assert start.ndim == 3 and start.shape == later.shape
    assert not np.array_equal(start, later)
    document = command("envs", "render", "toy-gust", "a.png", "--steps", "0", "--action", "zero", "--json").document
    assert document == {"environment": "toy-gust", "path": "a.png", "steps": 0, "seed": 0, "action": "zero"}
    assert np.array_equal(imread(tmp_path / "a.png"), start)


def test_render_writes_a_video(command, tmp_path):
    assert command("envs", "render", "toy-gust", "film.mp4", "--steps", "3").code == 0
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("out", "message"),
    [("a.gif", "must end in .png"), ("no/a.png", "does not exist"), ("folder.png", "is a folder")],
)
def test_render_to_a_place_that_cannot_hold_it_is_refused(command, tmp_path, out, message):
    (tmp_path / "folder.png").mkdir()
    finished = command("envs", "render", "toy-gust", out)
    assert finished.code == 2 and message in finished.stderr


def test_render_draws_one_task_and_no_set(command):
    finished = command("envs", "render", "mini3", "a.png")
    assert finished.code == 2 and "name a task of it, such as 'reacher-easy'" in finished.stderr


def test_render_without_an_opengl_backend_names_the_packages(command, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "no-such-platform")
    finished = command("envs", "render", "mujoco-hopper", "a.png", "--steps", "1")
    assert finished.code == 2
    assert "libegl1" in finished.stderr and "libosmesa6" in finished.stderr
