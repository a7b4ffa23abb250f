"""A config as dotted keys: for comparing, logging and showing. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowmbpo.config.experiment import ExperimentConfig

ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """One key that two configs hold differently; `(absent)` where a variant lacks the key."""

    key: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.a} -> {self.b}"


def flatten(config: ExperimentConfig) -> dict[str, Any]:
    """Every value by its dotted key, as JSON values, in the schema's order; an absent section is None."""
    return dict(_items(config.model_dump(mode="json"), ""))


def _items(data: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        found += _items(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def config_differences(a: ExperimentConfig, b: ExperimentConfig) -> list[Difference]:
    """The keys that differ, in the schema's order; empty for equal configs."""
    left, right = flatten(a), flatten(b)
    keys = list(dict.fromkeys([*left, *right]))
    pairs = [Difference(key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in keys]
    return [pair for pair in pairs if pair.a != pair.b]
