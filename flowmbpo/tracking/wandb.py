"""Weights & Biases: the only module that imports wandb, and only when its sink is built.

Without a key in the environment or netrc the sink is offline, which means no network attempt at all: that
takes two environment variables set before the import (`mode="offline"` alone still reports home).
"""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flowmbpo.config.actors import FlowActorConfig
from flowmbpo.config.dynamics import FlowDynamicsConfig, NeuralODEDynamicsConfig
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.errors import ConfigError
from flowmbpo.tracking.sink import MetricSink, Row, finite_numbers

if TYPE_CHECKING:
    import wandb

_HOST = "api.wandb.ai"
_EXIT_CODES = {"done": 0, "interrupted": 75}


def wandb_group(config: ExperimentConfig, env_name: str) -> str:
    """`{phase}_{env}_{config}`: the runs of one group differ in their seed."""
    return f"{config.phase}_{env_name}_{config.name}"


def wandb_name(config: ExperimentConfig) -> str:
    """`{config}_seed{seed}_H{H}_K{K}_Kpol{Kpol}`; K and Kpol only where there are substeps."""
    parts = [config.name, f"seed{config.seed}", f"H{config.training.horizon}"]
    if isinstance(config.model.dynamics, FlowDynamicsConfig | NeuralODEDynamicsConfig):
        parts.append(f"K{config.model.dynamics.substeps}")
    if isinstance(config.actor, FlowActorConfig):
        parts.append(f"Kpol{config.actor.substeps}")
    return "_".join(parts)


def wandb_key_present() -> bool:
    """Whether a key is set in the environment or in netrc (`wandb login`); it is neither kept nor shown."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(file).authenticators(_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def choose_mode() -> str:
    """The user's WANDB_MODE; else online with a key in the environment or netrc, offline without."""
    return os.environ.get("WANDB_MODE") or ("online" if wandb_key_present() else "offline")


class WandbSink(MetricSink):
    """One W&B run in `folder`; the same `run_id` continues it. The key is read by wandb alone.

    Raises ConfigError when wandb is not installed or refuses the run.
    """

    def __init__(self, config: ExperimentConfig, env_name: str, run_id: str, folder: Path) -> None:
        self.mode = choose_mode()
        if self.mode == "offline":
            os.environ["WANDB_MODE"] = "offline"
            os.environ["WANDB_ERROR_REPORTING"] = "false"
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "tracking.sinks: 'wandb' is not installed. Install it with `pip install wandb` or drop it."
            ) from error
        try:
            self._run: wandb.Run = wandb.init(
                project=config.tracking.project,
                group=wandb_group(config, env_name),
                name=wandb_name(config),
                id=run_id,
                resume="allow",
                dir=str(folder),
                config=config.model_dump(mode="json"),
                # stdout belongs to the program's answer, the terminal to the console sink
                settings=wandb.Settings(console="off", silent=True, mode=self.mode),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"tracking.sinks: wandb refused to start ({error}). Check WANDB_API_KEY, set WANDB_MODE=offline, "
                "or use --track none."
            ) from error
        self._run.define_metric("*", step_metric="agent_steps")

    def log(self, row: Row) -> None:
        self._run.log(finite_numbers(row), step=int(row["epoch"]))

    def close(self, status: str) -> None:
        self._run.finish(exit_code=_EXIT_CODES.get(status, 1))
