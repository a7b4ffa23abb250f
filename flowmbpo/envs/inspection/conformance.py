"""The vector environment's contract, check by check: some look at one shared rollout, some run it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.inspection.recording import CheckedEnv, ContractBroken, Recording, difference, random_actions, record
from flowmbpo.errors import EnvironmentUnavailableError

Verdict = Literal["passed", "failed", "skipped"]

_SHORT = 100  # steps of the checks that one step would nearly do for


@dataclass(frozen=True)
class CheckResult:
    """One promise of the contract, held against one environment.

    `detail` says what was seen: the first violation where it failed, why it could not be asked
    where it was skipped. `cpu_s` counts this process and its workers.
    """

    environment: str
    name: str
    verdict: Verdict
    detail: str
    wall_s: float
    cpu_s: float


class NotApplicable(Exception):
    """Raised by a check that has nothing to ask of this environment; the message says why."""


def check_environment(
    config: TaskConfig,
    *,
    copies: int = 2,
    steps: int = 500,
    seed: int = 0,
    workers: int = 1,
    whole_episodes: bool = True,
    device: str = "cpu",
) -> list[CheckResult]:
    """Every check on the environment that `config` describes, in order.

    `copies` >= 2 environments are run for `steps` >= 2 agent steps of uniform random actions, past the
    longest time limit with `whole_episodes`; `workers` step the repetition, the rest runs in this process.
    A promise that is broken is a failed result, whatever was raised. Raises ConfigError on an
    unknown task and EnvironmentUnavailableError where the simulator is missing.
    """
    if copies < 2 or steps < 2:
        raise ValueError(f"copies = {copies} and steps = {steps}: both must be at least 2")
    results: list[CheckResult] = []
    with closing(CheckedEnv(config, copies, steps, seed, workers, whole_episodes, device)) as subject:
        for name, check in CHECKS.items():
            wall, cpu, workers_cpu = time.perf_counter(), time.process_time(), subject.workers_cpu_s
            verdict: Verdict = "passed"
            try:
                if results and results[0].verdict == "failed":
                    raise NotApplicable("the rollout failed")
                detail = check(subject)
            except NotApplicable as reason:
                verdict, detail = "skipped", str(reason)
            except ContractBroken as reason:
                verdict, detail = "failed", str(reason)
            except EnvironmentUnavailableError:
                raise
            except Exception as error:  # noqa: BLE001  a simulator raises as it pleases
                verdict, detail = "failed", f"{type(error).__name__}: {error}"
            cpu = time.process_time() - cpu + subject.workers_cpu_s - workers_cpu
            results.append(CheckResult(subject.spec.label, name, verdict, detail, time.perf_counter() - wall, cpu))
    return results


def check_shapes(subject: CheckedEnv) -> str:
    """Shapes and types are the spec's; every task of a set has an environment."""
    spec, recording, copies = subject.spec, subject.recording, subject.copies
    flags = (recording.steps, copies)
    observed = (*flags, spec.obs_dim)
    for name, tensor, shape, dtype in (
        ("the first observations", recording.first, observed[1:], torch.float32),
        ("obs", recording.obs, observed, torch.float32),
        ("final_obs", recording.final_obs, observed, torch.float32),
        ("reward", recording.reward, flags, torch.float32),
        ("success", recording.success, flags, torch.float32),
        ("terminated", recording.terminated, flags, torch.bool),
        ("truncated", recording.truncated, flags, torch.bool),
        ("task_ids", subject.task_ids, (copies,), torch.int64),
    ):
        kept = (tensor.shape, tensor.dtype) == (shape, dtype)
        _require(kept, f"{name}: {tuple(tensor.shape)} of {tensor.dtype}, expected {shape} of {dtype}")
    run = set(subject.task_ids.tolist())
    _require(run == set(range(len(spec.tasks))), f"the copies run tasks {sorted(run)} of {len(spec.tasks)}")
    return f"obs {spec.obs_dim}, action {spec.action_dim}, {copies} copies"


def check_finite(subject: CheckedEnv) -> str:
    """Observations and rewards are finite everywhere; success is nan, or in [0, 1]."""
    recording = subject.recording
    for name in ("first", "obs", "final_obs", "reward"):
        wrong = ~getattr(recording, name).isfinite()
        title = "the first observations" if name == "first" else name
        _require(not bool(wrong.any()), f"{title}: {int(wrong.sum())} values are not finite")
    success, broken = recording.success, recording.broken
    _require(bool((success.isnan() | ((success >= 0) & (success <= 1))).all()), "success is outside [0, 1]")
    _require(bool((recording.reward[broken] == 0).all()), "a fault's step has a reward other than 0")
    low, high = float(recording.reward.min()), float(recording.reward.max())
    return f"reward {low:.4g} to {high:.4g}" + (f", {int(broken.sum())} broken episodes" if broken.any() else "")


def check_ends(subject: CheckedEnv) -> str:
    """An episode is terminated or truncated, never both; only tasks that can terminate do; faults are neither."""
    terminated, truncated = subject.recording.terminated, subject.recording.truncated
    _require_nowhere(terminated & truncated, "is terminated and truncated at once")
    for index, task in enumerate(subject.tasks):
        allowed = task.can_terminate or not bool(terminated[:, index].any())
        _require(allowed, f"{task.name} terminates, which its row denies")
    _require_nowhere(subject.recording.broken & (terminated | truncated), "broke and is marked as ended")
    return f"{int(terminated.sum())} terminated, {int(truncated.sum())} truncated in {len(terminated)} steps"


def check_time_limit(subject: CheckedEnv) -> str:
    """An episode is truncated exactly at its task's length, unless it terminates there."""
    recording = subject.recording
    ended = recording.terminated | recording.broken
    for index, task in enumerate(subject.tasks):
        elapsed = 0
        flags = zip(ended[:, index].tolist(), recording.truncated[:, index].tolist(), strict=True)
        for step, (over, truncated) in enumerate(flags, start=1):
            elapsed += 1
            at_limit = elapsed == task.episode_length and not over
            _require(
                truncated == at_limit,
                f"copy {index} ({task.name}) {'is not' if at_limit else 'is'} truncated in step {step}, "
                f"after {elapsed} of {task.episode_length} steps",
            )
            if over or truncated:
                elapsed = 0
    if recording.truncated.any():
        return f"{int(recording.truncated.sum())} episodes reached it"
    shortest = min(task.episode_length for task in subject.spec.tasks)
    if recording.steps < shortest:
        raise NotApplicable(f"{recording.steps} steps are fewer than the limit of {shortest}")
    raise NotApplicable("every episode ended itself before its time limit")


def check_final_observations(subject: CheckedEnv) -> str:
    """`final_obs` is `obs` within an episode and the last one of it at its end, where `obs` is the next one's first."""
    recording = subject.recording
    same = (recording.obs == recording.final_obs).all(dim=-1)
    ended, broken = recording.terminated | recording.truncated, recording.broken
    _require_nowhere(~ended & ~broken & ~same, "has a final_obs other than its obs within an episode")
    _require_nowhere(ended & same, "ends an episode, but obs is still its last observation")
    _require_nowhere(broken & ~same, "broke, and final_obs is not the next episode's first")
    if not ended.any():
        raise NotApplicable(f"no episode ended within {recording.steps} steps")
    return f"at {int(ended.sum())} ends"


def check_padding(subject: CheckedEnv) -> str:
    """Observations of tasks narrower than the set are zero beyond their own width."""
    widths, recording = {task.obs_dim for task in subject.spec.tasks}, subject.recording
    if len(widths) == 1:
        raise NotApplicable("all observations have the same width")
    for index, task in enumerate(subject.tasks):
        seen = (recording.first[index], recording.obs[:, index], recording.final_obs[:, index])
        clean = not any(bool(values[..., task.obs_dim :].any()) for values in seen)
        _require(clean, f"copy {index} ({task.name}) writes beyond its {task.obs_dim} observations")
    return f"widths {min(widths)} to {max(widths)}"


def check_repeatable(subject: CheckedEnv) -> str:
    """The same seed and actions give the same bits, in a fresh instance that worker processes or threads step."""
    with subject.opened(workers=subject.workers) as env:
        again = record(env, env.reset(subject.seed), subject.actions[: subject.steps])
    _require_same(subject.recording.part(0, subject.steps), again)
    where = f"in {subject.workers} workers" if subject.workers else "in this process"
    return f"bit-equal over {subject.steps} steps, {where}"


def check_seeds(subject: CheckedEnv) -> str:
    """Another seed gives other episodes, and so do the environments of one task."""
    steps, seed = min(subject.steps, _SHORT), subject.seed
    actions = subject.actions[:steps, :1].expand(-1, subject.copies, -1)  # the same for all: only the seeds differ
    with subject.reused() as env:
        own = record(env, env.reset(seed), actions)
        other = record(env, env.reset(seed + 1), actions)
    for index in range(subject.copies):
        alike = difference(own.of(index), other.of(index)) is None
        _require(not alike, f"seeds {seed} and {seed + 1} give copy {index} the same {steps} steps")
        twin = subject.tasks.index(subject.tasks[index])
        alike = twin != index and difference(own.of(twin), own.of(index)) is None
        _require(not alike, f"copies {twin} and {index} are given the same {steps} steps")
    return f"seed {seed + 1} and other copies differ"


def check_resume(subject: CheckedEnv) -> str:
    """A state that went through bytes goes on bit-equally in a fresh instance."""
    start, stop = subject.saved_at, subject.steps
    with subject.opened() as env:
        again = record(env, env.load_state_dict(subject.state), subject.actions[start:stop])
    _require_same(subject.recording.part(start, stop), again)
    return f"saved after {start} steps, bit-equal over the next {stop - start}"


def check_independent(subject: CheckedEnv) -> str:
    """What environment 0 sees does not depend on the others: there are none, or, in a set, they act otherwise."""
    expected = subject.recording.part(0, subject.steps).of(0)
    actions = subject.actions[: subject.steps]
    if len(subject.spec.tasks) == 1:
        with subject.opened(copies=1) as env:
            _require_same(expected, record(env, env.reset(subject.seed), actions[:, :1]))
        return f"copy 0 of {subject.copies} equals a lone copy"
    with subject.opened() as env:
        changed = random_actions(env, subject.steps, subject.seed + 1)
        changed[:, 0] = actions[:, 0]
        _require_same(expected, record(env, env.reset(subject.seed), changed).of(0))
    return f"copy 0 is the same whatever the other {subject.copies - 1} do"


def check_refusals(subject: CheckedEnv) -> str:
    """Actions of a wrong shape or with a value that is not finite raise ValueError and change nothing."""
    good = subject.actions[0]
    bad = {f"shape {tuple(wrong.shape)}": wrong for wrong in (good[:-1], torch.cat((good, good), dim=1), good[0])}
    for value in (torch.nan, torch.inf):
        bad[str(value)] = good.clone()
        bad[str(value)][-1, 0] = value
    with subject.reused() as env:
        first = env.reset(subject.seed)
        for name, action in bad.items():
            try:
                env.step(action)
            except ValueError:
                continue
            raise ContractBroken(f"an action with {name} was accepted")
        after = record(env, first, [good])
    _require_same(subject.recording.part(0, 1), after)
    return f"refused {', '.join(bad)}"


def check_clipping(subject: CheckedEnv) -> str:
    """Actions beyond [-1, 1] do what their clipped values do."""
    wide = 3 * subject.actions[: min(subject.steps, _SHORT)]
    with subject.reused() as env:
        clipped = record(env, env.reset(subject.seed), wide.clamp(-1, 1))
        again = record(env, env.reset(subject.seed), wide)
    _require_same(clipped, again)
    return f"{int((wide.abs() > 1).sum())} actions beyond the bounds"


def check_masked(subject: CheckedEnv) -> str:
    """Actions that a task of a set does not have influence nothing."""
    widths = torch.tensor([task.action_dim for task in subject.tasks])
    used = torch.arange(subject.spec.action_dim) < widths.unsqueeze(-1)
    if used.all():
        raise NotApplicable("all tasks use all actions")
    steps = min(subject.steps, _SHORT)
    with subject.reused() as env:
        others = random_actions(env, steps, subject.seed + 2)
        changed: Float[Tensor, "T N A"] = torch.where(used, subject.actions[:steps], others)
        again = record(env, env.reset(subject.seed), changed)
    _require_same(subject.recording.part(0, steps), again)
    return f"{int((~used).sum())} masked of {used.numel()} actions"


def _require(kept: bool, broken: str) -> None:
    if not kept:
        raise ContractBroken(broken)


def _require_nowhere(mark: Bool[Tensor, "T N"], broken: str) -> None:
    """No environment `broken` the contract in any step; names the first that did."""
    if mark.any():
        step, index = mark.nonzero()[0].tolist()
        raise ContractBroken(f"copy {index} in step {step + 1} {broken}")


def _require_same(expected: Recording, found: Recording) -> None:
    gap = difference(expected, found)
    if gap is not None:
        raise ContractBroken(gap)


CHECKS: Mapping[str, Callable[[CheckedEnv], str]] = MappingProxyType(
    {
        "rollout": CheckedEnv.roll_out,
        "shapes": check_shapes,
        "finite": check_finite,
        "ends": check_ends,
        "time limit": check_time_limit,
        "final observations": check_final_observations,
        "padding": check_padding,
        "repeatable": check_repeatable,
        "seeds": check_seeds,
        "resume": check_resume,
        "independent": check_independent,
        "refusals": check_refusals,
        "clipping": check_clipping,
        "masked actions": check_masked,
    }
)
"""In their order. Each says what was seen, or raises ContractBroken or NotApplicable."""
