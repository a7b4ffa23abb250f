"""Returns in the real environment, and their files: JSON with everything, CSV with a row per episode, a README."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import EnvironmentFailure, StorageError
from flowmbpo.evaluation.episodes import ClosedLoop, OnStart, Policy, whole_episodes
from flowmbpo.files import refused, write_bytes_atomic
from flowmbpo.json_documents import Document


@dataclass(frozen=True)
class Evaluation(Document):
    """Finished episodes, ordered by (environment, its episode).

    `returns` are undiscounted sums of real rewards, `lengths` agent steps, `successes` the task's success at each
    episode's last step (None where the task defines none), `tasks` the task names. `faults` counts episodes that the
    simulator broke: they are in none of the figures, and the environment's next episode stands in for each.
    """

    derived = ("episodes", "return_mean", "return_std", "length_mean", "success", "steps")

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[float | None, ...]
    tasks: tuple[str, ...]
    faults: int = 0

    @property
    def episodes(self) -> int:
        """Number of finished episodes."""
        return len(self.returns)

    @property
    def return_mean(self) -> float:
        """Mean return over episodes."""
        return math.fsum(self.returns) / len(self.returns)

    @property
    def return_std(self) -> float:
        """Population standard deviation of the returns (divided by their number; 0 for one episode)."""
        mean = self.return_mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.returns) / len(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean length in agent steps."""
        return sum(self.lengths) / len(self.lengths)

    @property
    def success(self) -> float | None:
        """Mean success over the episodes whose task defines it, or None."""
        return _mean_success(self.successes)

    @property
    def steps(self) -> int:
        """Agent steps in the counted episodes."""
        return sum(self.lengths)

    def per_task(self) -> dict[str, dict[str, float | int | None]]:
        """Episodes, mean return and mean success of each task, in the order of their first episodes."""
        rows = {task: [n for n, name in enumerate(self.tasks) if name == task] for task in dict.fromkeys(self.tasks)}
        return {
            task: {
                "episodes": len(chosen),
                "return_mean": math.fsum(self.returns[episode] for episode in chosen) / len(chosen),
                "success": _mean_success(self.successes[episode] for episode in chosen),
            }
            for task, chosen in rows.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, figures per task included."""
        return super().to_dict() | {"per_task": self.per_task()}


def _mean_success(successes: Iterable[float | None]) -> float | None:
    defined = [value for value in successes if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def evaluate(
    policy: Policy, env: VectorEnv, episodes: int, seed: int, *, on_start: OnStart | None = None
) -> Evaluation:
    """Run `episodes` whole episodes from `env.reset(seed)`, closed loop, and report them (see `whole_episodes`).

    Raises EnvironmentFailure on a non-finite reward too.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}: evaluate at least 1")
    loop = ClosedLoop(policy, env, seed, on_start=on_start)
    names = [env.spec.tasks[task].name for task in env.task_ids.tolist()]
    finished: list[tuple[int, float, int, float | None, str]] = []
    earned = torch.zeros(env.num_envs, dtype=torch.float64)
    lasted = torch.zeros(env.num_envs, dtype=torch.long)
    consequence = "evaluation goes on with the next episode"
    for taken, ended in whole_episodes(loop, episodes, purpose="evaluated", consequence=consequence):
        earned += taken.step.reward.to(earned)
        lasted += 1
        for index in ended:
            total, success = float(earned[index]), float(taken.step.success[index])
            if not math.isfinite(total):
                raise EnvironmentFailure(
                    f"the simulator returned a non-finite reward in environment copy {index} during evaluation: "
                    "its return cannot be reported"
                )
            finished.append((index, total, int(lasted[index]), None if math.isnan(success) else success, names[index]))
        earned[loop.begins] = 0.0
        lasted[loop.begins] = 0
    finished.sort(key=operator.itemgetter(0))  # stable: by environment, then in the order of its episodes
    _, returns, lengths, successes, tasks = zip(*finished, strict=True)
    return Evaluation(returns=returns, lengths=lengths, successes=successes, tasks=tasks, faults=loop.faults)


HASH_DIGITS = 12
RESULTS_SCHEMA = 2
"""Version of an evaluation's JSON file, as its `schema_version` says."""

README_HEAD = """\
# Evaluations

Returns of whole episodes in the real environment. Each evaluation is a `.json` file (everything that
is known about it) and a `.csv` file (one row per episode). The checkpoint is named by the SHA-256 of
its file: compare with `sha256sum`. `+-` is the population standard deviation over episodes. The last
column says what acted: the checkpoint's policy, or a planner, its values and its settings.

| evaluation | checkpoint | SHA-256 | task | seed | episodes | return | success | planner |
|---|---|---|---|---|---|---|---|---|
"""


def write_results(folder: Path, evaluation: Evaluation, meta: Mapping[str, Any]) -> Path:
    """Write `evaluation` into `folder` as `{checkpoint stem}-{hash}-seed{seed}.json` and `.csv`; the JSON's path.

    `meta` is JSON-able and holds at least the path of the `checkpoint`, its `checkpoint_sha256`, the `seed` and the
    `task`, and as `planner` what acted (its `kind`, and a planner's `values` and `settings`). An evaluation of the
    same checkpoint and seed that is already there and differs is kept: the new one gets `-2`, `-3`, ...

    Raises StorageError when the disk refuses.
    """
    fields = {"schema_version": RESULTS_SCHEMA, **meta, **evaluation.to_dict()}
    document = json.dumps(fields, indent=2, allow_nan=False) + "\n"
    stem = f"{Path(meta['checkpoint']).stem}-{meta['checkpoint_sha256'][:HASH_DIGITS]}-seed{meta['seed']}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    path = _claim(folder, stem, document.encode())
    try:
        write_bytes_atomic(path.with_suffix(".csv"), _table(evaluation, planner_label(meta["planner"])).encode())
        write_bytes_atomic(path, document.encode())
    except StorageError:
        if not path.stat().st_size:  # the bare claim; a file with content is an evaluation
            path.unlink()
        raise
    rows = "".join(_readme_row(each) for each in sorted(folder.glob("*-seed*.json")))
    write_bytes_atomic(folder / "README.md", (README_HEAD + rows).encode())
    return path


def _claim(folder: Path, stem: str, document: bytes) -> Path:
    """The first free name, taken by an empty file, or that of an evaluation with this very content."""
    for number in itertools.count(1):
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            with open(path, "xb"):
                return path
        except FileExistsError:
            if path.read_bytes() == document:
                return path
        except OSError as error:
            raise refused(path, error) from error
    raise AssertionError("itertools.count ended")


def planner_label(planner: Mapping[str, Any]) -> str:
    """What acted, of an evaluation's `planner` entry: `policy`, or `mppi on critic: horizon 3, samples 512, ...`."""
    if "settings" not in planner:
        return str(planner["kind"])
    settings = ", ".join(f"{key} {value}" for key, value in planner["settings"].items())
    return f"{planner['kind']} on {planner['values']}: {settings}"


def _table(evaluation: Evaluation, planner: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("episode", "task", "return", "length", "success", "planner"))
    columns = zip(evaluation.tasks, evaluation.returns, evaluation.lengths, evaluation.successes, strict=True)
    for episode, (task, total, length, success) in enumerate(columns):
        writer.writerow((episode, task, repr(total), length, "" if success is None else success, planner))
    return text.getvalue()


def _readme_row(path: Path) -> str:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        version = result["schema_version"]
        if version != RESULTS_SCHEMA:
            why = f"schema version {version!r}; this flowmbpo reads {RESULTS_SCHEMA}: evaluate the checkpoint again"
            return f"| `{path.stem}` | {why} | | | | | | | |\n"
        cells = (
            f"`{result['checkpoint']}`",
            f"`{result['checkpoint_sha256']}`",
            result["task"],
            result["seed"],
            result["episodes"],
            f"{result['return_mean']:.1f} +- {result['return_std']:.1f}",
            "-" if result["success"] is None else f"{result['success']:.2f}",
            planner_label(result["planner"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Somebody else's file, or an evaluation that is just being written: no reason to lose ours.
        return f"| `{path.stem}` | not readable | | | | | | | |\n"
    return f"| `{path.stem}` | " + " | ".join(str(cell) for cell in cells) + " |\n"
