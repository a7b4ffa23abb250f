"""The vector environment's contract, check by check, held against any environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.inspection.checks import CHECKS, Check
from flowmbpo.envs.inspection.reference import CheckedEnv, CheckResult, ContractBroken, NotApplicable, Verdict
from flowmbpo.errors import EnvironmentUnavailableError, FlowMBPOError

ROLLOUT = "rollout"
"""The check that the others build on: the environment is made and stepped."""

# What an environment under inspection may raise: its fault, not the inspector's. A simulator raises as it pleases.
_RAISED = (
    FlowMBPOError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def check_names() -> tuple[str, ...]:
    """The checks in their order."""
    return (ROLLOUT, *CHECKS)


def check_environment(
    config: TaskConfig,
    *,
    copies: int = 2,
    steps: int = 500,
    seed: int = 0,
    workers: int = 1,
    whole_episodes: bool = True,
    device: str = "cpu",
    report: Callable[[CheckResult], None] = lambda result: None,
) -> list[CheckResult]:
    """Every check on the environment that `config` describes, in order; `report` hears each at once.

    `copies` >= 2 are run for `steps` >= 2 agent steps of uniform random actions, past the longest
    time limit with `whole_episodes`; `workers` step the repetition, the rest runs in this process.
    A promise that is broken is a failed result, whatever was raised. Raises ConfigError on an
    unknown task and EnvironmentUnavailableError where the simulator is missing.
    """
    if copies < 2 or steps < 2:
        raise ValueError(f"copies = {copies} and steps = {steps}: both must be at least 2")
    subject = CheckedEnv(
        config,
        copies=copies,
        steps=steps,
        seed=seed,
        workers=workers,
        whole_episodes=whole_episodes,
        device=device,
    )
    with closing(subject):
        results = [_run(subject, ROLLOUT, _roll_out)]
        report(results[0])
        for name, check in CHECKS.items():
            if results[0].verdict == "failed":
                result = CheckResult(subject.spec.label, name, "skipped", "the rollout failed", 0.0, 0.0)
            else:
                result = _run(subject, name, check)
            report(result)
            results.append(result)
    return results


def _roll_out(subject: CheckedEnv) -> str:
    """Make the environment, reset it, step it, save it."""
    steps = subject.reference.recording.steps
    return f"{subject.copies} copies, {steps} steps"


def _run(subject: CheckedEnv, name: str, check: Check) -> CheckResult:
    wall, cpu, workers_cpu = time.perf_counter(), time.process_time(), subject.workers_cpu_s
    verdict: Verdict = "passed"
    try:
        detail = check(subject)
    except NotApplicable as reason:
        verdict, detail = "skipped", str(reason)
    except ContractBroken as reason:
        verdict, detail = "failed", str(reason)
    except EnvironmentUnavailableError:
        raise
    except _RAISED as error:
        verdict, detail = "failed", f"{type(error).__name__}: {error}"
    return CheckResult(
        environment=subject.spec.label,
        name=name,
        verdict=verdict,
        detail=detail,
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu + subject.workers_cpu_s - workers_cpu,
    )
