"""What a run says at its start, and the file that everything said goes to."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowmbpo.checkpoints.load import Loaded
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.training import TrainingConfig
from flowmbpo.envs.resolve import ResolvedTask
from flowmbpo.parity.comparison import reference_parity
from flowmbpo.parity.cost import estimate_cost
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.runs.dry_run import total_steps
from flowmbpo.runs.start import Start
from flowmbpo.stages.initial import Origins
from flowmbpo.stages.transfer.report import TransferReport
from flowmbpo.training.optimiser import learning_rate

log = logging.getLogger("flowmbpo")
log.setLevel(logging.INFO)


def announce(start: Start, task: ResolvedTask, run_dir: RunDirectory, loaded: Loaded | None, *, console: bool) -> None:
    """Which simulator stands in, sizes, cost, and of a new run what was taken over (also in `initial.json`).

    Of a run that goes on from the checkpoint `loaded`: the learning rates, where they jump.
    """
    for notice in task.notices:
        log.warning("%s", notice)
    sizes = reference_parity(start.config, start.agent)
    log.log(logging.INFO if sizes.within else logging.WARNING, "%s", sizes.summary())
    _log_high_cost(start.config, task)
    if loaded is not None:
        _log_changed_rates(start.config.training, loaded)
    elif start.report is not None:
        run_dir.write_json_atomic("initial.json", start.origins.initial)
        _log_transfer(start.origins, start.report, console=console)


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


def _log_high_cost(config: ExperimentConfig, task: ResolvedTask) -> None:
    """Warn of a run that is marked `high_cost`, with the estimate of what it takes."""
    if config.high_cost:
        flops = config.training.epochs * estimate_cost(config, task.spec).flops_per_epoch
        log.warning(
            "%s is marked high_cost: %s agent steps and about %.1e FLOPs%s",
            config.name,
            f"{total_steps(config, task)['agent_steps']:,}",
            flops,
            f" ({config.cost})" if config.cost else "",
        )


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


def _log_transfer(origins: Origins, report: TransferReport, *, console: bool) -> None:
    """Say what was taken over from the initial checkpoint, what is new and what was dropped."""
    assert origins.initial is not None
    began = f"starts from {origins.initial['checkpoint']} (SHA-256 {origins.initial['sha256']})"
    kept = {key: origins.initial[key] for key in ("optimisers", "replay", "planner")}
    lines = [*report.lines(), *(f"{part}: {what}" for part, what in kept.items() if what != "none")]
    for line, said in [(began, began), *((line, f"  {line}") for line in lines)]:
        log.info("%s", line)
        if console:
            print(said, file=sys.stderr)
