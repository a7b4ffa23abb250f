"""What surrounds the loop of one run: its clock, evaluations, diagnoses, metrics and checkpoints; what it comes to."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from flowmbpo.checkpoints.payload import capture_rng
from flowmbpo.checkpoints.save import CheckpointStore, epoch_name
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import StorageError
from flowmbpo.evaluation.results import Evaluation, evaluate
from flowmbpo.json_documents import Document
from flowmbpo.parity.flops import ComputeCost, estimate_cost
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.runs.evaluate import evaluation_env, evaluation_episodes, evaluation_seed, make_acting
from flowmbpo.runs.resume import StopRequest
from flowmbpo.runs.sinks import make_sinks
from flowmbpo.runs.start import Start
from flowmbpo.runs.subjects import SelfDiagnosis
from flowmbpo.training.collector import Collector
from flowmbpo.training.learner import PRETRAINING_SLICE, Learner

log = logging.getLogger("flowmbpo")

SAVED_PRETRAINING = 10 * PRETRAINING_SLICE  # model updates between two checkpoints of a pretraining
FINAL = (1 << 24) - 1  # the final evaluation's place among evaluation seeds: no epoch has it

Row = dict[str, float | int | str]


@dataclass(frozen=True)
class TrainOutcome(Document):
    """What `train --json` prints. `final_*` are of the latest weights on fresh seeds, never a best.

    `agent_steps` are decisions over all environments, `env_steps` the simulators' control steps (action repeat
    included). `start` is what the run began with (mean return, and per task) and `retained_percent` the final return
    over it; `agent_steps_to_threshold` the agent steps after which an evaluation first reached
    `evaluation.threshold`. `lineage` lists the runs that led here, oldest first and this one last, with
    their steps and the transitions of their datasets; `data` is this run's own dataset.
    `faults` counts the training episodes that the simulator broke and that were thrown away; `findings` name
    what the light diagnostics warned of, and `diagnostics_s` are the seconds they took beside `wall_s`.
    """

    run_dir: str
    status: Literal["done", "interrupted"]
    agent_steps: int
    env_steps: int
    epochs: int
    final_return_mean: float | None
    final_return_std: float | None
    eval_episodes: int
    checkpoint: str
    wall_s: float
    cpu_s: float
    nonfinite: int
    faults: int = 0
    findings: tuple[str, ...] = ()
    diagnostics_s: float = 0.0
    per_task: dict[str, dict[str, float | int | None]] | None = None
    start: dict[str, Any] | None = None
    retained_percent: float | None = None
    agent_steps_to_threshold: int | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] | None = None


@dataclass
class Milestones:
    """Kept across resumes. `start` is None before (or without) an evaluation at the start.

    `returns` are the agent steps and the mean return of every evaluation: a threshold that a resume changes is judged
    on those before it too.
    """

    start: dict[str, Any] | None = None
    returns: list[list[float]] = field(default_factory=list)

    def note(self, agent_steps: int, evaluation: Evaluation) -> None:
        """An evaluation after `agent_steps` agent steps."""
        self.returns.append([agent_steps, evaluation.return_mean])

    def agent_steps_to(self, threshold: float | None) -> int | None:
        """Agent steps after which an evaluation first reached the threshold; None where none did."""
        reached = (int(steps) for steps, mean in self.returns if threshold is not None and mean >= threshold)
        return next(reached, None)

    def retained_percent(self, final: Evaluation | None) -> float | None:
        """The final mean return in percent of that at the start; None where the start earned nothing."""
        if final is None or self.start is None or self.start["return_mean"] <= 0.0:
            return None
        return 100.0 * final.return_mean / float(self.start["return_mean"])


class TrainingClock:
    """Seconds of training, summed over resumes: `wall_s` on the wall, `cpu_s` of this process (all its threads) and
    of other ones, which `others` tells. `spent` are those before a resume."""

    def __init__(self, others: Callable[[], float], spent: Mapping[str, float]) -> None:
        self._others = others
        self._offset = {key: spent.get(key, 0.0) - now for key, now in self._now().items()}

    @property
    def times(self) -> dict[str, float]:
        """`wall_s` and `cpu_s`, without pauses."""
        return {key: self._offset[key] + now for key, now in self._now().items()}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside counts as nothing."""
        began = self._now()
        try:
            yield
        finally:
            for key, now in self._now().items():
                self._offset[key] -= now - began[key]

    def _now(self) -> dict[str, float]:
        return {"wall_s": time.monotonic(), "cpu_s": time.process_time() + self._others()}


class TrainingSession(AbstractContextManager["TrainingSession"]):
    """Takes the metrics of every epoch and does what is due after it.

    `learner` and `collector` (None offline) stand where the checkpoint that the run goes on from left them.
    """

    def __init__(
        self, start: Start, learner: Learner, collector: Collector | None, run_dir: RunDirectory, *, console: bool
    ) -> None:
        config = self.config = start.config
        task = self.task = start.task
        self.origins = start.origins
        self.learner, self.collector = learner, collector
        self.run_dir = run_dir
        self.device = learner.batches.replay.device
        self.store = CheckpointStore(run_dir.checkpoints, config.checkpoint.keep)
        self.eval_env: VectorEnv | None = None
        self.eval_episodes = evaluation_episodes(task, config.evaluation.episodes) if learner.learns_policy else 0
        saved = {} if start.loaded is None else start.loaded.payload
        self.best: float | None = saved.get("best")
        self.milestones = Milestones(**saved.get("milestones", {}))
        self.self_diagnosis = SelfDiagnosis(config, learner, **saved.get("self_diagnosis", {}))
        self.clock = TrainingClock((lambda: 0.0) if collector is None else collector.env.cpu_seconds, saved)
        resume_epoch = None if start.loaded is None else learner.epoch
        self.sinks = make_sinks(
            config, run_dir, task.label, resume_epoch, console=console, policy_starts=start.policy_starts
        )
        self.status = "failed"
        self._mark_epoch()

    def __exit__(self, *_: object) -> None:
        try:
            self.sinks.close(self.status)
        finally:
            if self.eval_env is not None:
                self.eval_env.close()

    @property
    def agent_steps(self) -> int:
        """Decisions made so far, over all environments."""
        return 0 if self.collector is None else self.collector.agent_steps

    @property
    def steps(self) -> dict[str, int]:
        """`agent_steps`, and the `env_steps` that simulators made for them (action repeat included)."""
        return {"agent_steps": self.agent_steps, "env_steps": 0 if self.collector is None else self.collector.env_steps}

    @property
    def faults(self) -> int:
        """Episodes that the simulator broke so far."""
        return 0 if self.collector is None else self.collector.faults

    @cached_property
    def cost(self) -> ComputeCost:
        """What an epoch costs: seconds to estimate, so only where a row says it."""
        return estimate_cost(self.config, self.task.spec)

    def evaluate_start(self) -> None:
        """What the run begins with, measured once, where the config asks for it."""
        begun = self.learner.epoch > 0 or self.learner.pretrained > 0
        wanted = self.config.evaluation.at_start and self.milestones.start is None
        if wanted and self.learner.learns_policy and not begun:
            evaluation = self._evaluate(0)
            self.milestones.start = {"return_mean": evaluation.return_mean, "per_task": evaluation.per_task()}
            self.milestones.note(0, evaluation)  # it may reach the threshold by itself
            self.sinks.log({"epoch": 0, **self.steps, **_eval_row(evaluation)})
        self._mark_epoch()

    def record_pretraining(self, metrics: dict[str, float]) -> None:
        """A slice of the pretraining; a checkpoint after every so many, so that a long one can be interrupted."""
        self.sinks.log({"epoch": 0, **self.steps, **self.clock.times, **metrics})
        if self.learner.pretrained % SAVED_PRETRAINING == 0:
            self._save()
        self._mark_epoch()

    def record_epoch(self, metrics: dict[str, float]) -> None:
        """An epoch that has ended: diagnose, evaluate, log and save, each where it is due."""
        config, epoch = self.config, self.learner.epoch
        row = self._row(metrics)
        diagnosed = _due(config.diagnostics.every, epoch)
        if diagnosed:
            row |= self._diagnose()
        evaluated = self.learner.learns_policy and _due(config.evaluation.every, epoch)
        if evaluated:
            try:
                evaluation = self._evaluate(epoch)
            except Exception:  # a simulator may raise anything; the training until here must not be lost with it
                try:
                    self.sinks.log(row | self._costs())
                    self._save()  # the run can go on from here
                except StorageError as refusal:  # the evaluation's error is on its way and matters more
                    log.error("%s", refusal)
                raise
            row |= _eval_row(evaluation)
            self.milestones.note(self.agent_steps, evaluation)
            if self.best is None or evaluation.return_mean > self.best:
                self.best = evaluation.return_mean
                self.store.save("best", self._payload())
        if evaluated or diagnosed or epoch % config.tracking.every == 0:
            self.sinks.log(row | self._costs())
        if _due(config.checkpoint.every, epoch):
            self._save()
            if config.checkpoint.keep > 0:
                self.store.save(epoch_name(epoch), self._payload())
        self._mark_epoch()

    def finish(self, stop: StopRequest) -> TrainOutcome:
        """Save, evaluate unless the run is to stop, and report."""
        checkpoint = self._save()  # before the evaluation: whatever breaks there costs no training
        final: Evaluation | None = None
        status: Literal["done", "interrupted"] = "interrupted" if stop else "done"  # also one that came while saving
        if not stop and self.learner.learns_policy:
            final = self._evaluate(FINAL)
            self.milestones.note(self.agent_steps, final)
            figures = {"final/return_mean": final.return_mean, "final/return_std": final.return_std}
            # Also under the periodic keys where the last epoch had none of its own.
            periodic: Row = {} if _due(self.config.evaluation.every, self.learner.epoch) else _eval_row(final)
            self.sinks.log({"epoch": self.learner.epoch, **self.steps, **figures, **periodic})
        self.status = status
        outcome = TrainOutcome(
            run_dir=str(self.run_dir.path),
            status=status,
            **self.steps,
            epochs=self.learner.epoch,
            final_return_mean=None if final is None else final.return_mean,
            final_return_std=None if final is None else final.return_std,
            eval_episodes=0 if final is None else final.episodes,
            checkpoint=checkpoint,
            wall_s=self.clock.times["wall_s"],
            cpu_s=self.clock.times["cpu_s"],
            nonfinite=self.learner.nonfinite,
            faults=self.faults,
            findings=tuple(self.self_diagnosis.findings),
            diagnostics_s=self.self_diagnosis.seconds,
            per_task=None if final is None else final.per_task(),
            start=self.milestones.start,
            retained_percent=self.milestones.retained_percent(final) if self.origins.began_with_policy else None,
            agent_steps_to_threshold=self.milestones.agent_steps_to(self.config.evaluation.threshold),
            lineage=self.origins.lineage(self.learner.epoch, self.steps),
            data=self.origins.data,
        )
        self.run_dir.update_status(status, outcome=outcome.to_dict())
        return outcome

    def _mark_epoch(self) -> None:
        """The next epoch begins now: its speeds count from here."""
        self._began = (self.clock.times["wall_s"], self.agent_steps, self.learner.updates)

    def _row(self, metrics: dict[str, float]) -> Row:
        (wall, steps, updates), times = self._began, self.clock.times
        seconds = max(times["wall_s"] - wall, 1e-9)
        return {
            "epoch": self.learner.epoch,
            **self.steps,
            **times,
            **metrics,
            "speed/agent_steps_per_s": (self.agent_steps - steps) / seconds,
            "speed/updates_per_s": (self.learner.updates - updates) / seconds,
        }

    def _diagnose(self) -> dict[str, float]:
        """The light diagnostics, outside the training's clock; what they cost in all is a share of its time."""
        with self.clock.paused():
            metrics = self.self_diagnosis.measure()
        return metrics | {"diagnostics/share": self.self_diagnosis.seconds / max(self.clock.times["wall_s"], 1e-9)}

    def _costs(self) -> dict[str, float | int]:
        """Compute spent so far and memory in use."""
        training, learner = self.config.own_training, self.learner
        before = learner.pretrained + int(learner.warmstarted.get("updates", 0))  # a distillation costs about as much
        if training.mode == "online" and learner.learns_model and learner.started:
            before += training.warmup_model_updates
        with self.clock.paused():
            cost = self.cost
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        costs: dict[str, float | int] = {
            "compute/nfe": cost.nfe,
            "compute/index": cost.compute_index,
            "compute/flops": before * cost.updates["model"].flops + learner.epoch * cost.flops_per_epoch,
            "memory/rss_mb": used,
        }
        if self.device.type == "cuda":
            costs["memory/gpu_mb"] = torch.cuda.max_memory_allocated(self.device) / 1e6
        return costs

    def _evaluate(self, epoch: int) -> Evaluation:
        config = self.config
        with self.clock.paused():
            if self.eval_env is None:
                self.eval_env = evaluation_env(self.task, self.eval_episodes, config.seed, self.device)
            seed = evaluation_seed(config.seed, epoch)
            acting = make_acting(self.learner.agent, config, self.device, seed)
            return evaluate(acting.act, self.eval_env, self.eval_episodes, seed)

    def _payload(self) -> dict[str, Any]:
        return {
            **self.steps,
            "faults": self.faults,
            **self.learner.state_dict(),
            **({} if self.collector is None else self.collector.state_dict()),
            "config": self.config.model_dump(mode="json"),
            "rng": capture_rng(self.learner.generators),
            "best": self.best,
            "self_diagnosis": self.self_diagnosis.state_dict(),
            "milestones": asdict(self.milestones),
            "lineage": self.origins.lineage(self.learner.epoch, self.steps),
            "initial": self.origins.initial,
            "data": self.origins.data,
            "warmstart": dict(self.learner.warmstarted),
            **self.clock.times,
        }

    def _save(self) -> str:
        replay = self.learner.batches.replay.state_dict() if self.learner.started else None
        return str(self.store.save("latest", self._payload(), replay))


def _due(every: int, epoch: int) -> bool:
    return every > 0 and epoch % every == 0


def _eval_row(evaluation: Evaluation) -> Row:
    kept = ("return_mean", "return_std", "length_mean", "success", *(("faults",) if evaluation.faults else ()))
    row = {f"eval/{key}": getattr(evaluation, key) for key in kept}
    per_task = evaluation.per_task()
    for task, own in per_task.items() if len(per_task) > 1 else ():
        row |= {f"eval/{key}/{task}": value for key, value in own.items() if key != "episodes"}
    return {key: value for key, value in row.items() if value is not None}
