"""Running the contract over environments, with a line of progress for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.inspection.contract import check_environment
from flowmbpo.envs.inspection.result import CheckResult
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import EnvironmentUnavailableError

QUICK_STEPS = 60


@dataclass
class Inspection:
    """What was found: one document per environment, and the names of those that could not be checked."""

    environments: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether something was checked and no check failed."""
        return bool(self.environments) and all(environment["ok"] for environment in self.environments)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {"ok": self.ok, "environments": self.environments, "left_out": self.left_out}


def inspect(
    configs: Sequence[TaskConfig],
    progress: Callable[[str], None],
    *,
    copies: int,
    steps: int,
    workers: int,
    quick: bool,
    seed: int,
    device: str,
) -> Inspection:
    """Check every environment in turn; `quick` takes fewer steps, no worker processes, no whole episodes.

    One that turns out not to run here is left out where there are others; alone it raises
    EnvironmentUnavailableError.
    """
    found = Inspection()
    for place, config in enumerate(configs, start=1):
        label = resolve(config).spec.label
        begun = time.perf_counter()
        try:
            results = check_environment(
                config,
                copies=copies,
                steps=min(steps, QUICK_STEPS) if quick else steps,
                seed=seed,
                workers=0 if quick else workers,
                whole_episodes=not quick,
                device=device,
            )
        except EnvironmentUnavailableError as error:
            if len(configs) == 1:
                raise
            found.left_out.append({"name": label, "reason": str(error)})
            progress(f"[{place}/{len(configs)}] {label}: cannot run here")
            continue
        found.environments.append(_document(label, results, time.perf_counter() - begun))
        progress(f"[{place}/{len(configs)}] {label}: {_summary(results)}")
    return found


def _document(label: str, results: Sequence[CheckResult], wall_s: float) -> dict[str, Any]:
    checks = [result.to_dict() for result in results]
    for check in checks:
        del check["environment"]  # it stands once, above them
    return {
        "name": label,
        "ok": all(result.verdict != "failed" for result in results),
        "wall_s": wall_s,
        "cpu_s": sum(result.cpu_s for result in results),
        "checks": checks,
    }


def _summary(results: Sequence[CheckResult]) -> str:
    failed = [result.name for result in results if result.verdict == "failed"]
    cpu = sum(result.cpu_s for result in results)
    verdict = f"FAILED: {', '.join(failed)}" if failed else "passed"
    return f"{verdict} ({cpu:.1f} CPU-s)"
