"""What only a whole experiment shows to be impossible, refused before anything is built or written."""

from __future__ import annotations

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.assignment import check_copies
from flowmbpo.errors import ConfigError
from flowmbpo.spec import EnvSpec

DATA, WEIGHTS = "--data DIR", "--from CKPT"


def still_needed(config: ExperimentConfig) -> list[str]:
    """Options that a run of this config cannot do without and does not have."""
    training = config.training
    data = config.data is None and (training.mode == "offline" or training.pretrain_steps > 0)
    weights = config.initial is None and training.learn == "policy"
    return [DATA] * data + [WEIGHTS] * weights


def check_lanes(config: ExperimentConfig, spec: EnvSpec) -> None:
    """Raises ConfigError where a task of the set would have no copy to be stepped in."""
    if config.training.mode == "online" and config.task.only is None:
        check_copies(spec, config.task.num_envs)


def check_config(config: ExperimentConfig, spec: EnvSpec) -> None:
    """Refuse what only a whole experiment shows. Raises ConfigError."""
    check_lanes(config, spec)
    training, needed = config.training, still_needed(config)
    if DATA in needed and training.mode == "offline":
        raise ConfigError(
            f"training.mode 'offline' of {config.name} learns from a dataset, and none is named: add {DATA} "
            "(see `flowmbpo data collect --help` and `flowmbpo data where`)"
        )
    if DATA in needed:
        raise ConfigError(
            f"training.pretrain_steps {training.pretrain_steps} of {config.name} needs a dataset: add {DATA}, "
            "or set it to 0"
        )
    if WEIGHTS in needed:
        raise ConfigError(
            f"training.learn 'policy' of {config.name} keeps the world model as it is, and none is given: "
            f"name a trained one with {WEIGHTS}"
        )
