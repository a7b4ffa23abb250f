"""`--planner-set key=value`: from texts to the planner's options. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from flowmbpo.config.planner import MPPIConfig
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.schema import allowed
from flowmbpo.presets.yaml import parse_value


def mppi_config(settings: Sequence[str]) -> MPPIConfig:
    """The default planner with `settings` (each `key=value`, a later one wins) applied.

    Raises ConfigError naming the setting, its value and what is allowed.
    """
    values: dict[str, Any] = {}
    for text in settings:
        key, equals, raw = (part.strip() for part in text.partition("="))
        if not equals or not key or not raw:
            raise ConfigError(f"--planner-set {text}: write key=value, for instance --planner-set horizon=5.")
        if key not in MPPIConfig.model_fields:
            hint = nearest(key, MPPIConfig.model_fields) or f" Allowed: {', '.join(MPPIConfig.model_fields)}."
            raise ConfigError(f"--planner-set {text}: unknown key '{key}'.{hint}")
        values[key] = parse_value(raw, f"--planner-set {text}")
    try:
        return MPPIConfig.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "value_error":
            raise ConfigError(f"--planner-set: {detail['ctx']['error']}.") from error
        key = str(detail["loc"][0])
        raise ConfigError(
            f"--planner-set {key}={json.dumps(values[key])}: is not allowed. Use {allowed(MPPIConfig, key)}."
        ) from error
