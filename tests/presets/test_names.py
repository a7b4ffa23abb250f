"""The shipped presets: complete, readable, and the frozen ones frozen."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from shipped import LIBRARY, configs

import flowmbpo
from flowmbpo.config.experiment import config_differences, flatten
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import ConfigError
from flowmbpo.presets.library import presets_folder
from flowmbpo.presets.load import load_experiment, preset_info, to_yaml
from flowmbpo.presets.yaml import dump_document

PAPER = [name for name in LIBRARY.names() if name.startswith(("phase", "canonical"))]
MINI = ("mlp", "residual", "gaussian", "neuralode", "flow", "genflow", "fullflow")
PHASES = {"quickstart", "mini", "dmc", "phase1", "phase1p5", "phase2", "phase3", "phase4", "phase6"}
PHASES |= {"stage-a", "stage-b", "stage-c"}
ARMS = ("baseline", "flowpolicy", "flowwm", "fullflow", "residual")


def keys_that_differ(a, b):
    found = config_differences(configs()[a], configs()[b])
    return {d.key: d.b for d in found if d.key not in ("name", "phase", "description", "cost")}


def test_every_name_resolves_to_the_recorded_configuration():
    recorded = json.loads((Path(__file__).parents[1] / "golden" / "presets.json").read_text())
    text = {name: json.dumps(config.model_dump(mode="json"), sort_keys=True) for name, config in configs().items()}
    held = {name: hashlib.sha256(value.encode()).hexdigest()[:16] for name, value in text.items()}
    assert {name: held.get(name) for name in held | recorded if held.get(name) != recorded.get(name)} == {}


def test_every_preset_says_what_it_is_and_what_it_costs():
    for name in LIBRARY.names():
        config = configs()[name]
        assert config.phase in PHASES and config.cost, name
        assert config.description and "\n" not in config.description and "{" not in config.description, name
        assert resolve(config.task).spec.tasks
    shown = [configs()[name].description for name in LIBRARY.names()]
    assert len(set(shown)) == len(shown)


def test_a_preset_without_a_file_is_the_file_that_its_own_text_says(tmp_path):
    derived = [preset for preset in map(LIBRARY.find, LIBRARY.names()) if preset.parts]
    assert len(derived) > 140
    for preset in derived[::5]:
        path = tmp_path / f"{preset.name}.yaml"
        path.write_text(dump_document(LIBRARY.own(preset)))
        assert load_experiment(path) == configs()[preset.name]


def test_every_preset_can_be_stored_and_read_back(tmp_path):
    for name in LIBRARY.names()[::5]:
        (tmp_path / "config.yaml").write_text(to_yaml(configs()[name]))
        assert load_experiment(tmp_path / "config.yaml") == configs()[name]


def test_family_of_a_name_is_the_file_that_it_begins_with():
    names = ("quickstart-baseline", "phase1p5-h8-base", "canonical-flow-48m", "mini-cartpole-flow", "stage-a-residual")
    assert [LIBRARY.family(name) for name in names] == [
        *("quickstart", "phase1p5", "canonical-flow", "mini-cartpole", "stage"),
    ]


@pytest.mark.parametrize("name", ["dmc", "dmc-fullflow", "phase1-flow-k2-48m-logit", "phase2-baseline-logit", "phase1"])
def test_a_family_and_a_combination_that_it_lacks_are_unknown(name):
    with pytest.raises(ConfigError, match=f"unknown preset '{name}'"):
        load_experiment(name)


def test_a_family_s_name_leads_to_its_presets():
    with pytest.raises(ConfigError, match="It is a family: see `flowmbpo presets list --family phase1`"):
        load_experiment("phase1")


def test_a_family_s_file_is_refused_as_a_preset():
    with pytest.raises(ConfigError, match=r"presets/mini-ant\.yaml: is a family of presets\. Name one: mini-ant-base"):
        load_experiment(presets_folder() / "mini-ant.yaml")


@pytest.mark.parametrize(
    ("file", "wrong", "preset", "line"),
    [
        ("arms/flowwm.yaml", "kind: flow", "stage-a-flowwm", 3),
        ("modifiers/logit.yaml", "geometry: logit", "phase1-flow-k2-logit-48m", 3),
        ("mini-ant.yaml", "fm_source_grad: none", "mini-ant-fullflow", 43),
    ],
)
def test_a_wrong_value_in_an_overlay_names_its_file_and_line(tmp_path, monkeypatch, file, wrong, preset, line):
    shutil.copytree(presets_folder(), tmp_path / "presets")
    monkeypatch.setattr(flowmbpo, "__file__", str(tmp_path / "flowmbpo" / "__init__.py"))
    path = tmp_path / "presets" / file
    text = path.read_text()
    assert wrong in text.splitlines()[line - 1]
    path.write_text(text.replace(wrong, wrong.partition(":")[0] + ": nonsense"))
    with pytest.raises(ConfigError, match=rf"presets/{file}:{line}: model\.dynamics\.\w+: 'nonsense' is not allowed"):
        load_experiment(preset)


def test_every_preset_of_the_study_is_there():
    tasks = ("walker-stand", "cheetah-run", "reacher-easy", "cartpole-swingup")
    expected = {"quickstart", "quickstart-baseline", "canonical-flow"}
    expected |= {f"mini-cartpole-{arm}" for arm in MINI}
    expected |= {f"mini-ant-{arm}" for arm in ("baseline", "residual", "fullflow")}
    tasks += ("walker-walk", "walker-run", "hopper-stand", "reacher-hard", "finger-spin", "quadruped-walk")
    arms = (*ARMS, "gaussian", "neuralode", "genflow")
    expected |= {f"{family}-{task}-{arm}" for family in ("dmc", "dmc-latent") for task in tasks for arm in arms}
    for size in ("", "-48m"):
        expected |= {f"phase1-{arm}{size}" for arm in ("baseline", "flow-k2", "flow-k4", "flow-k8-euler")}
        expected |= {f"phase2-{arm}{size}" for arm in ("baseline", "flowpolicy", "flowwm", "fullflow")}
        expected |= {f"phase2-{arm}-h16{size}" for arm in ("baseline", "flowpolicy", "flowwm", "fullflow")}
        expected |= {f"phase2-{arm}-kpol4{size}" for arm in ("flowpolicy", "fullflow")}
        for sibling in ("logit", "endpoint"):
            expected |= {f"phase1-flow-{k}-{sibling}{size}" for k in ("k2", "k4", "k8-euler")}
            expected |= {f"phase2-{arm}-{sibling}{size}" for arm in ("flowwm", "fullflow")}
    staged = ("stage-a", "stage-b", "stage-c", "phase3-mt30", "phase3-mt80", "phase4", "phase6")
    staged += ("mini3-a", "mini3-b", "mini3-c", "mini3-policy")
    expected |= {f"{family}-{arm}" for family in staged for arm in ARMS} | {f"phase6-{arm}-48m" for arm in ARMS}
    expected |= {f"phase1p5-{h}-{decay}" for h in ("h8", "h16") for decay in ("base", "strong")}
    ablations = "h3 k2 k8 euler midpoint-tau jacobian-penalty substep-noise two-hot teacher"
    ablations += " spectral-norm truncated-h4 adaptive-horizon through"
    expected |= {f"phase1p5-{arm}" for arm in ablations.split()}
    assert expected <= set(LIBRARY.names())


def test_baseline_holds_pwms_published_values():
    published = {
        "model.latent_dim": 512,
        "model.simnorm_dim": 8,
        "model.encoder.units": [256],
        "model.dynamics.kind": "mlp",
        "model.dynamics.units": [512, 512],
        "model.reward.kind": "scalar",
        "actor.kind": "gaussian",
        "actor.units": [400, 200, 100],
        "actor.init_logstd": -1.0,
        "actor.min_logstd": -1.427,
        "critic.units": [400, 200],
        "critic.ensemble": 3,
        "critic.reduction": "min",
        "task.num_envs": 128,
        "training.epochs": 15000,
        "training.horizon": 16,
        "training.wm_batch_size": 256,
        "training.wm_iterations": 8,
        "training.wm_buffer_size": 1_000_000,
        "training.gamma": 0.99,
        "training.lam": 0.95,
        "training.dynamics_weight": 1.0,
        "training.reward_weight": "1/H",
        "training.actor_lr": 5e-4,
        "training.critic_lr": 5e-4,
        "training.model_lr": 3e-4,
        "training.lr_schedule": "linear",
        "training.final_lr": 1e-5,
        "training.betas": [0.7, 0.95],
        "training.weight_decay": 0.0,
        "training.clip.actor": 1.0,
        "training.clip.critic": 100.0,
        "training.clip.model": 20.0,
        "training.actor_input_gradient": "detached",
        "training.reward_normalization": "standardize",
        "training.return_normalization": True,
        "evaluation.every": 200,
        "checkpoint.every": 200,
    }
    held = flatten(load_experiment("phase1-baseline"))
    assert {key: held[key] for key in published} == published
    large = flatten(load_experiment("phase1-baseline-48m"))
    wide = {"model.latent_dim": 768, "model.encoder.units": [1792] * 3}
    wide |= {"model.dynamics.units": [1792, 1792], "model.reward.units": [1792, 1792]}
    assert keys_that_differ("phase1-baseline", "phase1-baseline-48m") == wide
    assert {key: large[key] for key in wide} == wide


@pytest.mark.parametrize("size", ["", "-48m"])
def test_flow_presets_differ_from_the_baseline_in_the_dynamics_alone(size):
    for name in (f"phase1-flow-{k}{size}" for k in ("k2", "k4", "k8-euler")):
        assert all(key.startswith("model.dynamics.") for key in keys_that_differ(f"phase1-baseline{size}", name))
        dynamics = load_experiment(name).model.dynamics
        assert (dynamics.geometry, dynamics.fm_weight, dynamics.endpoint_weight) == ("tangent", 1.0, 0.0)
        assert (dynamics.mode, dynamics.source) == ("displacement", "rollout")


def test_velocity_evaluations_are_what_the_names_say():
    held = {name: load_experiment(f"phase1-flow-{name}").model.dynamics for name in ("k2", "k4", "k8-euler")}
    assert {name: (d.substeps, d.integrator) for name, d in held.items()} == {
        "k2": (2, "heun"),
        "k4": (4, "heun"),
        "k8-euler": (8, "euler"),
    }


def test_phase_1p5_is_horizon_by_weight_decay_and_one_change_per_ablation():
    grid = {
        (h, decay): load_experiment(f"phase1p5-h{h}-{decay}").training for h in (8, 16) for decay in ("base", "strong")
    }
    assert {key: (t.horizon, t.weight_decay) for key, t in grid.items()} == {
        (8, "base"): (8, 0.0),
        (8, "strong"): (8, 3e-4),
        (16, "base"): (16, 0.0),
        (16, "strong"): (16, 3e-4),
    }
    expected = {
        "h3": {"training.horizon": 3},
        "k2": {"model.dynamics.substeps": 2},
        "k8": {"model.dynamics.substeps": 8},
        "euler": {"model.dynamics.integrator": "euler"},
        "midpoint-tau": {"model.dynamics.tau_sampling": "midpoint"},
        "jacobian-penalty": {"model.dynamics.jacobian_penalty": 1e-3},
        "substep-noise": {"model.dynamics.substep_noise": 0.01},
        "teacher": {"model.dynamics.source": "teacher"},
        "spectral-norm": {"model.dynamics.spectral_norm": True},
        "truncated-h4": {"training.actor_horizon": 4},
        "through": {"training.actor_input_gradient": "through"},
    }
    assert {name: keys_that_differ("phase1p5-h8-base", f"phase1p5-{name}") for name in expected} == expected
    adaptive = keys_that_differ("phase1p5-h8-base", "phase1p5-adaptive-horizon")
    assert {key.removeprefix("training.adaptive_horizon") for key in adaptive} == {"", ".tolerance", ".minimum"}
    assert keys_that_differ("phase1p5-h8-base", "phase1p5-two-hot")["model.reward.kind"] == "two_hot"


@pytest.mark.parametrize("size", ["", "-48m"])
def test_phase_2_is_a_grid_of_world_model_and_policy(size):
    held = {arm: load_experiment(f"phase2-{arm}{size}") for arm in ("baseline", "flowpolicy", "flowwm", "fullflow")}
    assert {arm: (c.model.dynamics.kind, c.actor.kind) for arm, c in held.items()} == {
        "baseline": ("mlp", "gaussian"),
        "flowpolicy": ("mlp", "flow"),
        "flowwm": ("flow", "gaussian"),
        "fullflow": ("flow", "flow"),
    }
    assert len({c.training for c in held.values()}) == 1 and held["baseline"].training.horizon == 8
    assert held["flowwm"].model == held["fullflow"].model == load_experiment(f"canonical-flow{size}").model
    assert held["fullflow"].actor.substeps == 2 and held["fullflow"].model.dynamics.substeps == 4
    assert keys_that_differ(f"phase2-fullflow{size}", f"phase2-fullflow-kpol4{size}") == {"actor.substeps": 4}
    assert keys_that_differ(f"phase2-flowwm{size}", f"phase2-flowwm-h16{size}") == {"training.horizon": 16}


@pytest.mark.parametrize(
    "name", [name for name in PAPER if name.endswith(("-logit", "-endpoint", "-logit-48m", "-endpoint-48m"))]
)
def test_correction_is_the_only_difference_of_a_sibling(name):
    plain = name.replace("-logit", "").replace("-endpoint", "")
    expected = {"model.dynamics.geometry": "logit"} if "logit" in name else {"model.dynamics.endpoint_weight": 1.0}
    assert keys_that_differ(plain, name) == expected


@pytest.mark.parametrize(
    "family", ["mini-cartpole-", "mini-ant-", "quickstart", "dmc-walker-stand-", "dmc-latent-reacher-easy-"]
)
def test_arms_of_one_task_share_everything_but_the_compared_part(family):
    first, *others = [name for name in LIBRARY.names() if name.startswith(family)]
    assert others
    for other in others:
        differing = keys_that_differ(first, other)
        assert all(key.startswith(("model.dynamics.", "actor.")) for key in differing), differing


def test_dmc_presets_of_one_arm_differ_in_the_task_alone():
    for arm in ("baseline", "residual", "fullflow"):
        found = keys_that_differ(f"dmc-latent-walker-stand-{arm}", f"dmc-latent-cheetah-run-{arm}")
        assert found == {"task.name": "cheetah-run"}
        found = keys_that_differ(f"dmc-walker-stand-{arm}", f"dmc-cheetah-run-{arm}")
        assert found == {"task.name": "cheetah-run", "model.latent_dim": 17}


def test_info_lists_runnable_presets_only():
    infos = {info.name: asdict(info) for info in preset_info()}
    assert set(infos) == set(LIBRARY.names())
    assert not any(name.startswith("_") for name in infos)
    assert set(infos["quickstart"]) == {"name", "family", "phase", "task", "description", "cost"}
    assert infos["dmc-cheetah-run-fullflow"]["task"] == "cheetah-run"
