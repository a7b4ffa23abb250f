"""Widths kept where only solving for parity would change them, and the teacher built with them."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from flowmbpo.config.actors import ActorConfig
from flowmbpo.config.dynamics import DynamicsConfig
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.stages.distill import teacher_model
from flowmbpo.stages.transfer.agent import transfer
from flowmbpo.stages.transfer.source import Architecture, adopt_widths

SOLVED = {"dynamics": {"kind": "flow", "mode": "generative", "units": [24, 24]}}
FLOW_ACTOR = {"kind": "flow", "units": [24, 12]}


def rebuilt(agent, model, actor, spec):
    held = Architecture.of(agent)
    return Architecture(model, actor, held.critic, spec, held.reward_normalization).build()


def sections(agent):
    held = Architecture.of(agent)
    return held.model, held.actor


def test_a_task_of_a_set_keeps_the_set_s_widths(make_agent, specs, source_of):
    source = make_agent(specs("humanoid-stand", "reacher-easy"), model=SOLVED, actor=FLOW_ACTOR)
    alone = make_agent(specs("reacher-easy"), model={**SOLVED, "task_dim": 0}, actor=FLOW_ACTOR, seed=1)
    assert alone.world_model.dynamics.hidden_units != source.world_model.dynamics.hidden_units
    assert alone.actor.hidden_units != source.actor.hidden_units
    model, actor = adopt_widths(*sections(alone), alone.spec, Architecture.of(source))
    target = rebuilt(alone, model, actor, alone.spec)
    assert target.world_model.dynamics.hidden_units == source.world_model.dynamics.hidden_units
    assert target.actor.hidden_units == source.actor.hidden_units
    assert transfer(source_of(source), target).parts("reinitialised") == ()


def test_equal_widths_are_left_to_be_solved(make_agent, specs, source_of):
    agent = make_agent(specs("walker-stand", "walker-walk"), model=SOLVED, actor=FLOW_ACTOR)
    model, actor = adopt_widths(*sections(agent), agent.spec, Architecture.of(agent))
    assert model.dynamics.solved_units is None and actor.solved_units is None


def test_widths_are_handed_on_over_two_stages(make_agent, specs, source_of):
    first = make_agent(specs("humanoid-stand", "reacher-easy"), model=SOLVED, actor=FLOW_ACTOR)
    built = []
    held = first
    for spec in (specs("walker-stand", "reacher-easy"), specs("reacher-easy")):
        model, actor = adopt_widths(*sections(held), spec, Architecture.of(held))
        held = rebuilt(held, model, actor, spec)
        built.append((held.world_model.dynamics.hidden_units, held.actor.hidden_units))
    assert built == 2 * [(first.world_model.dynamics.hidden_units, first.actor.hidden_units)]


@pytest.mark.parametrize(
    "change",
    [
        {"dynamics": {"kind": "flow", "mode": "generative", "units": [20, 20]}},
        {"dynamics": {"kind": "residual", "units": [24, 24]}},
        {"dynamics": {"kind": "flow", "mode": "generative", "units": [24, 24], "parity": False}},
        {**SOLVED, "latent_dim": 24},
    ],
)
def test_what_was_asked_for_is_not_overruled(make_agent, specs, source_of, change):
    """Also widths that an earlier stage left in the section go."""
    source = make_agent(specs("humanoid-stand", "reacher-easy"), model=SOLVED)
    asked = make_agent(specs("reacher-easy"), model=change, seed=1)
    model, _ = sections(asked)
    stale = model.model_copy(update={"dynamics": model.dynamics.model_copy(update={"solved_units": (5, 5)})})
    adopted, _ = adopt_widths(stale, asked.actor.config, asked.spec, Architecture.of(source))
    assert adopted == model


def test_solved_units_are_built(specs):
    dynamics = TypeAdapter(DynamicsConfig).validate_python({**SOLVED["dynamics"], "solved_units": [13, 17]})
    model = ModelConfig(latent_dim=16, task_dim=4, dynamics=dynamics)
    actor = TypeAdapter(ActorConfig).validate_python({**FLOW_ACTOR, "solved_units": [5, 6]})
    with torch.device("meta"):
        held = Architecture(model, actor, CriticConfig(), specs("walker-stand"), "scale").build()
    assert held.world_model.dynamics.hidden_units == (13, 17)
    assert held.actor.hidden_units == (5, 6)


@pytest.mark.parametrize(
    ("adapter", "options", "said"),
    [
        (DynamicsConfig, {"kind": "mlp", "solved_units": [512, 512]}, "none are: they are built as written"),
        (DynamicsConfig, {"kind": "flow", "parity": False, "solved_units": [512, 512]}, "built as written"),
        (DynamicsConfig, {"kind": "flow", "solved_units": [512]}, "1 layers and units .* has 2"),
        (ActorConfig, {"kind": "flow", "parity": False, "solved_units": [4, 2, 1]}, "built as written"),
        (ActorConfig, {"kind": "flow", "solved_units": [4, 2]}, "2 layers and units .* has 3"),
    ],
)
def test_solved_units_that_stand_for_nothing_are_refused(adapter, options, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(adapter).validate_python(options)


@pytest.mark.parametrize("kind", ["mlp", "flow", "gaussian"])
def test_the_teacher_moves_as_the_source_does(make_agent, specs, source_of, kind):
    source = make_agent(specs("humanoid-stand", "reacher-easy"), model={"dynamics": {"kind": kind, "units": [24, 24]}})
    other = {"dynamics": {"kind": "residual", "units": [24, 24]}, "task_dim": 0}
    target = make_agent(specs("reacher-easy"), seed=1, model=other)
    rng = torch.get_rng_state()
    teacher = teacher_model(source_of(source), target)
    assert torch.equal(torch.get_rng_state(), rng)
    transfer(source_of(source), target)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(5, 4, generator=generator), torch.rand(5, 2, generator=generator)
    wide = [torch.nn.functional.pad(rows, (0, extra)) for rows, extra in ((obs, 5), (action, 3))]
    there, here = source.world_model.context(torch.ones(5, dtype=torch.long)), teacher.context(torch.zeros(5).long())
    with torch.no_grad():
        expected = source.world_model.next(source.world_model.encode(wide[0], there), wide[1], there)
        moved = teacher.next(teacher.encode(obs, here), action, here)
        encoded = target.world_model.encode(obs, here)
    torch.testing.assert_close(moved, expected, rtol=0, atol=5e-6)  # rounding of the folded embedding
    assert torch.equal(teacher.encode(obs, here), encoded)
