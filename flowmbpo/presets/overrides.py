"""`--set key=value`: parsing, checking, and the name that a changed config gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from flowmbpo.config.base import FrozenConfig
from flowmbpo.config.experiment import ExperimentConfig, config_differences
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.schema import dotted_keys, merge, takes_text_only
from flowmbpo.presets.yaml import KeyPath, PresetDocument, SourceLine, parse_value

# These are in the run directory's path already, or have a flag of their own that leaves the name alone.
_UNNAMED = (
    *("name", "phase", "description", "cost", "seed", "device", "task.name", "task.only", "tracking.sinks"),
    *("data.path", "data.threads", "data.prefetch", "initial.checkpoint", "initial.sha256"),
)


def parse_settings(
    texts: Sequence[str],
    schema: type[FrozenConfig] = ExperimentConfig,
    flag: str = "--set",
    example: str = "training.gamma=0.99",
) -> PresetDocument:
    """One document for `schema` of all `texts` (key=value), given by `flag`; a later one wins over an earlier one.

    Raises ConfigError for a missing '=', a missing value, or a key that no variant of the schema has.
    """
    document = PresetDocument()
    for text in texts:
        path, value = _parse_setting(text, schema, flag, f"write key=value, for instance {flag} {example}")
        delta: Any = value
        for part in reversed(path):
            delta = {part: delta}
        document.data.update(merge(document.data, delta, None))
        for length in range(1, len(path) + 1):
            document.origins[path[:length]] = SourceLine(f"{flag} {text}")
        _mark(value, path, SourceLine(f"{flag} {text}"), document.origins)
    return document


def _mark(value: Any, path: KeyPath, origin: SourceLine, origins: dict[KeyPath, SourceLine]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            origins[(*path, key)] = origin
            _mark(inner, (*path, key), origin, origins)


def _parse_setting(text: str, schema: type[FrozenConfig], flag: str, usage: str) -> tuple[KeyPath, Any]:
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ConfigError(f"{flag} {text}: {usage}.")
    if key == "extends":
        raise ConfigError(f"{flag} {text}: 'extends' belongs in a preset file; choose another preset with --preset.")
    if key not in dotted_keys(schema):
        raise ConfigError(f"{flag} {text}: unknown key '{key}'.{_suggestion(key, dotted_keys(schema))}")
    path = tuple(key.split("."))
    if takes_text_only(schema, path):
        return path, _text(raw)
    if not raw:
        raise ConfigError(f"{flag} {text}: no value; {usage}, or 'null' where a key may be empty.")
    return path, parse_value(raw, f"{flag} {text}")


def _text(raw: str) -> str:
    """Free text is taken as written; one pair of quotes around all of it is removed."""
    if len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "'\"":
        unquoted = parse_value(raw, "text")
        if isinstance(unquoted, str):
            return unquoted
    return raw


def _suggestion(key: str, known: Sequence[str]) -> str:
    endings = [path for path in known if path.endswith(f".{key}")]
    if endings:
        return f" Did you mean {' or '.join(repr(path) for path in endings[:3])}?"
    if not any("." in path for path in known):
        return nearest(key, known) or f" Allowed: {', '.join(known)}."
    return nearest(key, known) or " See `flowmbpo presets show NAME` for the keys."


def config_name(preset: ExperimentConfig, changed: ExperimentConfig) -> str:
    """The name of `preset` with overrides: `name`, plus `+` and six hex digits where they changed it.

    `changed` is the same preset with the overrides applied. Resolved values are hashed: neither the order of the
    overrides counts, nor how a number is written (1e3, 1000), nor an override that repeats the preset's own value.
    Changes of task, seed, device and tracking sinks leave the name alone: the run directory holds the first two, the
    others do not belong to the experiment.
    """
    values = {d.key: d.b for d in config_differences(preset, changed) if d.key not in _UNNAMED}
    if not values:
        return changed.name
    return f"{changed.name}+{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]}"
