"""Options that contradict each other are refused, with what to do instead."""

import pytest
from pydantic import TypeAdapter, ValidationError

from flowmbpo.config.dynamics import DynamicsConfig
from flowmbpo.config.model import ModelConfig

DYNAMICS = TypeAdapter(DynamicsConfig)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "residual", "loss_space": "logit"}, "geometry 'logit'"),
        ({"kind": "mlp", "geometry": "logit", "retraction": "project"}, "geometry 'tangent'"),
        ({"kind": "mlp", "retraction": "project"}, "does not apply to kind 'mlp'"),
        ({"kind": "gaussian", "geometry": "logit", "loss_space": "logit"}, "does not apply to kind 'gaussian'"),
        ({"kind": "gaussian", "min_logstd": 1.0, "max_logstd": 1.0}, "must lie below"),
        ({"kind": "flow", "fm_weight": 0.0}, "nothing would train the dynamics"),
        ({"kind": "flow", "mode": "generative", "endpoint_weight": 1.0}, "endpoint_weight must be 0"),
        ({"kind": "flow", "mode": "generative", "source_noise": 0.1}, "noise_std"),
        ({"kind": "flow", "mode": "generative", "fm_source_grad": "full"}, "none or path"),
        ({"kind": "flow", "mode": "generative", "geometry": "logit", "loss_space": "logit"}, "mode 'generative'"),
        ({"kind": "flow", "integrator": "dopri5"}, "integrator"),
        ({"kind": "flow", "substeps": 0}, "substeps"),
        ({"kind": "residual", "substeps": 2}, "substeps"),
        ({"kind": "transformer"}, "kind"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        DYNAMICS.validate_python(options)


def test_latents_must_fall_into_whole_groups():
    with pytest.raises(ValidationError, match="latent_dim 20 is not a multiple of simnorm_dim 8"):
        ModelConfig(latent_dim=20)


def test_every_dynamics_can_be_trained_from_either_source():
    for kind in ("mlp", "residual", "gaussian", "flow", "neural_ode"):
        for source in ("rollout", "teacher"):
            assert DYNAMICS.validate_python({"kind": kind, "source": source}).source == source


def test_a_generative_flow_starts_from_the_teacher_unless_told_otherwise():
    generative = {"kind": "flow", "mode": "generative"}
    assert DYNAMICS.validate_python({"kind": "flow"}).source == "rollout"
    assert DYNAMICS.validate_python(generative).source == "teacher"
    assert DYNAMICS.validate_python({**generative, "source": "rollout"}).source == "rollout"
    resolved = DYNAMICS.validate_python(generative)
    assert DYNAMICS.validate_python(resolved.model_dump()) == resolved
