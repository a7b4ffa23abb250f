"""The small sections of an experiment, from the dataset it reads to how the arithmetic is done."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowmbpo.config.base import FrozenConfig, NonNegativeInt, PositiveInt


class DataConfig(FrozenConfig):
    """The dataset that a run learns from, and the order in which it is read.

    `balance: tasks` draws every task equally often, `proportional` every transition. Blocks of whole episodes are held
    in memory, at most `memory_mb` of them by each reader (the model's windows, the policy's start states), and windows
    are shuffled over what is held: more memory mixes better and changes the order, so it belongs to the experiment.
    `threads` and `prefetch` (batches prepared ahead) change nothing but the speed.
    """

    path: Annotated[str, Field(min_length=1)]
    balance: Literal["tasks", "proportional"] = "tasks"
    memory_mb: PositiveInt = 1024
    threads: PositiveInt = 1
    prefetch: PositiveInt = 4


class InitialConfig(FrozenConfig):
    """The checkpoint whose weights a run begins with; `sha256` is filled in when it is loaded.

    A task that the checkpoint never saw starts with the embedding of the task `embedding_from`, or of the nearest one.
    Dynamics of another kind are distilled from the checkpoint's by `distill_updates` updates. `random_episodes` stands
    for `training.random_episodes`; null is filled in as 0 where a trained policy is taken over.
    """

    checkpoint: Annotated[str, Field(min_length=1)]
    sha256: str | None = None
    embedding_from: str | None = None
    distill_updates: NonNegativeInt = 2000
    random_episodes: NonNegativeInt | None = None


class EvaluationConfig(FrozenConfig):
    """`every` epochs (0: only at the end), `episodes` episodes, on seeds never trained on.

    Of a task set, `episodes` is rounded up to a multiple of the number of tasks. `at_start` also evaluates
    what a run begins with, before its first epoch. `threshold` is a return: the run reports the agent steps
    after which an evaluation first reached it.
    """

    every: NonNegativeInt = 200
    episodes: PositiveInt = 20
    deterministic: bool = True
    at_start: bool = False
    threshold: float | None = None


class DiagnosticsConfig(FrozenConfig):
    """Every `every` epochs (0: never) the run measures itself; `flowmbpo diagnose` does it with more samples.

    `gradients` is M, the number of independent gradients behind an ESNR; `probes` the random vectors
    behind a Jacobian norm; `windows` how many windows of replayed experience the errors are means over.
    Nothing of it touches the run's own randomness: a run with and without it is bit-equal.
    """

    every: NonNegativeInt = 100
    gradients: Annotated[int, Field(ge=2)] = 4
    probes: Annotated[int, Field(ge=2)] = 4
    windows: PositiveInt = 64


class CheckpointConfig(FrozenConfig):
    """`every` epochs `latest` is renewed (0: only at the end); the newest `keep` epoch files stay."""

    every: NonNegativeInt = 200
    keep: NonNegativeInt = 0


class TrackingConfig(FrozenConfig):
    """`sinks` beside metrics.jsonl and the console, which are always on; one row every `every` epochs."""

    sinks: tuple[Literal["wandb", "tensorboard"], ...] = ()
    project: str = "flow-mbpo-pwm"
    every: PositiveInt = 1


class ComputeConfig(FrozenConfig):
    """`threads: null` leaves torch's choice. Bit-equality holds for a fixed thread count and one choice of `compile`.

    `compile: update` compiles the arithmetic of the updates (torch.compile; a C++ compiler is needed): a minute or two
    at the first start, seconds once it is cached, and faster from then on. `auto` does so where a compiler is found and
    the run is long enough to gain. `off` leaves torch to run one operation after another.
    """

    threads: PositiveInt | None = None
    precision: Literal["highest", "high", "medium"] = "highest"
    compile: Literal["off", "update", "auto"] = "off"
