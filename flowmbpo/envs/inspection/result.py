"""What a check of an environment found. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["passed", "failed", "skipped"]


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

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


class ContractBroken(Exception):
    """Raised by a check that found a promise broken; the message becomes the result's detail."""


class NotApplicable(Exception):
    """Raised by a check that has nothing to ask of this environment; the message says why."""


def require(kept: bool, broken: str) -> None:
    """Raise ContractBroken, saying how, unless the promise is kept."""
    if not kept:
        raise ContractBroken(broken)
