"""The trainer that a config describes, online or offline, and what it starts from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.dataset.reader import Dataset
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.resolve import running_tasks
from flowmbpo.errors import ConfigError
from flowmbpo.models.agent import Agent, seeded_agent
from flowmbpo.runs.build import env_spec, training_env
from flowmbpo.runs.nonfinite import NonFiniteDump
from flowmbpo.runs.offline import dataset_facts, diagnosed_episodes, measure_rewards, sampler
from flowmbpo.stages.initial import Initial
from flowmbpo.stages.lineage import Origins
from flowmbpo.stages.transfer.report import TransferReport
from flowmbpo.training.fog import FoGTrainer
from flowmbpo.training.offline import OfflineTrainer
from flowmbpo.training.trainer import Trainer, Warmstart, WindowSource

log = logging.getLogger("flowmbpo")

NORMALIZER = "reward_normalizer"
FROZEN = ("encoder", "dynamics", "reward", "termination")  # parts of a world model that is kept as it is
WINDOW_SEED, START_SEED = 0, 1  # of the two orders in which a run reads its dataset


@dataclass(frozen=True)
class Prepared:
    """A trainer with what it was given: where its weights and data come from, the report of what was taken over."""

    trainer: Trainer
    origins: Origins
    report: TransferReport | None

    def close(self) -> None:
        """Let the trainer's threads and processes go."""
        self.trainer.close()


def prepare(
    config: ExperimentConfig, device: torch.device, run_dir: Path, initial: Initial | None, dataset: Dataset | None
) -> Prepared:
    """Build the trainer of a run; nothing is written before an update is not finite. Raises ConfigError."""
    agent = seeded_agent(config, env_spec(config))
    report = None if initial is None else initial.take_over(agent)
    warmstart = None if initial is None or report is None else initial.warmstart(agent, config, report)
    if report is not None:
        _check_frozen_model(config, report, warmstart)
    if dataset is not None and not _reads_data(config, warmstart):
        if initial is not None or config.initial is None:  # else it may have been read before this resume
            log.warning("%s is not read: training.pretrain_steps is 0, and nothing is to be distilled", dataset.path)
        dataset = None
    if warmstart is not None and dataset is None and config.training.random_episodes == 0:
        raise ConfigError(
            "the checkpoint's dynamics are distilled on real windows, and there are none before the first epoch: "
            "set training.random_episodes to at least 1, or name a dataset with --data DIR"
        )
    if dataset is not None and (report is None or NORMALIZER in report.parts("reinitialised")):
        measure_rewards(agent, dataset, config)
    origins = Origins(
        config,
        ancestors=[] if initial is None else initial.lineage,
        initial=None if initial is None or report is None else _record(initial, report),
        data=None if dataset is None else dataset_facts(dataset, config),
    )
    dump = NonFiniteDump(run_dir / "nonfinite")
    trainer: Trainer
    if config.training.mode == "offline":
        assert dataset is not None
        trainer = _offline_trainer(agent, config, dataset, device, dump, warmstart)
    else:
        windows = None if dataset is None else sampler(dataset, config, config.training.horizon, WINDOW_SEED, device)
        env = training_env(config, device)
        try:
            trainer = make_trainer(config, env, device, run_dir, agent=agent, windows=windows, warmstart=warmstart)
        except BaseException:  # its workers must not outlive what could not be built
            env.close()
            raise
    return Prepared(trainer, origins, report)


def make_trainer(
    config: ExperimentConfig,
    env: VectorEnv,
    device: torch.device,
    run_dir: Path,
    *,
    agent: Agent | None = None,
    windows: WindowSource | None = None,
    warmstart: Warmstart | None = None,
) -> FoGTrainer:
    """The online trainer of a run, in `env`; without `agent`, of a new one."""
    return FoGTrainer(
        seeded_agent(config, env.spec) if agent is None else agent,
        env,
        config.training,
        seed=config.seed,
        device=device,
        dump=NonFiniteDump(run_dir / "nonfinite"),
        windows=windows,
        warmstart=warmstart,
    )


def _reads_data(config: ExperimentConfig, warmstart: Warmstart | None) -> bool:
    """Whether a run has a use for its dataset."""
    training = config.training
    return training.mode == "offline" or training.pretrain_steps > 0 or warmstart is not None


def _check_frozen_model(config: ExperimentConfig, report: TransferReport, warmstart: Warmstart | None) -> None:
    """Raises ConfigError where a world model would be kept as it is that nothing has trained."""
    if config.training.learn != "policy":
        return
    running = {task.plain_name for task in running_tasks(config.task).tasks}
    unknown = [start for start in report.tasks if start.how != "known" and start.task in running]
    if unknown:
        names = ", ".join(start.task for start in unknown)
        raise ConfigError(
            "training.learn 'policy' keeps the world model as it is, and the checkpoint's was never trained on "
            f"{names}: a policy would learn the rewards of {unknown[0].source}. Name a task that it knows, or train "
            "the model too (flowmbpo specialize)"
        )
    new = [part for part in report.parts("reinitialised") if part in FROZEN]
    if warmstart is not None:
        new = [part for part in new if part != "dynamics"]
    if new:
        details = "; ".join(f"{row.part}: {row.detail}" for row in report.rows if row.part in new)
        raise ConfigError(
            f"training.learn 'policy' keeps the world model as it is, and these parts of the checkpoint's do not fit: "
            f"{details}. Take a preset with the checkpoint's model, set initial.distill_updates above 0 for dynamics "
            "of another kind, or train the model too (training.learn all)"
        )


def _offline_trainer(
    agent: Agent,
    config: ExperimentConfig,
    dataset: Dataset,
    device: torch.device,
    dump: NonFiniteDump,
    warmstart: Warmstart | None,
) -> OfflineTrainer:
    return OfflineTrainer(
        agent,
        config.training,
        windows=sampler(dataset, config, config.training.horizon, WINDOW_SEED, device),
        starts=sampler(dataset, config, 1, START_SEED, device),
        replay=diagnosed_episodes(dataset, config, device),
        seed=config.seed,
        device=device,
        dump=dump,
        warmstart=warmstart,
    )


def _record(initial: Initial, report: TransferReport) -> dict[str, Any]:
    payload = initial.loaded.payload
    return {
        "checkpoint": str(initial.loaded.path),
        "sha256": initial.loaded.sha256,
        "name": initial.config.name,
        "phase": initial.config.phase,
        "transfer": report.to_dict(),
        "optimisers": "reinitialised",
        "replay": "dropped" if payload.get("replay") is not None else "none",
        "planner": "dropped" if payload.get("planner") is not None else "none",
    }
