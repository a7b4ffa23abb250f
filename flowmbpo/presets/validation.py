"""Turning a mapping into a typed config, or into one short message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flowmbpo.config.base import FrozenConfig
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.schema import KIND, allowed, default_kind, dotted_keys, kind_of, kinds_knowing, options, variant
from flowmbpo.presets.yaml import Document, KeyPath

Config = TypeVar("Config", bound=FrozenConfig)

_MISSING = object()
_SHOWN = 5  # messages shown at once


def validate(document: Document, source: str, schema: type[Config]) -> Config:
    """The typed `schema` of a merged document; `source` names it where a key has no origin.

    Values are strict (text is never taken for a number, nor 'yes' for a boolean), except that a
    whole float counts as an integer. Raises ConfigError naming origin, key, value and what is allowed.
    """
    reporter = _Reporter(document, source, schema)
    data = _closed(document.data, schema, (), reporter)
    try:
        return schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        messages = list(dict.fromkeys(reporter.describe(detail, data) for detail in error.errors()))
        more = len(messages) - _SHOWN
        tail = [f"... and {more} more"] if more > 0 else []
        raise ConfigError("\n".join(messages[:_SHOWN] + tail)) from error


@dataclass(frozen=True)
class _Reporter:
    """Builds messages with the origin of the nearest key that has one."""

    document: Document
    source: str
    schema: type[FrozenConfig]

    def where(self, path: KeyPath) -> str:
        """The origin of the key at `path`, or of the section that holds it."""
        for length in range(len(path), 0, -1):
            origin = self.document.origins.get(path[:length])
            if origin is not None:
                return str(origin)
        return self.source

    def describe(self, detail: ErrorDetails, data: Mapping[str, Any]) -> str:
        """One of pydantic's findings as `origin: key: value is not allowed: what is`."""
        path, model, key, value = _locate(detail["loc"], data, self.schema)
        where, dotted = self.where(path), ".".join(path)
        if detail["type"] == "value_error":
            prefix = f"{dotted}: " if dotted else ""
            return f"{where}: {prefix}{detail['ctx']['error']}"
        if value is _MISSING:
            return f"{where}: the key '{dotted}' is missing. Set it to {allowed(model, key)}."
        return f"{where}: {dotted}: {_show(value)} is not allowed. Use {allowed(model, key)}."


def _closed(data: Mapping[str, Any], model: type[FrozenConfig], path: KeyPath, report: _Reporter) -> dict[str, Any]:
    """`data` with every section's `kind` written out; refuses keys that `model` does not have."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        here = (*path, key)
        if key not in model.model_fields:
            raise ConfigError(_unknown(here, model, report))
        if not isinstance(value, Mapping):
            result[key] = value
        elif options(model, key):
            result[key] = _section(value, model, key, here, report)
        else:
            below = (*here, next(iter(value), key))
            raise ConfigError(
                f"{report.where(below)}: '{'.'.join(here)}' is a value, not a section. Use {allowed(model, key)}."
            )
    return result


def _section(
    value: Mapping[str, Any], model: type[FrozenConfig], key: str, here: KeyPath, report: _Reporter
) -> dict[str, Any]:
    cls = variant(model, key, value)
    if cls is None:
        kinds = [str(kind_of(member)) for member in options(model, key)]
        dotted, wrong = ".".join((*here, KIND)), value[KIND]
        hint = nearest(str(wrong), kinds)
        raise ConfigError(
            f"{report.where((*here, KIND))}: {dotted}: {_show(wrong)} is not allowed. Use {', '.join(kinds)}.{hint}"
        )
    if len(options(model, key)) > 1 and KIND not in value:
        value = {KIND: default_kind(model, key), **value}
    for name in value:
        others = kinds_knowing(model, key, name)
        if name not in cls.model_fields and others:
            raise ConfigError(
                f"{report.where((*here, name))}: '{'.'.join((*here, name))}' is not an option of kind "
                f"'{kind_of(cls)}'; it belongs to {', '.join(others)}."
            )
    return _closed(value, cls, here, report)


def _unknown(path: KeyPath, model: type[FrozenConfig], report: _Reporter) -> str:
    dotted = ".".join(path)
    hint = nearest(path[-1], model.model_fields)
    if not hint:
        hint = nearest(dotted, dotted_keys(report.schema)) or f" Allowed: {', '.join(model.model_fields)}."
    return f"{report.where(path)}: unknown key '{dotted}'.{hint}"


def _locate(
    loc: tuple[int | str, ...], data: Mapping[str, Any], schema: type[FrozenConfig]
) -> tuple[KeyPath, type[FrozenConfig], str, Any]:
    """The key path behind pydantic's `loc`, which also names kinds and union members, and what is written there."""
    path: KeyPath = ()
    model = holder = schema
    key = ""
    value: Any = data
    for part in loc:
        inside = not key or bool(options(holder, key))
        if not (inside and isinstance(part, str) and part in model.model_fields):
            continue  # a kind, a union member, or the index of a list item
        path, holder, key = (*path, part), model, part
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
        if options(holder, key):
            model = variant(holder, key, value if isinstance(value, Mapping) else {}) or model
    return path, holder, key, value


def _show(value: Any) -> str:
    """The value as one writes it in YAML, shortened."""
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
