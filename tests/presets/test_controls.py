"""Controls that are derived from flow presets: what each is, and that they are presets like any other."""

import json
import shutil
from functools import cache

import pytest
import torch
from shipped import LIBRARY, configs

import flowmbpo
from flowmbpo.config.dynamics import FlowDynamicsConfig
from flowmbpo.config.experiment import config_differences
from flowmbpo.data.batch import Batch
from flowmbpo.errors import ConfigError
from flowmbpo.models.agent import build_agent, build_meta_agent
from flowmbpo.parity.flops import parameter_counts
from flowmbpo.presets.controls import CONTROLS, JACOBIAN_PENALTY, control_overlay
from flowmbpo.presets.library import Library, presets_folder
from flowmbpo.presets.load import load_experiment, preset_info, to_yaml
from flowmbpo.presets.yaml import dump_document
from flowmbpo.spec import EnvSpec, TaskInfo
from flowmbpo.training.model_loss import model_loss

LABELS = ("name", "description")
KINDS = {
    "residual": "residual",
    "gaussian": "gaussian",
    "neuralode": "neural_ode",
    "teacher": "flow",
    "widemlp": "mlp",
    "jacpen": "mlp",
}


@cache
def resolved():
    """Every flow preset with its derived controls: {base name: (config, {control: config})}."""
    flows = {}
    for control in LIBRARY.controls():
        flows.setdefault(control.flow.name, (configs()[control.flow.name], {}))
        flows[control.flow.name][1][control.control] = configs()[control.name]
    return flows


def each():
    return [(base, control, flow) for flow, controls in resolved().values() for control, base in controls.items()]


def dynamics_of(name):
    return load_experiment(name).model.dynamics


def test_every_flow_preset_has_every_control():
    shipped = {name: configs()[name] for name in LIBRARY.names()}
    flows = {name for name, config in shipped.items() if config.model.dynamics.kind == "flow"}
    assert set(resolved()) == flows and len(flows) > 40
    for name, (_, controls) in resolved().items():
        assert set(controls) | {c for c in CONTROLS if f"{name}-{c}" in shipped} == set(KINDS)


def test_a_control_differs_from_its_flow_preset_in_the_dynamics_alone():
    for control, name, flow in each():
        keys = {d.key for d in config_differences(flow, control)} - set(LABELS)
        assert all(key.startswith("model.dynamics.") for key in keys), control.name
        assert keys or (name == "teacher" and flow.model.dynamics.source == "teacher"), control.name


def test_a_control_keeps_the_flow_s_place_size_geometry_and_loss_space():
    for control, name, flow in each():
        a, b = flow.model.dynamics, control.model.dynamics
        assert (control.phase, control.cost, control.training) == (flow.phase, flow.cost, flow.training)
        assert (b.geometry, b.units, b.parity) == (a.geometry, a.units, a.parity)
        assert b.loss_space == a.loss_space or name == "gaussian"  # its likelihood has no loss space
        assert b.source == ("teacher" if name in ("teacher", "gaussian") else a.source)


def test_a_control_is_of_the_kind_its_name_says():
    for control, name, flow in each():
        euclidean = flow.model.dynamics.geometry == "euclidean"
        expected = "residual" if euclidean and KINDS[name] == "mlp" else KINDS[name]  # no MLP outside the simplex
        assert control.model.dynamics.kind == expected, control.name


def test_a_control_says_in_one_line_what_it_is_and_of_what():
    texts = [(control.description, flow.name) for control, _, flow in each()]
    assert all(text.startswith(f"Control of {base}. ") and "\n" not in text for text, base in texts)
    assert len({text for text, _ in texts}) == len(texts)


def test_a_control_can_be_stored_and_read_back(tmp_path):
    for number, (control, _, _) in enumerate(each()[::7]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(to_yaml(control))
        assert load_experiment(path) == control


def test_the_neural_ode_has_the_flow_s_evaluations_and_network():
    for control, name, flow in each():
        if name == "neuralode":
            a, b = flow.model.dynamics, control.model.dynamics
            assert (b.nfe, b.substeps, b.integrator, b.tau_features) == (
                a.nfe,
                a.substeps,
                a.integrator,
                a.tau_features,
            )
            assert b.substep_noise == a.substep_noise


def test_the_wide_mlp_has_the_flow_s_evaluations_in_one():
    assert dynamics_of("phase1-flow-k4-widemlp").widen_nfe == 8  # K 4 Heun
    assert dynamics_of("phase1-flow-k8-euler-widemlp").widen_nfe == 8
    assert dynamics_of("quickstart-widemlp").widen_nfe == 2  # K 2 Euler


def test_the_penalty_is_the_flow_s_own_where_it_has_one():
    assert dynamics_of("phase1-flow-k4-jacpen").jacobian_penalty == JACOBIAN_PENALTY
    assert dynamics_of("phase1p5-jacobian-penalty-jacpen").jacobian_penalty == 1e-3
    overlay = control_overlay("jacpen", "x", FlowDynamicsConfig(jacobian_penalty=0.5))
    assert overlay["model"]["dynamics"]["jacobian_penalty"] == 0.5
    assert dynamics_of("phase1p5-jacobian-penalty-residual").jacobian_penalty == 1e-3


@pytest.mark.parametrize(
    ("flow", "control", "expected"),
    [
        ({"retraction": "project"}, "widemlp", {"retraction": "none", "widen_nfe": 8}),
        ({"spectral_norm": True}, "jacpen", {"spectral_norm": False}),
        ({"geometry": "euclidean", "spectral_norm": True}, "jacpen", {"kind": "residual"}),
        ({"geometry": "logit", "loss_space": "logit"}, "gaussian", {"loss_space": "latent", "nll_weight": 0.005}),
        ({"source": "rollout"}, "gaussian", {"source": "teacher", "max_logstd": 2.0}),
        ({"mode": "generative", "fm_weight": 0.005}, "gaussian", {"source": "teacher", "nll_weight": 0.005}),
        ({"mode": "generative"}, "residual", {"kind": "residual", "source": "teacher"}),
        ({"source_noise": 0.1, "mode": "displacement"}, "neuralode", {"kind": "neural_ode"}),
    ],
)
def test_options_that_the_control_cannot_have_are_put_right(tmp_path, flow, control, expected):
    """The flow and the control's delta as files of their own: what they say must load."""
    model = {"dynamics": {"kind": "flow", **flow}}
    if "euclidean" in flow.values():
        model |= {"encoder": {"kind": "identity"}, "latent_dim": 3}
    (tmp_path / "flow.yaml").write_text(dump_document({"phase": "mini", "model": model}))
    delta = control_overlay(control, "flow", FlowDynamicsConfig.model_validate(flow))
    (tmp_path / "control.yaml").write_text(dump_document({"extends": "./flow.yaml", **delta}))
    held = load_experiment(tmp_path / "control.yaml").model.dynamics.model_dump()
    assert {key: held[key] for key in expected} == expected


def test_the_delta_of_a_control_is_the_file_that_would_state_it(tmp_path):
    for control in CONTROLS:
        name = f"mini-cartpole-genflow-{control}"
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_document(Library().own(Library().find(name))))
        assert load_experiment(path) == load_experiment(name)


def test_a_control_can_be_extended_and_overridden(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: phase1-flow-k4-residual\ntraining: {horizon: 8}\n")
    mine = load_experiment(tmp_path / "mine.yaml")
    assert (mine.name, mine.model.dynamics.kind, mine.training.horizon) == ("mine", "residual", 8)
    changed = load_experiment("phase1-flow-k4-residual", ["training.horizon=8"], seed=3)
    assert changed.name.startswith("phase1-flow-k4-residual+") and changed.seed == 3


def test_most_model_parameters_are_the_flow_s():
    """Parity by solved widths, except for the widened MLP, whose FLOPs are matched instead."""
    spec = EnvSpec((TaskInfo("task", "toy", 5, 2, 100, 1, 0.99),))
    for base in ("quickstart", "phase1-flow-k4", "phase1-flow-k4-logit-48m", "mini-cartpole-genflow"):
        flow, controls = resolved()[base]
        size = parameter_counts(build_meta_agent(flow, spec))["dynamics"]
        for name, control in controls.items():
            found = parameter_counts(build_meta_agent(control, spec))["dynamics"]
            assert abs(found / size - 1) < 0.02 or name == "widemlp", control.name


def small(name):
    """The preset's method at toy widths."""
    held = load_experiment(name).model
    sizes = [] if held.encoder.kind == "identity" else ["model.latent_dim=16", "model.encoder.units=[16]"]
    units = ["model.dynamics.units=[16, 16]", "model.reward.units=[8]", "actor.units=[8]", "critic.units=[8]"]
    return load_experiment(name, [*sizes, *units, "training.horizon=2"])


def test_every_distinct_control_built_small_has_a_finite_gradient():
    generator = torch.Generator().manual_seed(0)
    distinct = {}
    for control, _, _ in each():
        sizes = {"units", "substeps", "widen_nfe", "substep_noise", "nll_weight", "jacobian_penalty", "tau_sampling"}
        method = control.model.dynamics.model_dump(mode="json", exclude=sizes)
        distinct.setdefault(json.dumps([method, control.model.encoder.kind]), control.name)
    assert 20 < len(distinct) < len(each())
    for name in distinct.values():
        config = small(name)
        obs_dim = config.model.latent_dim if config.model.encoder.kind == "identity" else 3
        spec = EnvSpec((TaskInfo("task", "toy", obs_dim, 1, 100, 1, 0.99),))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            agent = build_agent(config, spec)
        batch = Batch(
            obs=torch.randn(3, 4, obs_dim, generator=generator),
            action=torch.rand(2, 4, 1, generator=generator) * 2 - 1,
            reward=torch.randn(2, 4, generator=generator),
            terminated=torch.zeros(2, 4, dtype=torch.bool),
            valid=torch.ones(2, 4, dtype=torch.bool),
            task=torch.zeros(4, dtype=torch.long),
        )
        losses = model_loss(agent.world_model, batch, batch.reward, config.training, generator)
        losses.total.backward()
        gradients = [p.grad for p in agent.world_model.dynamics.parameters() if p.grad is not None]
        assert losses.total.isfinite() and gradients and all(g.isfinite().all() for g in gradients), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phase1-baseline-residual", "Controls stand beside flow world models, and 'phase1-baseline' has none"),
        ("phase1-flow-k4-residul", "Did you mean 'phase1-flow-k4-residual'?"),
        ("phase1-flow-k5-widemlp", "Did you mean 'phase1-flow-k"),
        ("_dmc-fullflow-residual", "unknown preset '_dmc-fullflow-residual'"),
        ("phase1-flow-k4-teacher-residual", "unknown preset 'phase1-flow-k4-teacher-residual'"),
    ],
)
def test_what_is_no_control_is_refused_with_the_nearest_name(name, message):
    with pytest.raises(ConfigError) as caught:
        load_experiment(name)
    assert message in str(caught.value)


@pytest.fixture
def other_presets(tmp_path, monkeypatch):
    """A copy of the shipped presets to write into."""
    shutil.copytree(presets_folder(), tmp_path / "presets")
    (tmp_path / "flowmbpo").mkdir()
    monkeypatch.setattr(flowmbpo, "__file__", str(tmp_path / "flowmbpo" / "__init__.py"))
    return tmp_path / "presets"


def test_a_file_of_that_name_wins_over_the_derived_control(other_presets):
    (other_presets / "quickstart-residual.yaml").write_text(
        "extends: quickstart\ndescription: Tuned by hand.\nmodel: {dynamics: {kind: residual, units: [64, 64]}}\n"
    )
    assert load_experiment("quickstart-residual").model.dynamics.units == (64, 64)
    assert Library().find("quickstart-residual").path == other_presets / "quickstart-residual.yaml"
    assert "quickstart-residual" in {info.name for info in preset_info("quickstart")}
    derived = {info.name for info in preset_info("quickstart", controls=True)}
    assert "quickstart-residual" not in derived and "quickstart-gaussian" in derived


def test_a_circle_through_a_control_is_found(other_presets):
    (other_presets / "quickstart.yaml").write_text("extends: quickstart-residual\n")
    with pytest.raises(ConfigError, match="goes in a circle"):
        load_experiment("quickstart")


def test_an_unknown_parent_is_refused_without_reading_every_preset(other_presets):
    (other_presets / "quickstart.yaml").write_text("extends: quickstrt-baseline\n")
    with pytest.raises(ConfigError, match="Did you mean 'quickstart-baseline'"):
        load_experiment("quickstart")
