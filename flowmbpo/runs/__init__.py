"""Composition root: an experiment's config becomes objects, and the objects a run."""

from flowmbpo.runs.dry_run import dry_run
from flowmbpo.runs.evaluate import EvalOutcome, evaluate_checkpoint
from flowmbpo.runs.outcome import TrainOutcome
from flowmbpo.runs.train import train

__all__ = ["EvalOutcome", "TrainOutcome", "dry_run", "evaluate_checkpoint", "train"]
