"""Who acts when a checkpoint is evaluated: its policy, or a planner in its world model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.checkpoints.load import Loaded
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.model import TwoHotRewardConfig
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.errors import CheckpointError
from flowmbpo.evaluation.episodes import OnStart
from flowmbpo.models.agent import Agent
from flowmbpo.planning.mppi import MPPIPlanner
from flowmbpo.planning.q_ensemble import imported_objective
from flowmbpo.planning.values import Objective, critic_objective
from flowmbpo.stages.initial import untrained_parts


class Acting:
    """Actions at real observations, on the agent's device. `on_start` is None where nothing is remembered."""

    on_start: OnStart | None = None

    def __init__(self, agent: Agent, config: ExperimentConfig, device: torch.device, seed: int) -> None:
        self._agent = agent
        self._device = device
        self._generator = None if config.evaluation.deterministic else torch.Generator(device).manual_seed(seed)

    def act(self, obs: Float[Tensor, "N O"], task: Int[Tensor, " N"]) -> Float[Tensor, "N A"]:
        """The policy's actions: deterministic, or seeded samples where the config evaluates those."""
        return self._agent.act(obs.to(self._device), task.to(self._device), self._generator)

    def record(self) -> dict[str, Any]:
        """What results say of it, JSON-able: kind, and for a planner its values, settings and counts."""
        return {"kind": "policy"}


class PlannedActing(Acting):
    """MPPI on the agent's own critic, or on the Q functions and the prior of the file that was imported."""

    def __init__(
        self,
        agent: Agent,
        config: ExperimentConfig,
        device: torch.device,
        seed: int,
        *,
        settings: MPPIConfig,
        objective: Objective,
    ) -> None:
        super().__init__(agent, config, device, seed)
        self._action_dim = agent.spec.action_dim
        self.planner = MPPIPlanner(objective, settings, torch.Generator(device).manual_seed(seed))
        self.on_start = self.planner.start

    def act(self, obs: Float[Tensor, "N O"], task: Int[Tensor, " N"]) -> Float[Tensor, "N A"]:
        """The first actions of fresh plans."""
        return self.planner.act(obs.to(self._device), task.to(self._device))

    def record(self) -> dict[str, Any]:
        """Kind, whose values, every setting, and how many plans and sequences of which kind there were so far."""
        settings = self.planner.config
        return {
            "kind": "mppi",
            "values": self.planner.objective.name,
            "settings": settings.model_dump() | {"iterations": settings.iterations_for(self._action_dim)},
            "counts": asdict(self.planner.counts),
        }


def make_acting(
    agent: Agent,
    loaded: Loaded,
    config: ExperimentConfig,
    device: torch.device,
    seed: int,
    settings: MPPIConfig | None = None,
) -> Acting:
    """Who acts, all draws decided by `seed`: the policy, or with `settings` MPPI.

    Raises CheckpointError where the checkpoint's planner does not fit its agent.
    """
    if settings is None:
        return Acting(agent, config, device, seed)
    saved = loaded.payload.get("planner")
    objective: Objective
    if saved is None:
        gamma = config.training.gamma
        objective = critic_objective(agent, None if gamma == "task" else gamma)
    else:
        objective = imported_objective(agent, saved, str(loaded.path))
    return PlannedActing(agent, config, device, seed, settings=settings, objective=objective)


def planning_config(config: ExperimentConfig, payload: Mapping[str, Any]) -> ExperimentConfig:
    """The config to build the agent of, where it plans: Q functions count real rewards, never their symlog."""
    reward = config.model.reward
    if payload.get("planner") is None or not isinstance(reward, TwoHotRewardConfig):
        return config
    model = config.model.model_copy(update={"reward": reward.model_copy(update={"decode": "symexp"})})
    return config.model_copy(update={"model": model})


def check_trained(loaded: Loaded, kind: Literal["policy", "mppi"]) -> None:
    """Refuse (CheckpointError) a checkpoint whose weights for acting so were never trained, and say what can be done.

    An imported world model brings no policy and no state values of ours along, and a run may train a model alone.
    """
    untrained = untrained_parts(loaded.payload)
    imported = "imported" in loaded.payload
    plannable = loaded.payload.get("planner") is not None or "critic" not in untrained
    ways = [
        f"train one in its world model: flowmbpo train --from {loaded.path} --data DIR",
        "name a checkpoint of a later stage, which has a policy",
    ]
    alone = "comes of a run that trained its world model alone"
    if kind == "policy" and "actor" in untrained:
        why = "was imported without a policy" if imported else alone
        ways = (["plan instead (--planner mppi)"] if plannable else []) + ways
        raise CheckpointError(f"{loaded.path}: {why}; its actor is untrained. {_sentence(ways)}")
    if kind == "mppi" and not plannable:
        why = "was imported without Q functions" if imported else alone
        again = "import the file again with its planner (flowmbpo checkpoint import --keep-planner)"
        ways = ([again] if imported else []) + ways
        raise CheckpointError(
            f"{loaded.path}: {why} and its critic is untrained, so there is nothing to plan with. {_sentence(ways)}"
        )


def _sentence(ways: Sequence[str]) -> str:
    said = ", or ".join(ways)
    return f"{said[0].upper()}{said[1:]}."
