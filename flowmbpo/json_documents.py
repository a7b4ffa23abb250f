"""Dataclasses as JSON documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Document:
    """Base of a frozen dataclass that is a JSON object: its fields, then the properties that `derived` names."""

    derived: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        names = (*(field.name for field in fields(self)), *self.derived)
        return {name: plain(getattr(self, name)) for name in names}


def plain(value: Any) -> Any:
    """`value` in plain dicts, lists, numbers and strings; nan and infinity stay (see `json_value`)."""
    if isinstance(value, Document):
        return value.to_dict()
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def json_value(value: Any) -> Any:
    """`plain` value as JSON can hold it: nan and infinity become null."""
    value = plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: json_value(inner) for key, inner in value.items()}
    return [json_value(inner) for inner in value] if isinstance(value, list) else value
