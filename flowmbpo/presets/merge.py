"""Laying one mapping of options over another, by the schema. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmbpo.config.base import FrozenConfig
from flowmbpo.presets.schema import KIND, default_kind, options, variant
from flowmbpo.presets.yaml import Document


def merge_documents(base: Document, delta: Document, model: type[FrozenConfig]) -> Document:
    """`delta` over `base`, both mappings for `model`; origins follow the values that win."""
    return Document(merge(base.data, delta.data, model), {**base.origins, **delta.origins})


def merge(base: Mapping[str, Any], delta: Mapping[str, Any], model: type[FrozenConfig] | None) -> dict[str, Any]:
    """Mappings merge key by key; lists and values replace.

    Where `delta` changes the `kind` of a section, keys of `base` that the new kind does not know are
    dropped and those it shares are kept. Unknown keys pass through: checking comes after merging.
    `model` None merges without a schema.
    """
    result = dict(base)
    for key, value in delta.items():
        below = result.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[key] = _merge_section(below, value, model, key)
        else:
            result[key] = value
    return result


def _merge_section(
    base: Mapping[str, Any], delta: Mapping[str, Any], model: type[FrozenConfig] | None, key: str
) -> dict[str, Any]:
    if model is None or key not in model.model_fields or not options(model, key):
        return merge(base, delta, None)
    old_kind = base.get(KIND)
    if len(options(model, key)) > 1 and old_kind is None:
        old_kind = default_kind(model, key)
    new_kind = delta.get(KIND, old_kind)
    target = variant(model, key, {KIND: new_kind})
    if target is not None and new_kind != old_kind:
        base = {name: value for name, value in base.items() if name in target.model_fields and name != KIND}
    result = merge(base, delta, target)
    if new_kind is not None:
        result[KIND] = new_kind
    return result
