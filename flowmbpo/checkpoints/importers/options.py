"""The config of an imported model: its widths from the shapes, its training PWM's published values."""

from __future__ import annotations

from typing import Any

from flowmbpo.checkpoints.importers.foreign import BIN_RANGE, GROUP, ForeignModel, hidden_units
from flowmbpo.checkpoints.importers.sizes import size_class
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.task import TaskConfig
from flowmbpo.presets.load import experiment_from_dict

PHASE = "stage-a"


def imported_config(model: ForeignModel, task: TaskConfig, name: str) -> ExperimentConfig:
    """A complete config that builds the imported agent. Raises ConfigError where the shapes allow none."""
    document = {
        "name": name,
        "phase": PHASE,
        "description": f"Imported from a {model.format} file.",
        "task": task.model_dump(mode="json"),
        "model": _model(model),
        "actor": _actor(model),
        "critic": _critic(model),
        "training": _training(model),
    }
    return experiment_from_dict(document, f"the shapes of this {model.format} file")


def config_name(model: ForeignModel, task: TaskConfig) -> str:
    """`tdmpc2-mt30-48m`: format, task or set, size where it is a published one."""
    size = size_class(model)
    return "-".join(part for part in (model.format, task.set or task.name, size and size.lower()) if part)


def _model(model: ForeignModel) -> dict[str, Any]:
    options: dict[str, Any] = {
        "latent_dim": model.latent_dim,
        "simnorm_dim": GROUP,
        "task_dim": model.task_dim,
        "encoder": {"kind": "mlp", "units": hidden_units(model.encoder)},
        "dynamics": {"kind": "mlp", "units": hidden_units(model.dynamics), "geometry": "tangent"},
        "reward": _reward(model),
    }
    if model.termination is not None:
        options["termination"] = {"units": hidden_units(model.termination)}
    return options


def _reward(model: ForeignModel) -> dict[str, Any]:
    units = hidden_units(model.reward)
    if model.bins == 1:
        return {"kind": "scalar", "units": units}
    # PWM's actor and critic are in units of the reward without its symexp.
    decode = "symlog" if model.pwm is not None else "symexp"
    low, high = BIN_RANGE
    return {"kind": "two_hot", "units": units, "bins": model.bins, "low": low, "high": high, "decode": decode}


def _actor(model: ForeignModel) -> dict[str, Any]:
    published = {"kind": "gaussian", "init_logstd": -1.0, "min_logstd": -1.427}
    known = None if model.pwm is None else model.pwm.actor
    return published if known is None else published | {"units": hidden_units(known)}


def _critic(model: ForeignModel) -> dict[str, Any]:
    if model.pwm is None:
        return {"units": [400, 200], "ensemble": 3, "reduction": "min"}
    critic = model.pwm.critic
    return {"units": hidden_units(critic), "ensemble": critic[0].weight.shape[0], "reduction": "min"}


def _training(model: ForeignModel) -> dict[str, Any]:
    """PWM's published values are the defaults; these are what an imported model needs besides."""
    standardised = model.pwm is not None and model.pwm.reward is not None
    return {
        "gamma": 0.99 if model.pwm is not None else "task",
        "actor_input_gradient": "detached",
        "reward_normalization": "standardize" if standardised else "none",
    }
