"""What a run tells: where its figures go, what it says at its start, its log file, and dumps of what broke."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from flowmbpo.checkpoints.load import Loaded
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.training import TrainingConfig
from flowmbpo.files import StagedFile, refused
from flowmbpo.parity.comparison import reference_parity
from flowmbpo.parity.flops import estimate_cost
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.runs.start import Start, asks_for_compilation, compilation_fault, total_steps
from flowmbpo.tracking.console import ConsoleSink
from flowmbpo.tracking.sink import JsonlSink, MetricSink, MultiSink, TensorBoardSink
from flowmbpo.training.learner import Dump
from flowmbpo.training.optimiser import learning_rate

log = logging.getLogger("flowmbpo")
log.setLevel(logging.INFO)


def announce(start: Start, run_dir: RunDirectory, *, console: bool) -> None:
    """Which simulator stands in, sizes, cost, and of a new run what was taken over (also in `initial.json`).

    Of a run that goes on from a checkpoint: the learning rates, where they jump.
    """
    config = start.config
    for notice in start.task.notices:
        log.warning("%s", notice)
    sizes = reference_parity(config, start.agent)
    log.log(logging.INFO if sizes.within else logging.WARNING, "%s", sizes.summary())
    if config.high_cost:
        flops = config.training.epochs * estimate_cost(config, start.task.spec).flops_per_epoch
        steps, cost = total_steps(config, start.task)["agent_steps"], f" ({config.cost})" if config.cost else ""
        what = "%s is marked high_cost: %s agent steps and about %.1e FLOPs%s"
        log.warning(what, config.name, f"{steps:,}", flops, cost)
    if asks_for_compilation(config) and (fault := compilation_fault(config)) is not None:
        log.warning("compute.compile 'auto': the updates run uncompiled, slower and otherwise alike: %s", fault)
    elif asks_for_compilation(config):
        what = "compiling the updates: a minute or two at a first start, seconds where the cache holds them"
        log.info("%s", what)
        if console:
            print(what, file=sys.stderr)
    if start.loaded is not None:
        _log_changed_rates(config.training, start.loaded)
    elif start.report is not None:
        initial = start.origins.initial
        assert initial is not None
        run_dir.write_json_atomic("initial.json", initial)
        began = f"starts from {initial['checkpoint']} (SHA-256 {initial['sha256']})"
        kept = {key: initial[key] for key in ("optimisers", "replay", "planner")}
        lines = [*start.report.lines(), *(f"{part}: {what}" for part, what in kept.items() if what != "none")]
        for line, said in [(began, began), *((line, f"  {line}") for line in lines)]:
            log.info("%s", line)
            if console:
                print(said, file=sys.stderr)


@contextmanager
def logged_to(file: Path, *, warn: bool) -> Iterator[None]:
    """Whatever the package logs meanwhile goes to `file`, with times; warnings to stderr too if `warn`."""
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if warn:
        handlers.append(logging.StreamHandler())
        handlers[1].setLevel(logging.WARNING)
        handlers[1].setFormatter(logging.Formatter("Warning: %(message)s"))
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _log_changed_rates(training: TrainingConfig, loaded: Loaded) -> None:
    """Warn where a linear schedule, now over another number of epochs, goes on at other learning rates."""
    before, epoch = int(loaded.payload["config"]["training"]["epochs"]), int(loaded.payload["epoch"])
    if training.lr_schedule != "linear" or before == training.epochs:
        return
    rates = []
    for part, initial in (("model", training.model_lr), ("actor", training.actor_lr), ("critic", training.critic_lr)):
        old, new = (learning_rate(initial, training.final_lr, epoch, n, "linear") for n in (before, training.epochs))
        rates.append(f"{part} {old:.3g} -> {new:.3g}")
    log.warning(
        "training.epochs: %d -> %d: under training.lr_schedule 'linear' the learning rates follow epoch / epochs, so "
        "at epoch %d they jump: %s. This is not the run that %d epochs from the start would have been",
        *(before, training.epochs, epoch, ", ".join(rates), training.epochs),
    )


def make_sinks(
    config: ExperimentConfig,
    run_directory: RunDirectory,
    env_name: str,
    resume_epoch: int | None = None,
    *,
    console: bool = True,
    policy_starts: bool = False,
) -> MultiSink:
    """metrics.jsonl first, then what `tracking.sinks` names, then the console.

    `env_name` is the task that really runs, `resume_epoch` the epoch of the checkpoint that the run goes on from; with
    `policy_starts` a loaded policy acts before the first epoch. The W&B id is noted in `run.json`. Raises ConfigError
    on a sink that cannot be used; what was opened by then is closed.
    """
    sinks: list[MetricSink] = []
    try:
        sinks.append(JsonlSink(run_directory.metrics, resume_epoch))
        for name in config.tracking.sinks:
            if name == "wandb":
                from flowmbpo.tracking.wandb import WandbSink

                sinks.append(WandbSink(config, env_name, run_directory.run_id, run_directory.path))
                run_directory.update_status("running", wandb_id=run_directory.run_id)
            else:
                sinks.append(TensorBoardSink(run_directory.path / "tensorboard", resume_epoch))
        if console:
            title, opening, training = f"{config.name} seed {config.seed} on {env_name}", "", config.own_training
            if resume_epoch is None and training.random_episodes:  # at paper scale minutes without a line
                what = "episodes of the loaded policy" if policy_starts else "random episodes"
                opening = (
                    f"first {training.random_episodes * config.task.num_envs} {what} and "
                    f"{training.warmup_model_updates} model-only updates, then {training.epochs:,} epochs"
                )
            sinks.append(ConsoleSink(title, config.training.epochs, resume_epoch or 0, opening=opening))
    except BaseException:  # close what was opened, whatever ended it, and pass it on
        MultiSink(sinks).close("failed")
        raise
    return MultiSink(sinks)


def dumps_below(folder: Path) -> Dump:
    """Keeps what a non-finite update was computed from, or what breaks an episode, in `{folder}/{name}.pt`.

    The folder appears with the first one. Raises StorageError.
    """

    def dump(name: str, values: Mapping[str, Tensor | str | int]) -> None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise refused(folder, error) from error
        with StagedFile(folder / f"{name}.pt") as staged:
            kept = {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in values.items()}
            torch.save(kept, staged)  # type: ignore[arg-type]
            staged.commit()

    return dump
