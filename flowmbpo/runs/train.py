"""One training run, on a page: collect in the environment, learn, evaluate, log and save, epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import resolve
from flowmbpo.runs.resume import StopRequest, find_run, opened_run, restore, stop_on_signals
from flowmbpo.runs.session import TrainingSession, TrainOutcome
from flowmbpo.runs.sinks import announce, dumps_below, logged_to
from flowmbpo.runs.start import (
    Start,
    begin,
    check_config,
    compiles,
    diagnosed_episodes,
    pinned,
    set_up_compute,
    window_sampler,
)
from flowmbpo.training.batches import DatasetBatches, ReplayBatches
from flowmbpo.training.collector import Collector
from flowmbpo.training.compiled import compiled
from flowmbpo.training.learner import Learner, make_generators
from flowmbpo.training.updates import EAGER


def train(
    config: ExperimentConfig,
    *,
    out: Path | None = None,
    resume: Path | Literal["auto"] | None = None,
    command: list[str] | None = None,
    console: bool = True,
) -> TrainOutcome:
    """Run (or go on with) the experiment; blocks until it is done, interrupted or failed.

    `resume` is a run directory, a checkpoint inside one, or "auto": the directory this config would have. Raises
    ConfigError, RunDirectoryError, CheckpointError, EnvironmentUnavailableError before anything is written,
    NonFiniteError, EnvironmentFailure, StorageError and Interrupted (stopped at once by a second Ctrl-C) while running.
    """
    task = resolve(config.task)
    config = pinned(config, task)
    check_config(config, task)
    device = set_up_compute(config)
    path, loaded, config = find_run(config, task, out, resume)
    start = begin(config, task, loaded)
    with assembled(start, device, path) as (learner, collector):
        if loaded is not None:
            restore(learner, collector, loaded)
        facts = {"command": command or [], "device": str(device), "env": task.label, "seed": config.seed}
        with (
            opened_run(path, start.config, facts, loaded) as run_dir,
            logged_to(run_dir.logs / "train.log", warn=console),
            stop_on_signals() as stop,
        ):
            announce(start, run_dir, console=console)
            with TrainingSession(start, learner, collector, run_dir, console=console) as session:
                return run_epochs(learner, collector, session, stop)


@contextmanager
def assembled(start: Start, device: torch.device, folder: Path) -> Iterator[tuple[Learner, Collector | None]]:
    """The learner of a run, and online its collector; what breaks is dumped below `folder`."""
    config, training = start.config, start.config.own_training
    generators = make_generators(config.seed, device)
    dumps = dumps_below(folder / "nonfinite")
    agent = start.agent.to(device)
    with ExitStack() as opened:
        collector: Collector | None = None
        windows = None if start.dataset is None else opened.enter_context(window_sampler(start, device))
        batches: ReplayBatches | DatasetBatches
        if training.mode == "offline":
            assert windows is not None
            starts = opened.enter_context(window_sampler(start, device, starts=True))
            batches = DatasetBatches(windows, starts, diagnosed_episodes(start, device))
        else:
            env = make_env(start.task, seed=config.seed, device=str(device))
            opened.callback(env.close)
            replay = ReplayBuffer(
                training.wm_buffer_size, env.num_envs, env.spec.obs_dim, env.spec.action_dim, env.task_ids, device
            )
            explore, policy = generators["exploration"], start.policy_starts
            collector = Collector(
                env, replay, training, seed=config.seed, generator=explore, dump=dumps, policy_starts=policy
            )
            batches = ReplayBatches(replay, training, generators["replay"])
        passes = compiled(config.compute.threads) if compiles(config) else EAGER
        learner = Learner(agent, training, batches, generators=generators, dump=dumps, dataset=windows, passes=passes)
        learner.warmstart = start.warmstart
        yield learner, collector


def run_epochs(
    learner: Learner, collector: Collector | None, session: TrainingSession, stop: StopRequest
) -> TrainOutcome:
    """Train to the last epoch or to a stop request; saves and reports either way."""
    session.evaluate_start()
    while learner.pretraining_left and not stop:
        session.record_pretraining(learner.pretrain())
    while learner.epoch < learner.config.epochs and not stop:
        session.record_epoch(run_epoch(learner, collector))  # evaluates, logs and saves where that is due
    return session.finish(stop)


def run_epoch(learner: Learner, collector: Collector | None) -> dict[str, float]:
    """One epoch, the first after what comes once before it. Returns its metrics."""
    if not learner.started:
        if collector is not None:
            collector.start(learner.agent)
        learner.start()
    collected = {} if collector is None else collector.collect(learner.agent, learner.epoch, learner.keep_up)
    return collected | learner.update()
