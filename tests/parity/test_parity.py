"""Parameter parity: counts, signs, and that counting allocates nothing."""

import pytest
import torch

from flowmbpo.envs.tasks import task_info
from flowmbpo.models.agent import build_agent, build_meta_agent
from flowmbpo.parity.comparison import PartParity, parity, reference_config
from flowmbpo.parity.parameters import parameter_counts
from flowmbpo.presets.load import load_experiment
from flowmbpo.spec import EnvSpec


def spec_of(config):
    return EnvSpec((task_info(config.task.name, config.task.backend),))


def compare(a, b):
    return parity(a, b, spec_of(a), spec_of(b))


@pytest.mark.parametrize(
    ("a", "b", "gap"), [(100, 102, 2.0), (100, 98, -2.0), (200, 300, 50.0), (0, 0, 0.0), (0, 5, None), (5, 0, -100.0)]
)
def test_gap_is_relative_to_the_first_and_signed(a, b, gap):
    assert PartParity("actor", a, b).gap_percent == gap


def test_swapping_the_sides_swaps_the_sign():
    small = load_experiment("quickstart-baseline")
    large = load_experiment("quickstart-baseline", ["model.dynamics.units=[160, 160]", "actor.units=[96, 96]"])
    there, back = compare(small, large), compare(large, small)
    assert there.model.gap_percent > 2.0 > -2.0 > back.model.gap_percent
    assert there.actor.gap_percent < -2.0 < 2.0 < back.actor.gap_percent
    assert not there.within
    assert not back.within


def test_actor_alone_can_break_parity():
    base = load_experiment("quickstart-baseline")
    other = compare(base, load_experiment("quickstart-baseline", ["actor.units=[64, 64]"]))
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
    found = compare(load_experiment(baseline), load_experiment(flow))
    assert found.within
    assert found.widths_a["actor"] != found.widths_b["actor"]


def test_model_counts_encoder_dynamics_and_reward():
    config = load_experiment("quickstart-baseline", ["model.termination={units: [8]}", "model.task_dim=4"])
    counts = parameter_counts(build_meta_agent(config, spec_of(config)))
    found = compare(config, config)
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
    assert compare(reference, load_experiment("phase2-baseline")).model.gap_percent == 0.0


def test_document_is_complete():
    document = compare(load_experiment("quickstart-baseline"), load_experiment("quickstart")).to_dict()
    assert document["within"] is True
    assert document["largest_gap_percent"] == 2.0
    assert {"a", "b", "parts", "model", "actor", "solved_widths"} <= document.keys()
