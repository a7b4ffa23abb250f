"""`--set key=value` and what else overrides a preset: parsed, and what it makes of the experiment's name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmbpo.config.base import FrozenConfig
from flowmbpo.config.experiment import ExperimentConfig, config_differences
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.schema import dotted_keys, merge
from flowmbpo.presets.yaml import KeyPath, PresetDocument, parse_value

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
    document, known = PresetDocument(), dotted_keys(schema)
    usage = f"write key=value, for instance {flag} {example}"
    for text in texts:
        said, (key, equals, raw) = f"{flag} {text}", (part.strip() for part in text.partition("="))
        path = tuple(key.split("."))
        if not equals or not key:
            raise ConfigError(f"{said}: {usage}.")
        if key == "extends":
            raise ConfigError(f"{said}: 'extends' belongs in a preset file; choose another preset with --preset.")
        if key not in known:
            raise ConfigError(f"{said}: unknown key '{key}'.{_suggestion(key, list(known))}")
        as_written = known[key]
        if not raw and not as_written:
            raise ConfigError(f"{said}: no value; {usage}, or 'null' where a key may be empty.")
        delta: Any = _text(raw) if as_written else parse_value(raw, said)
        for part in reversed(path):
            delta = {part: delta}
        document.data.update(merge(document.data, delta, None))
        document.origins.update(dict.fromkeys(_paths(delta), said))
    return document


def _paths(data: Mapping[str, Any], above: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in data.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*above, key))


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
