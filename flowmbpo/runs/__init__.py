"""Composition root: an experiment's config becomes objects, and the objects a run."""

from flowmbpo.runs.dry_run import DryRun, dry_run
from flowmbpo.runs.evaluate import EvalOutcome, evaluate
from flowmbpo.runs.outcome import TrainOutcome
from flowmbpo.runs.train import train

__all__ = ["DryRun", "EvalOutcome", "TrainOutcome", "dry_run", "evaluate", "train"]
