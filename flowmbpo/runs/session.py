"""The life of one run inside its directory: epochs, evaluations, checkpoints, metrics."""

from __future__ import annotations

import logging
import resource
import sys
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from flowmbpo.checkpoints.load import Loaded
from flowmbpo.checkpoints.payload import capture_rng
from flowmbpo.checkpoints.save import CheckpointStore, epoch_name
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import StorageError
from flowmbpo.evaluation.returns import Evaluation, evaluate
from flowmbpo.parity.cost import estimate_cost
from flowmbpo.runs.build import env_name, evaluation_env, evaluation_episodes, evaluation_seed
from flowmbpo.runs.clock import TrainingClock
from flowmbpo.runs.directory import RunDirectory
from flowmbpo.runs.interrupts import StopRequest
from flowmbpo.runs.milestones import Milestones
from flowmbpo.runs.outcome import TrainOutcome
from flowmbpo.runs.self_diagnosis import SelfDiagnosis
from flowmbpo.runs.sinks import make_sinks
from flowmbpo.stages.lineage import Origins
from flowmbpo.training.trainer import PRETRAINING_SLICE, Trainer

log = logging.getLogger("flowmbpo")

SAVED_PRETRAINING = 10 * PRETRAINING_SLICE  # model updates between two checkpoints of a pretraining
FINAL = (1 << 24) - 1  # the final evaluation's place among evaluation seeds: no epoch has it


class TrainingSession:
    """Everything between taking a run directory and letting it go.

    `trainer` stands where `loaded`, the checkpoint that the run goes on from, left it. `history` is what
    every checkpoint of the run says of where it comes from (see `runs.origin`).
    """

    def __init__(
        self,
        config: ExperimentConfig,
        trainer: Trainer,
        run_dir: RunDirectory,
        loaded: Loaded | None,
        history: Origins,
        *,
        console: bool,
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.trainer = trainer
        self.device = trainer.device
        self.store = CheckpointStore(run_dir.checkpoints, config.checkpoint.keep)
        self.history = history
        self.cost = estimate_cost(config, trainer.spec)
        self.best: float | None = None
        self.eval_env: VectorEnv | None = None
        self.eval_episodes = evaluation_episodes(config, config.evaluation.episodes) if trainer.learns_policy else 0
        self.milestones = Milestones(config.evaluation, None if loaded is None else loaded.payload.get("milestones"))
        resume_epoch = None
        clock = (0.0, 0.0)
        if loaded is not None:
            self.best = loaded.payload["best"]
            clock = (float(loaded.payload["wall_s"]), float(loaded.payload["cpu_s"]))
            resume_epoch = trainer.epoch
        self.clock = TrainingClock(trainer.cpu_seconds, *clock)
        earlier = None if loaded is None else loaded.payload.get("self_diagnosis")  # 0.2 saved none
        self.self_diagnosis = SelfDiagnosis(config, trainer, earlier)
        name = env_name(config)
        self.sinks = make_sinks(config, run_dir, config.training.epochs, name, resume_epoch, console=console)
        self.status = "failed"

    def __enter__(self) -> TrainingSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sinks.close(self.status)
        finally:
            if self.eval_env is not None:
                self.eval_env.close()

    def run(self, stop: StopRequest) -> TrainOutcome:
        """Train to the last epoch or to a stop request; saves and reports either way."""
        epochs = self.config.training.epochs
        self._evaluate_at_start()
        while self.trainer.pretraining_left and self.trainer.epoch == 0 and not stop:
            self._pretrain()
        while self.trainer.epoch < epochs and not stop:
            self._epoch()
        checkpoint = self._save()  # before the evaluation: whatever breaks there costs no training
        final: Evaluation | None = None
        status: Literal["done", "interrupted"] = "interrupted" if stop else "done"
        if not stop and self.trainer.learns_policy:
            final = self._evaluate(FINAL)
            self.milestones.note(self.trainer.env_steps, final)
            self.sinks.log(self._final_row(final))
        self.status = status
        outcome = TrainOutcome(
            run_dir=str(self.run_dir.path),
            status=status,
            env_steps=self.trainer.env_steps,
            epochs=self.trainer.epoch,
            final_return_mean=None if final is None else final.return_mean,
            final_return_std=None if final is None else final.return_std,
            eval_episodes=0 if final is None else final.episodes,
            checkpoint=checkpoint,
            wall_s=self.clock.wall_s,
            cpu_s=self.clock.cpu_s,
            nonfinite=self.trainer.nonfinite,
            faults=self.trainer.faults,
            findings=tuple(self.self_diagnosis.findings),
            diagnostics_s=self.self_diagnosis.seconds,
            per_task=None if final is None else final.per_task(),
            start=self.milestones.start,
            retained_percent=self.milestones.retained_percent(final) if self.history.began_with_policy else None,
            steps_to_threshold=self.milestones.steps_to_threshold,
            lineage=self.history.lineage(self.trainer),
            data=self.history.data,
        )
        self.run_dir.update_status(status, outcome=outcome.to_dict())
        return outcome

    def _final_row(self, final: Evaluation) -> dict[str, float | int | str]:
        """The final evaluation; also under the periodic keys where the last epoch had none of its own."""
        row: dict[str, float | int | str] = {
            "epoch": self.trainer.epoch,
            "env_steps": self.trainer.env_steps,
            "final/return_mean": final.return_mean,
            "final/return_std": final.return_std,
        }
        every = self.config.evaluation.every
        return row if every > 0 and self.trainer.epoch % every == 0 else row | _eval_row(final)

    def _evaluate_at_start(self) -> None:
        """What the run begins with, measured once, where the config asks for it."""
        begun = self.trainer.epoch > 0 or self.trainer.pretrained > 0
        if not self.milestones.wants_start or begun or not self.trainer.learns_policy:
            return
        evaluation = self._evaluate(0)
        self.milestones.begin(evaluation)
        self.sinks.log({"epoch": 0, "env_steps": 0, **_eval_row(evaluation)})

    def _pretrain(self) -> None:
        """A slice of the pretraining; a checkpoint after every so many, so that a long one can be interrupted."""
        metrics = self.trainer.pretrain()
        times = {"wall_s": self.clock.wall_s, "cpu_s": self.clock.cpu_s}
        self.sinks.log({"epoch": 0, "env_steps": self.trainer.env_steps, **times, **metrics})
        if self.trainer.pretrained % SAVED_PRETRAINING == 0:
            self._save()

    def _epoch(self) -> None:
        config, trainer = self.config, self.trainer
        wall, steps, updates = self.clock.wall_s, trainer.env_steps, trainer.updates
        metrics = trainer.run_epoch()
        seconds = max(self.clock.wall_s - wall, 1e-9)
        row: dict[str, float | int | str] = {
            "epoch": trainer.epoch,
            "env_steps": trainer.env_steps,
            "wall_s": self.clock.wall_s,
            "cpu_s": self.clock.cpu_s,
            **metrics,
            "speed/env_steps_per_s": (trainer.env_steps - steps) / seconds,
            "speed/updates_per_s": (trainer.updates - updates) / seconds,
        }
        diagnosed = self.self_diagnosis.due
        if diagnosed:
            row |= self._diagnose()
        every = config.evaluation.every if trainer.learns_policy else 0
        due = every > 0 and trainer.epoch % every == 0
        if due:
            try:
                evaluation = self._evaluate(trainer.epoch)
            except Exception:  # a simulator may raise anything; the training until here must not be lost with it
                self._rescue(row)
                raise
            row |= _eval_row(evaluation)
            self.milestones.note(trainer.env_steps, evaluation)
            if self.best is None or evaluation.return_mean > self.best:
                self.best = evaluation.return_mean
                self.store.save("best", self._payload())
        if due or diagnosed or trainer.epoch % config.tracking.every == 0:
            self.sinks.log(row | self._costs())
        if config.checkpoint.every > 0 and trainer.epoch % config.checkpoint.every == 0:
            self._save()
            if config.checkpoint.keep > 0:
                self.store.save(epoch_name(trainer.epoch), self._payload())

    def _diagnose(self) -> dict[str, float]:
        """The light diagnostics, outside the training's clock; what they cost in all is a share of its time."""
        with self.clock.paused():
            metrics = self.self_diagnosis.measure()
        return metrics | {"diagnostics/share": self.self_diagnosis.seconds / max(self.clock.wall_s, 1e-9)}

    def _rescue(self, row: dict[str, float | int | str]) -> None:
        """Save what an evaluation that breaks would lose; the run can go on from here."""
        try:
            self.sinks.log(row | self._costs())
            self._save()
        except StorageError as refusal:  # the evaluation's error is on its way and matters more
            log.error("%s", refusal)

    def _costs(self) -> dict[str, float | int]:
        """Compute spent so far and memory in use."""
        training, trainer = self.config.training, self.trainer
        before = trainer.pretrained + int(trainer.warmstarted.get("updates", 0))  # a distillation costs about as much
        if training.mode == "online" and trainer.learns_model and trainer.started:
            before += training.warmup_model_updates
        warmup = before * self.cost.model_update.flops
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        costs: dict[str, float | int] = {
            "compute/nfe": self.cost.nfe,
            "compute/index": self.cost.compute_index,
            "compute/flops": warmup + self.trainer.epoch * self.cost.flops_per_epoch,
            "memory/rss_mb": used,
        }
        if self.device.type == "cuda":
            costs["memory/gpu_mb"] = torch.cuda.max_memory_allocated(self.device) / 1e6
        return costs

    def _evaluate(self, epoch: int) -> Evaluation:
        config = self.config
        with self.clock.paused():
            if self.eval_env is None:
                self.eval_env = evaluation_env(config, self.eval_episodes, self.device)
            seed = evaluation_seed(config.seed, epoch)
            generator = None
            if not config.evaluation.deterministic:
                generator = torch.Generator(self.device).manual_seed(seed)

            def policy(obs: Tensor, task: Tensor) -> Tensor:
                return self.trainer.agent.act(obs.to(self.device), task.to(self.device), generator)

            return evaluate(policy, self.eval_env, self.eval_episodes, seed)

    def _payload(self) -> dict[str, Any]:
        return {
            **self.trainer.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "rng": capture_rng(self.trainer.generators),
            "best": self.best,
            "self_diagnosis": self.self_diagnosis.state_dict(),
            "milestones": self.milestones.state_dict(),
            **self.history.payload(self.trainer),
            "wall_s": self.clock.wall_s,
            "cpu_s": self.clock.cpu_s,
        }

    def _save(self) -> str:
        return str(self.store.save("latest", self._payload(), self.trainer.saved_replay))


def _eval_row(evaluation: Evaluation) -> dict[str, float | int | str]:
    row: dict[str, float | int | str] = {
        "eval/return_mean": evaluation.return_mean,
        "eval/return_std": evaluation.return_std,
        "eval/length_mean": evaluation.length_mean,
    }
    if evaluation.success is not None:
        row["eval/success"] = evaluation.success
    if evaluation.faults:
        row["eval/faults"] = evaluation.faults
    figures = evaluation.per_task()
    if len(figures) > 1:
        for task, own in figures.items():
            row |= {
                f"eval/{key}/{task}": value for key, value in own.items() if key != "episodes" and value is not None
            }
    return row
