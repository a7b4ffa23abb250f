"""What is diagnosed: a checkpoint with its buffer and environment, or a run by itself between epochs."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import AlteredReplayError, Loaded, load, load_replay
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.registry import measure_light
from flowmbpo.diagnostics.subject import Origin, Subject
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.episodes import assign_tasks
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import ResolvedTask, resolve
from flowmbpo.errors import CheckpointError, ConfigError, FlowMBPOError
from flowmbpo.models.agent import Agent
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.evaluate import evaluated_task, load_agent, steps_of
from flowmbpo.runs.start import initial_agent, resolve_device, set_up_compute
from flowmbpo.spec import EnvSpec
from flowmbpo.training.learner import Learner

log = logging.getLogger("flowmbpo")

NEEDED = ("config", "agent", "epoch", "agent_steps", "env_steps")
FRESH = "diagnosed on fresh episodes of its policy instead"


def newest_checkpoint(folder: Path = Path("outputs")) -> Path:
    """The latest checkpoint of the run under `folder` that was saved last. Raises CheckpointError."""
    saved = sorted(folder.glob("**/checkpoints/latest.pt"), key=lambda file: (file.stat().st_mtime, str(file)))
    if not saved:
        raise CheckpointError(
            f"no checkpoint is named, and there is none under {folder}/ to take; "
            "name a checkpoint or a run directory, or train first: flowmbpo train"
        )
    return saved[-1]


def load_subject(checkpoint: Path, *, task: str | None, device: str, seed: int, episodes: int) -> Subject:
    """The checkpoint's agent with its replay buffer (where it has one) and its environment.

    Raises CheckpointError for a file that is missing, damaged or incomplete, ConfigError for a device
    or a task that cannot be had.
    """
    target = resolve_device(device)
    loaded = load(checkpoint, target)
    kept = loaded.payload.get("replay")
    if kept is not None and not (loaded.path.parent / Path(kept["file"]).name).is_file():
        loaded = load(checkpoint, target)  # a run that was saving has replaced it, and taken its replay file away
    path, payload = loaded.path, loaded.payload
    missing = [key for key in NEEDED if key not in payload]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}, so it cannot be diagnosed; name another checkpoint")
    config = experiment_from_dict(payload["config"], str(path))
    own = resolve(config.task)
    only = None if task is None else _member(own, task)
    set_up_compute(config, device)
    agent = load_agent(loaded, config, own.spec).to(target)
    replay, trouble = (None, "") if only is not None else _replay(loaded, config, own, target)
    diagnosed = own.alone(only)
    for notice in diagnosed.notices:
        log.warning("%s", notice)

    def open_env(num_envs: int) -> VectorEnv:
        enough = max(num_envs, len(diagnosed.running.tasks))
        return make_env(diagnosed, num_envs=enough, seed=config.seed, device=str(target))

    return Subject(
        agent,
        config,
        device=target,
        seed=seed,
        make_env=open_env,
        origin=Origin(
            checkpoint=str(path), sha256=loaded.sha256, **steps_of(loaded), nonfinite=int(payload.get("nonfinite", 0))
        ),
        replay=replay,
        replay_trouble=trouble,
        optimisers=payload.get("optimisers"),
        initial=_initial(config, own.spec),
        episode_count=episodes,
        only=only,
    )


def _initial(config: ExperimentConfig, spec: EnvSpec) -> Callable[[], Agent] | None:
    """What builds the agent that the run began with; None, and said so, where its initial checkpoint is gone."""
    if config.initial is None:
        return lambda: initial_agent(config, spec)
    try:
        began = initial_agent(config, spec)
    except FlowMBPOError as error:
        log.warning("what the run began with cannot be rebuilt: %s It is not compared with that.", error)
        return None
    return lambda: began


def _member(own: ResolvedTask, task: str) -> int | None:
    """The id of `task` in the set that was trained on, None for the one task of a single-task run.

    Raises ConfigError for a task that the model never saw.
    """
    spec = own.spec
    if len(spec.tasks) == 1 and task not in (own.config.name, spec.label, spec.tasks[0].name, spec.tasks[0].plain_name):
        raise ConfigError(
            f"--task {task}: the checkpoint was trained on {spec.label} alone, so its model knows nothing "
            f"of {task}'s rewards; leave --task away (`flowmbpo eval --task` measures its policy elsewhere)"
        )
    return None if own.config.set is None else evaluated_task(own, task).only


def _replay(
    loaded: Loaded, config: ExperimentConfig, task: ResolvedTask, device: torch.device
) -> tuple[ReplayBuffer | None, str]:
    """The run's buffer, and what is wrong with its file; no buffer, and said so, where the checkpoint came without it.

    One that was altered since the checkpoint was saved is for `health` to look at, and for nothing else.
    """
    trouble = ""
    try:
        try:
            state = load_replay(loaded, device)
        except AlteredReplayError as error:
            trouble = str(error)
            log.warning("%s Only `health` looks at it; the rest is %s.", error, FRESH)
            state = load_replay(loaded, device, verify=False)
    except CheckpointError as error:
        log.warning("%s", error if trouble else f"{error} It is {FRESH}.")
        return None, trouble
    if state is None:
        log.warning("%s holds no replay buffer: it is %s.", loaded.path, FRESH)
        return None, ""
    spec, num_envs = task.spec, len(state.get("head", range(config.task.num_envs)))
    assigned = torch.tensor(assign_tasks(spec, num_envs, config.seed, task.only))
    buffer = ReplayBuffer(config.training.wm_buffer_size, num_envs, spec.obs_dim, spec.action_dim, assigned, device)
    try:
        buffer.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"{loaded.path}: {error}") from error
    return buffer, trouble


@dataclass
class SelfDiagnosis:
    """Measures the learner's agent every `diagnostics.every` epochs and warns once of what it finds.

    It draws from generators of its own, seeded by the run's seed and the epoch, and leaves weights,
    statistics and modes as they are: a run with it is bit-equal to one without. `findings` are the
    names found so far and `seconds` what all of it took; both belong to a checkpoint.
    """

    config: ExperimentConfig
    learner: Learner
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"findings": list(self.findings), "seconds": self.seconds}

    def measure(self) -> dict[str, float]:
        """The metrics of this moment, and the seconds that they took.

        A measurement that fails is warned of and costs no training.
        """
        metrics: dict[str, float] = {}
        began = time.monotonic()
        agent, epoch = self.learner.agent, self.learner.epoch
        mode = agent.training
        agent.eval()
        try:
            light, findings = measure_light(self.subject(), Effort.light(self.config.diagnostics))
            metrics |= light | {"health/findings": float(len(findings))}
            for finding in findings:
                if finding.name not in self.findings:
                    self.findings.append(finding.name)
                    log.warning("epoch %d: %s: %s", epoch, finding.name, finding.message)
        except FlowMBPOError as error:
            log.warning("epoch %d: the run could not be diagnosed: %s; it goes on", epoch, error)
        except Exception:  # a measurement may fail in any way; the training must not be lost with it
            log.exception("epoch %d: the run could not be diagnosed; it goes on", epoch)
        finally:
            agent.train(mode)
        seconds = time.monotonic() - began
        self.seconds += seconds
        return metrics | {"diagnostics/seconds": seconds}

    def subject(self) -> Subject:
        """The learner's agent as it stands, with draws of this epoch."""
        learner = self.learner
        return Subject(
            learner.agent,
            self.config,
            device=learner.batches.replay.device,
            seed=zlib.crc32(f"{self.config.seed} {learner.epoch}".encode()) >> 1,
            make_env=None,
            origin=Origin(epoch=learner.epoch, nonfinite=learner.nonfinite),
            replay=learner.batches.replay,
            optimisers={name: optimiser.state_dict() for name, optimiser in learner.optimisers.items()},
            initial=lambda: initial_agent(self.config, learner.agent.spec),
            episode_count=0,
        )
