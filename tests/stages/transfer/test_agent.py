"""Weights taken over by an agent of other tasks: the function stays, and every tensor is accounted for."""

from itertools import cycle

import pytest
import torch

from flowmbpo.errors import CheckpointError
from flowmbpo.stages.transfer.agent import transfer

DYNAMICS = {
    "mlp": {"kind": "mlp"},
    "widened": {"kind": "mlp", "widen_nfe": 3, "solved_units": [20, 21]},
    "residual": {"kind": "residual"},
    "capped": {"kind": "residual", "spectral_norm": True},
    "gaussian": {"kind": "gaussian"},
    "flow": {"kind": "flow", "geometry": "logit"},
    "fourier": {"kind": "flow", "tau_features": "fourier"},
    "generative": {"kind": "flow", "mode": "generative"},
    "neural_ode": {"kind": "neural_ode"},
}
# Widths as written: what is solved for is the subject of test_source.py.
DYNAMICS = {name: {"units": [14, 14], "parity": name == "mlp", **options} for name, options in DYNAMICS.items()}
ACTORS = {
    "gaussian": {"kind": "gaussian", "units": [11, 8]},
    "flow": {"kind": "flow", "units": [11, 8], "parity": False},
    "flow without start": {"kind": "flow", "units": [11, 8], "parity": False, "linear_start": False},
}
ROUNDING = 1e-6  # float32 sums of some 30 terms of order 1, whose order the zero columns change


def behaviour(agent, task, obs, action):
    """What the agent makes of one task's observations [B, O] and actions [B, A] of the task's own widths."""
    info = agent.spec.tasks[task]
    obs = torch.nn.functional.pad(obs, (0, agent.spec.obs_dim - info.obs_dim))
    action = torch.nn.functional.pad(action, (0, agent.spec.action_dim - info.action_dim))
    model = agent.world_model
    ids = torch.full((len(obs),), task)
    context = model.context(ids)
    with torch.no_grad():
        s = model.encode(obs, context)
        s_next = model.next(s, action, context)
        return {
            "latent": model.latent(s),
            "next": s_next,
            "reward": model.reward(model.latent(s), action, context),
            "act": agent.act(obs, ids)[:, : info.action_dim],
            "value": agent.critic(model.latent(s_next), context),
        }


def assert_same_function(source, target, names, *, tolerance):
    """Both agents on the same real numbers of each task."""
    rows = {task.plain_name: row for row, task in enumerate(source.spec.tasks)}
    ours = {task.plain_name: row for row, task in enumerate(target.spec.tasks)}
    generator = torch.Generator().manual_seed(5)
    for name in names:
        info = source.spec.tasks[rows[name]]
        obs = torch.randn(6, info.obs_dim, generator=generator)
        action = torch.rand(6, info.action_dim, generator=generator) * 2 - 1
        before, after = behaviour(source, rows[name], obs, action), behaviour(target, ours[name], obs, action)
        for what, value in before.items():
            torch.testing.assert_close(after[what], value, rtol=tolerance, atol=tolerance, msg=f"{name}: {what}")


def check_accounts(report, source, target, before):
    """Every tensor of the target has one row, every one of the source is taken once or dropped once."""
    state = target.state_dict()
    held = [name for row in report.rows if row.action != "dropped" for name in row.tensors]
    assert sorted(held) == sorted(state)
    taken = {name for row in report.rows if row.action in ("loaded", "adapted") for name in row.tensors}
    dropped = [name for row in report.rows if row.action == "dropped" for name in row.tensors]
    assert len(dropped) == len(set(dropped)) and not taken & set(dropped)
    assert set(source.state) == (taken & set(source.state)) | set(dropped)
    for row in report.rows:
        for name in row.tensors:
            if row.action == "loaded":
                assert torch.equal(state[name], source.state[name]), name
            if row.action == "reinitialised":
                assert torch.equal(state[name], before[name]), name
            if row.action == "adapted":
                assert row.detail
    assert report.total == sum(p.numel() for p in target.parameters() if p.requires_grad)
    assert 0 <= report.loaded <= report.total


every_kind = pytest.mark.parametrize("dynamics", DYNAMICS)
# A part is taken for itself: each kind of dynamics beside one of the actors in turn.
every_pair = pytest.mark.parametrize(("dynamics", "actor"), tuple(zip(DYNAMICS, cycle(ACTORS), strict=False)))


def snapshot(agent):
    return {name: tensor.clone() for name, tensor in agent.state_dict().items()}


@pytest.fixture
def take(source_of):
    """Transfer between two agents; checks the accounts and that no global draw was made."""

    def run(source, target, untrained=(), **options):
        held, before, rng = source_of(source, untrained), snapshot(target), torch.get_rng_state()
        report = transfer(held, target, **options)
        assert torch.equal(torch.get_rng_state(), rng)
        check_accounts(report, held, target, before)
        assert {name: (t.shape, t.dtype) for name, t in target.state_dict().items()} == {
            name: (t.shape, t.dtype) for name, t in before.items()
        }
        return report

    return run


@every_pair
def test_the_same_agent_is_loaded_bit_for_bit(make_agent, specs, take, dynamics, actor):
    spec = specs("walker-stand", "reacher-easy")
    sections = {"model": {"dynamics": DYNAMICS[dynamics]}, "actor": ACTORS[actor], "critic": {"target_decay": 0.9}}
    source, target = make_agent(spec, **sections), make_agent(spec, seed=1, **sections)
    report = take(source, target)
    assert {row.action for row in report.rows} == {"loaded"}
    assert report.loaded == report.total
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


@every_pair
def test_one_more_task_changes_nothing_of_the_others(make_agent, specs, take, dynamics, actor):
    sections = {"model": {"dynamics": DYNAMICS[dynamics]}, "actor": ACTORS[actor]}
    source = make_agent(specs("walker-stand", "reacher-easy"), **sections)
    target = make_agent(specs("walker-walk", "reacher-easy", "walker-stand"), seed=1, built=True, **sections)
    take(source, target)
    assert_same_function(source, target, ["walker-stand", "reacher-easy"], tolerance=0.0)


@every_pair
def test_wider_observations_and_actions_change_nothing_of_the_old_tasks(make_agent, specs, take, dynamics, actor):
    sections = {"model": {"dynamics": DYNAMICS[dynamics]}, "actor": ACTORS[actor]}
    source = make_agent(specs("walker-stand", "reacher-easy"), **sections)
    target = make_agent(specs("humanoid-stand", "walker-stand", "reacher-easy"), seed=1, built=True, **sections)
    report = take(source, target)
    assert_same_function(source, target, ["walker-stand", "reacher-easy"], tolerance=ROUNDING)
    assert report.parts("reinitialised") == ()


@every_pair
def test_a_task_of_a_set_in_its_own_agent(make_agent, specs, take, dynamics, actor):
    """Its embedding moves into the biases; observations and actions that it never had are left out."""
    sections = {"model": {"dynamics": DYNAMICS[dynamics]}, "actor": ACTORS[actor]}
    source = make_agent(specs("walker-stand", "reacher-easy"), **sections)
    with torch.no_grad():
        source.world_model.tasks.embeddings.mul_(4.0)  # beyond norm 1, where the networks see it scaled down
    alone = {**sections, "model": {**sections["model"], "task_dim": 0}}
    target = make_agent(specs("reacher-easy"), seed=1, built=True, **alone)
    report = take(source, target)
    assert_same_function(
        source, target, ["reacher-easy"], tolerance=5 * ROUNDING
    )  # one more rounding: of the folded bias
    assert report.dropped_tasks == ("walker-stand",)


@every_pair
def test_a_single_task_joins_a_set(make_agent, specs, take, dynamics, actor):
    sections = {"model": {"dynamics": DYNAMICS[dynamics]}, "actor": ACTORS[actor]}
    alone = {**sections, "model": {**sections["model"], "task_dim": 0}}
    source = make_agent(specs("reacher-easy"), **alone)
    target = make_agent(specs("walker-stand", "reacher-easy"), seed=1, built=True, **sections)
    take(source, target)
    assert_same_function(source, target, ["reacher-easy"], tolerance=ROUNDING)


def test_a_wider_embedding_leaves_the_function_as_it_was(make_agent, specs, take):
    spec = specs("walker-stand", "reacher-easy")
    source = make_agent(spec)
    with torch.no_grad():
        source.world_model.tasks.embeddings.mul_(0.3)  # below norm 1 also with the new columns
    target = make_agent(spec, seed=1, built=True, model={"task_dim": 9})
    report = take(source, target)
    assert_same_function(source, target, ["walker-stand", "reacher-easy"], tolerance=ROUNDING)
    assert report.rows[0].detail == "4 -> 9 columns"
    assert bool((target.world_model.tasks.embeddings[:, 4:] != 0).all())  # or neither they nor their weights learn


def test_several_tasks_lose_their_embedding_and_it_is_said(make_agent, specs, take):
    spec = specs("walker-stand", "reacher-easy")
    report = take(make_agent(spec), make_agent(spec, seed=1, model={"task_dim": 0}))
    assert any("task 4 -> 0 columns: 4 dropped" in line for line in report.lines())


@every_kind
def test_dynamics_of_another_kind_alone_are_to_be_distilled(make_agent, specs, take, dynamics):
    spec = specs("walker-stand")
    other = "residual" if dynamics != "residual" else "flow"
    source = make_agent(spec, model={"dynamics": DYNAMICS[dynamics]})
    target = make_agent(spec, seed=1, model={"dynamics": DYNAMICS[other]})
    report = take(source, target)
    assert report.to_distill and report.parts("reinitialised") == ("dynamics",)
    assert any(line.startswith("dynamics: ") and "to be distilled" in line for line in report.lines())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"kind": "flow"}, {"kind": "flow", "mode": "generative"}, "mode displacement -> generative"),
        ({"kind": "neural_ode"}, {"kind": "neural_ode", "tau_features": "fourier"}, "tau_features scalar -> fourier"),
        ({"kind": "residual"}, {"kind": "residual", "spectral_norm": True}, "spectral_norm False -> True"),
        ({"kind": "neural_ode"}, {"kind": "flow"}, "kind neural_ode -> flow"),
    ],
)
def test_dynamics_of_like_shapes_and_another_meaning_are_not_loaded(make_agent, specs, take, before, after, said):
    spec, widths = specs("walker-stand"), {"units": [14, 14], "parity": False}
    source = make_agent(spec, model={"dynamics": {**before, **widths}})
    report = take(source, make_agent(spec, seed=1, model={"dynamics": {**after, **widths}}))
    assert [row.detail for row in report.rows if row.action == "reinitialised"] == [f"{said}, to be distilled"]


@pytest.mark.parametrize(("section", "parts"), [("actor", {"actor"}), ("critic", {"critic"}), ("model", None)])
def test_networks_of_another_activation_are_not_loaded(make_agent, specs, take, section, parts):
    spec = specs("walker-stand")
    report = take(make_agent(spec), make_agent(spec, seed=1, **{section: {"activation": "silu"}}))
    assert set(report.parts("reinitialised")) >= (parts or {"encoder", "dynamics", "reward"})
    assert any("activation mish -> silu" in row.detail for row in report.rows)


def test_a_flow_policy_without_its_linear_start_is_another(make_agent, specs, take):
    spec = specs("walker-stand")
    source, target = (make_agent(spec, seed=seed, actor=ACTORS[name]) for seed, name in enumerate(tuple(ACTORS)[1:]))
    report = take(source, target)
    assert [row.detail for row in report.rows if row.action == "reinitialised"] == ["linear_start True -> False"]


def test_another_geometry_leaves_encoder_and_heads_as_they_were(make_agent, specs, take):
    spec = specs("walker-stand")
    flow = DYNAMICS["flow"]
    source = make_agent(spec, model={"dynamics": flow})
    target = make_agent(spec, seed=1, model={"dynamics": {**flow, "geometry": "tangent"}})
    report = take(source, target)
    assert report.parts("reinitialised") == ("dynamics",)
    (row,) = [row for row in report.rows if row.action == "reinitialised"]
    assert row.detail == "geometry logit -> tangent, to be distilled"
    obs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(5, dtype=torch.long)
    # Softmax of centred logits against softmax of the logits: rounding alone.
    torch.testing.assert_close(target.act(obs, ids), source.act(obs, ids), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latent_dim": 24}, "latent_dim 16 -> 24"),
        ({"simnorm_dim": 4}, "simnorm_dim 8 -> 4"),
        ({"encoder": {"kind": "mlp", "units": [12]}}, "units [12, 10] -> [12]"),
    ],
)
def test_another_latent_leaves_everything_that_reads_it_untouched(make_agent, specs, take, change, said):
    spec = specs("walker-stand")
    target = make_agent(spec, seed=1, model=change, built=True)
    report = take(make_agent(spec), target)
    built = ("encoder", "dynamics", "reward", "actor", "critic", "return_scale")
    assert report.parts("reinitialised") == built
    assert report.parts("loaded") == ("task_embedding", "reward_normalizer")
    assert not report.to_distill
    assert all(said in row.detail for row in report.rows if row.action == "reinitialised")


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"model": {"reward": {"kind": "two_hot", "units": [9]}}}, ("reward", "return_scale")),
        ({"model": {"reward": {"kind": "scalar", "units": [10]}}}, ("reward", "return_scale")),
        ({"actor": {"kind": "flow", "units": [11, 8]}}, ("actor",)),
        ({"actor": {"kind": "gaussian", "units": [11, 9]}}, ("actor",)),
        ({"critic": {"units": [8]}}, ("critic", "return_scale")),
        ({"critic": {"ensemble": 2}}, ("critic", "return_scale")),
        ({"normalization": "none"}, ("reward", "critic", "reward_normalizer", "return_scale")),
        ({"model": {"termination": {"units": [5]}}}, ("termination",)),
    ],
)
def test_parts_that_differ_start_anew_alone(make_agent, specs, take, sections, parts):
    spec = specs("walker-stand")
    report = take(make_agent(spec), make_agent(spec, seed=1, built=True, **sections))
    assert report.parts("reinitialised") == parts


def test_a_critic_of_symlog_rewards_is_no_critic_of_rewards(make_agent, specs, take):
    spec = specs("walker-stand")
    heads = [{"model": {"reward": {"kind": "two_hot", "units": [9], "decode": d}}} for d in ("symlog", "symexp")]
    report = take(make_agent(spec, **heads[0]), make_agent(spec, seed=1, **heads[1]))
    assert report.parts("reinitialised") == ("critic", "return_scale")
    assert any("symlog -> their own units" in line for line in report.lines())


def test_a_target_network_that_the_source_lacks_is_its_critic(make_agent, specs, take):
    source = make_agent(specs("walker-stand", "reacher-easy"))
    target = make_agent(specs("walker-stand"), seed=1, model={"task_dim": 0}, critic={"target_decay": 0.9})
    take(source, target)
    for name, tensor in target.critic.state_dict().items():
        assert torch.equal(target.target_critic.state_dict()[name], tensor), name


def test_a_target_network_that_nobody_needs_is_dropped(make_agent, specs, take):
    spec = specs("walker-stand")
    report = take(make_agent(spec, critic={"target_decay": 0.9}), make_agent(spec, seed=1))
    assert "target_critic: 6 tensors dropped (this agent has none)" in report.lines()


def test_models_whose_state_is_the_observation(make_agent, specs, take):
    """No encoder to load; other observations are another state."""
    euclidean = {
        "encoder": {"kind": "identity"},
        "dynamics": {"kind": "residual", "units": [14], "geometry": "euclidean"},
    }
    agents = {
        name: make_agent(specs(name), seed=seed, model={**euclidean, "latent_dim": width})
        for seed, (name, width) in enumerate((("walker-stand", 6), ("walker-run", 6), ("reacher-easy", 4)))
    }
    report = take(agents["walker-stand"], agents["walker-run"])
    assert report.parts("reinitialised") == () and report.parts("loaded")[1:3] == ("dynamics", "reward")
    report = take(agents["walker-stand"], agents["reacher-easy"])
    assert report.parts("reinitialised") == ("dynamics", "reward", "actor", "critic", "return_scale")
    assert "critic: 6 tensors reinitialised (the latent that it reads is another: latent_dim 6 -> 4)" in report.lines()


def test_hidden_widths_that_differ_are_named(make_agent, specs, take):
    spec = specs("walker-stand")
    target = make_agent(spec, seed=1, model={"dynamics": {"kind": "mlp", "units": [14, 15]}})
    report = take(make_agent(spec), target)
    assert report.to_distill
    (line,) = [line for line in report.lines() if "hidden widths" in line]
    assert line.startswith("dynamics: 12 tensors reinitialised (hidden widths differ: network.1.linear.weight [14, 14]")


def test_untrained_parts_are_left_as_built(make_agent, specs, take):
    spec = specs("walker-stand")
    report = take(make_agent(spec), make_agent(spec, seed=1, built=True), untrained=("actor", "critic"))
    assert report.parts("reinitialised") == ("actor", "critic", "return_scale")
    assert "actor: 11 tensors reinitialised (never trained in the source)" in report.lines()
    blank = take(make_agent(spec), make_agent(spec, seed=1, built=True), untrained=("dynamics",))
    assert blank.parts("reinitialised") == ("dynamics",) and not blank.to_distill


def test_an_unknown_untrained_part_is_refused(make_agent, specs, take):
    spec = specs("walker-stand")
    with pytest.raises(CheckpointError, match=r"policy.*task_embedding, encoder"):
        take(make_agent(spec), make_agent(spec), untrained=("policy",))


def test_weights_that_do_not_fit_their_config_are_refused(make_agent, specs, source_of):
    agent = make_agent(specs("walker-stand"))
    source = source_of(agent)
    source.state["actor.logstd"] = torch.zeros(5)
    before = snapshot(agent)
    with pytest.raises(CheckpointError, match=r"own config .*actor\.logstd is \(5,\), needed \(3,\)"):
        transfer(source, agent)
    assert all(torch.equal(tensor, before[name]) for name, tensor in agent.state_dict().items())


def test_weights_that_are_no_numbers_are_refused(make_agent, specs, source_of):
    agent = make_agent(specs("walker-stand"))
    source = source_of(agent)
    source.state["critic.network.weights.1"][0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"critic\.network\.weights\.1 holds values that are not finite"):
        transfer(source, agent)


def test_the_report_is_plain(make_agent, specs, take):
    report = take(make_agent(specs("walker-stand")), make_agent(specs("walker-stand", "walker-run"), seed=1))
    told = report.to_dict()
    assert told["tasks"][1] == {"task": "walker-run", "source": "walker-stand", "how": "nearest"}
    assert "task walker-run: new, starts as walker-stand (nearest)" in report.lines()
    assert set(told["rows"][0]) == {"part", "group", "action", "detail", "tensors", "parameters"}


def test_statistics_of_observations_and_the_decoder_go_with_the_encoder(make_agent, specs, take):
    options = {"encoder": {"kind": "mlp", "units": [14], "normalize_steps": 8}, "decoder": {"units": [9]}}
    source = make_agent(specs("walker-stand"), model=options)
    source.world_model.observe(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))
    target = make_agent(specs("walker-run"), seed=1, model=options)
    report = take(source, target)
    assert report.parts("reinitialised") == () and "decoder" in report.parts("loaded")
    context = target.world_model.context(torch.zeros(4, dtype=torch.long))
    obs = torch.randn(4, 6)
    assert torch.equal(target.world_model.normalized(obs), source.world_model.normalized(obs))
    z = target.world_model.latent(target.world_model.encode(obs, context))
    assert torch.equal(target.world_model.decode(z, context), source.world_model.decode(z, context))
    plain = make_agent(specs("walker-run"), seed=1, model={"encoder": {"kind": "mlp", "units": [14]}})
    assert "encoder" in take(source, plain).parts("reinitialised")
