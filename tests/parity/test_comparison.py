"""A strict comparison admits the compared parts and nothing else; counting allocates nothing."""

from functools import cache

import pytest
import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.tasks import task_info
from flowmbpo.errors import ConfigError
from flowmbpo.models.agent import build_agent, build_meta_agent
from flowmbpo.parity.comparison import INTENDED, ParityError, PartParity, compare, parity, reference_config
from flowmbpo.parity.flops import estimate_cost, parameter_counts
from flowmbpo.presets.load import load_experiment
from flowmbpo.presets.schema import dotted_keys
from flowmbpo.spec import EnvSpec


def spec_of(config):
    return EnvSpec((task_info(config.task.name, config.task.backend),))


@cache
def compared(a, b, changes=(), allowed=()):
    left, right = load_experiment(a), load_experiment(b, changes)
    return compare(left, right, spec_of(left), spec_of(right), allowed)


def test_arms_of_one_family_are_comparable():
    found = compared("mini-cartpole-mlp", "mini-cartpole-fullflow")
    assert found.comparable and found.unintended == ()
    keys = {difference.key for difference in found.intended}
    assert {"name", "description", "model.dynamics.kind", "model.dynamics.substeps", "actor.kind"} <= keys
    found.check()


def test_every_difference_is_either_intended_or_not():
    found = compared("quickstart", "mini-cartpole-mlp")
    keys = [difference.key for difference in (*found.intended, *found.unintended)]
    assert len(keys) == len(set(keys))
    unintended = {difference.key for difference in found.unintended}
    assert unintended == {"task.name", "training.epochs"}


def test_check_names_the_key_its_values_and_what_to_do():
    changes = ("training.horizon=4", "training.gamma=0.9")
    with pytest.raises(ParityError) as caught:
        compared("quickstart-baseline", "quickstart", changes).check()
    text = str(caught.value)
    assert "training.horizon: 8 -> 4" in text and "training.gamma: 0.99 -> 0.9" in text and "--allow KEY" in text
    assert "parameters" not in text and caught.value.exit_code == 1


@pytest.mark.parametrize("allowed", [("training.horizon", "training.gamma"), ("training",)])
def test_allowed_keys_and_sections_are_admitted(allowed):
    found = compared("quickstart-baseline", "quickstart", ("training.horizon=4", "training.gamma=0.9"), allowed)
    found.check()
    assert {"training.horizon", "training.gamma"} <= {difference.key for difference in found.intended}


def test_allowing_one_key_does_not_admit_another_of_its_beginning():
    found = compared("quickstart-baseline", "quickstart", ("training.reward_weight=1",), ("training.rho",))
    assert [difference.key for difference in found.unintended] == ["training.reward_weight"]


def test_seed_and_evaluation_must_be_equal():
    found = compared("quickstart-baseline", "quickstart", ("seed=3", "evaluation.episodes=3"))
    assert {difference.key for difference in found.unintended} == {"seed", "evaluation.episodes"}


def test_arms_share_their_activation():
    found = compared("quickstart-baseline", "quickstart", ("actor.activation=silu",))
    assert {difference.key for difference in found.unintended} == {"actor.activation"}
    assert compared("quickstart-baseline", "quickstart", ("actor.activation=silu",), ("actor.activation",)).comparable


def test_how_a_run_is_watched_and_stored_may_differ():
    changes = ("checkpoint.keep=3", "tracking.every=5", "compute.threads=2", "device=cpu")
    assert compared("quickstart-baseline", "quickstart", changes).comparable


def test_a_gap_in_size_fails_alone():
    found = compared("quickstart-baseline", "quickstart", ("model.dynamics.units=[160, 160]",))
    assert found.unintended == () and not found.comparable
    with pytest.raises(ParityError, match=r"model parameters: [\d,]+ -> [\d,]+, \+\d+\.\d% \(at most 2%\)") as caught:
        found.check()
    assert "actor parameters" not in str(caught.value)


def test_widened_network_has_flops_of_the_flow():
    found = compared("quickstart", "quickstart-widemlp")
    ratio = found.to_dict()["compute"]["ratio"]
    assert ratio["nfe"] == 0.5  # one evaluation in place of two
    assert ratio["flops"]["actor_update"] == pytest.approx(1.0, abs=0.02)  # dynamics within 1%, the rest the same
    assert not found.comparable and found.unintended == ()


def test_document_adds_costs_and_differences_to_parity():
    found = compared("quickstart-baseline", "quickstart")
    document = found.to_dict()
    assert found.sizes.to_dict().items() <= document.items()
    config = load_experiment("quickstart")
    assert document["compute"]["b"] == estimate_cost(config, spec_of(config)).to_dict()
    compute = document["compute"]
    assert compute["ratio"]["compute_index"] == compute["b"]["compute_index"] / compute["a"]["compute_index"]
    assert compute["ratio"]["flops"].keys() == compute["a"]["flops"].keys()
    assert document["comparable"] is True and document["allowed"] == []
    rows = {row["key"]: (row["a"], row["b"]) for row in document["differences"]["intended"]}
    assert rows["model.dynamics.kind"] == ("mlp", "flow")


@pytest.mark.parametrize(
    ("key", "hint"), [("training.horizn", "Did you mean 'training.horizon'?"), ("zzz", "presets show NAME")]
)
def test_an_unknown_allowed_key_is_refused(key, hint):
    config = load_experiment("quickstart")
    with pytest.raises(ConfigError) as caught:
        compare(config, config, spec_of(config), spec_of(config), [key])
    assert f"--allow {key}" in str(caught.value) and hint in str(caught.value)


def test_intended_keys_are_keys_of_the_schema():
    assert set(INTENDED) <= set(dotted_keys(ExperimentConfig))


def sizes(a, b):
    return parity(*((each.name, build_meta_agent(each, spec_of(each))) for each in (a, b)))


@pytest.mark.parametrize(
    ("a", "b", "gap"), [(100, 102, 2.0), (100, 98, -2.0), (200, 300, 50.0), (0, 0, 0.0), (0, 5, None), (5, 0, -100.0)]
)
def test_gap_is_relative_to_the_first_and_signed(a, b, gap):
    assert PartParity("actor", a, b).gap_percent == gap


def test_swapping_the_sides_swaps_the_sign():
    small = load_experiment("quickstart-baseline")
    large = load_experiment("quickstart-baseline", ["model.dynamics.units=[160, 160]", "actor.units=[96, 96]"])
    there, back = sizes(small, large), sizes(large, small)
    assert there.model.gap_percent > 2.0 > -2.0 > back.model.gap_percent
    assert there.actor.gap_percent < -2.0 < 2.0 < back.actor.gap_percent
    assert not there.within
    assert not back.within


def test_actor_alone_can_break_parity():
    base = load_experiment("quickstart-baseline")
    other = sizes(base, load_experiment("quickstart-baseline", ["actor.units=[64, 64]"]))
    assert other.model.gap_percent == 0.0
    assert not other.within


@pytest.mark.parametrize("flow", ["quickstart", "mini-cartpole-fullflow", "phase2-fullflow", "phase2-fullflow-48m"])
def test_flow_presets_have_the_size_of_their_baseline(flow):
    baseline = {
        "quickstart": "quickstart-baseline",
        "mini-cartpole-fullflow": "mini-cartpole-mlp",
        "phase2-fullflow": "phase2-baseline",
        "phase2-fullflow-48m": "phase2-baseline-48m",
    }[flow]
    found = sizes(load_experiment(baseline), load_experiment(flow))
    assert found.within
    assert found.solved_widths["a"]["actor"] != found.solved_widths["b"]["actor"]


def test_model_counts_encoder_dynamics_and_reward():
    config = load_experiment("quickstart-baseline", ["model.termination={units: [8]}", "model.task_dim=4"])
    counts = parameter_counts(build_meta_agent(config, spec_of(config)))
    found = sizes(config, config)
    assert found.model.a == counts["encoder"] + counts["dynamics"] + counts["reward"]
    assert {part.part for part in found.parts} == set(counts)
    assert counts["task_embedding"] == 4
    assert counts["termination"] > 0


def test_counts_add_up_to_the_whole_agent():
    config = load_experiment("quickstart", ["model.termination={units: [8]}", "critic.target_decay=0.9"])
    agent = build_agent(config, spec_of(config))
    assert sum(parameter_counts(agent).values()) == sum(p.numel() for p in agent.parameters() if p.requires_grad)


@pytest.mark.parametrize("preset", ["quickstart", "phase2-fullflow-48m", "mini-cartpole-genflow"])
def test_counting_allocates_no_weights_and_draws_no_numbers(preset):
    config = load_experiment(preset)
    before = torch.get_rng_state()
    agent = build_meta_agent(config, spec_of(config))
    assert all(tensor.is_meta for tensor in agent.parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_reference_is_the_mlp_and_gaussian_of_the_written_widths():
    config = load_experiment("phase2-fullflow")
    reference = reference_config(config)
    assert (reference.model.dynamics.kind, reference.actor.kind) == ("mlp", "gaussian")
    assert reference.model.dynamics.units == config.model.dynamics.units
    assert reference.model.encoder == config.model.encoder
    assert sizes(reference, load_experiment("phase2-baseline")).model.gap_percent == 0.0


def test_document_is_complete():
    document = sizes(load_experiment("quickstart-baseline"), load_experiment("quickstart")).to_dict()
    assert document["within"] is True
    assert document["largest_gap_percent"] == 2.0
    assert {"a", "b", "parts", "model", "actor", "solved_widths"} <= document.keys()
