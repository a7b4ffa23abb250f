"""What the config classes allow, read from their annotations; mappings laid over each other, and made typed configs.

A *variant* is one class of a union joined by `kind`; a field holds a section (config classes),
a value, or either.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from flowmbpo.config.base import FrozenConfig
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.yaml import KeyPath, PresetDocument

Config = TypeVar("Config", bound=FrozenConfig)

KIND = "kind"
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_MISSING = object()
_SHOWN = 5  # messages shown at once


@cache
def options(model: type[FrozenConfig], key: str) -> tuple[type[FrozenConfig], ...]:
    """The config classes that field `key` may hold; empty for a plain value."""
    return tuple(_config_classes(model.model_fields[key].annotation))


def _config_classes(annotation: Any) -> list[type[FrozenConfig]]:
    if isinstance(annotation, type) and issubclass(annotation, FrozenConfig):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in _config_classes(part)]


def kind_of(model: type[FrozenConfig]) -> str | None:
    """The `kind` of a variant; None for a class outside any union."""
    info = model.model_fields.get(KIND)
    return None if info is None else str(get_args(info.annotation)[0])


def default_kind(model: type[FrozenConfig], key: str) -> str | None:
    """The variant that field `key` holds when nobody names one."""
    default = model.model_fields[key].get_default(call_default_factory=True)
    if default is PydanticUndefined or default is None:
        return kind_of(options(model, key)[0])
    return kind_of(type(default))


def variant(model: type[FrozenConfig], key: str, data: Mapping[str, Any]) -> type[FrozenConfig] | None:
    """The class that `data`, the section under `key`, is for; None if its `kind` is unknown."""
    classes = options(model, key)
    if len(classes) == 1:
        return classes[0]
    kind = data.get(KIND, default_kind(model, key))
    return next((cls for cls in classes if kind_of(cls) == kind), None)


@cache
def dotted_keys(model: type[FrozenConfig]) -> tuple[str, ...]:
    """Every full key path of every variant, sections included, in the schema's order."""
    keys: dict[str, None] = {}
    for key in model.model_fields:
        keys[key] = None
        for cls in options(model, key):
            keys.update({f"{key}.{rest}": None for rest in dotted_keys(cls)})
    return tuple(keys)


def kinds_knowing(model: type[FrozenConfig], key: str, inner: str) -> list[str]:
    """The kinds of the union under `key` that have the key `inner`."""
    return [str(kind_of(cls)) for cls in options(model, key) if inner in cls.model_fields]


def takes_text_only(model: type[FrozenConfig], path: tuple[str, ...]) -> bool:
    """Whether the field at `path` is free text, in any variant."""
    key, *rest = path
    if key not in model.model_fields:
        return False
    if rest:
        return any(takes_text_only(cls, tuple(rest)) for cls in options(model, key))
    return model.model_fields[key].annotation is str


def allowed(model: type[FrozenConfig], key: str) -> str:
    """In words, what field `key` takes: 'an integer >= 1', \"'task' or a number from 0 to 1\"."""
    info = model.model_fields[key]
    classes = options(model, key)
    if len(classes) > 1:
        return f"a mapping with {KIND} {_either([repr(kind_of(cls)) for cls in classes])}"
    return _describe(info.annotation, tuple(info.metadata))


def _describe(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(args[0], (*_flatten(args[1:]), *metadata))
    if origin is Literal:
        return _either([repr(value) for value in args])
    if origin in (Union, types.UnionType):
        return _either([_describe(member, metadata) for member in args])
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f" of {len(args)}"
        return f"a list{count}, each item {_describe(args[0])}{_at_least(metadata)}"
    if isinstance(annotation, type) and issubclass(annotation, FrozenConfig):
        return "a mapping of keys"
    return str(_NAMES[annotation]) + _bounds(metadata)


def _flatten(metadata: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(item for part in metadata for item in (part.metadata if isinstance(part, FieldInfo) else (part,)))


def _at_least(metadata: tuple[Any, ...]) -> str:
    size = max((int(item.min_length) for item in metadata if isinstance(item, MinLen)), default=0)
    return f", at least {size} of them" if size else ""


def _bounds(metadata: tuple[Any, ...]) -> str:
    parts = [
        f"{sign} {getattr(item, kind.__name__.lower()):g}"
        for kind, sign in ((Ge, ">="), (Gt, ">"), (Le, "<="), (Lt, "<"))
        for item in metadata
        if isinstance(item, kind)
    ]
    return f" {' and '.join(parts)}" if parts else ""


def _either(parts: list[str]) -> str:
    unique = list(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def merge_documents(base: PresetDocument, delta: PresetDocument, model: type[FrozenConfig]) -> PresetDocument:
    """`delta` over `base`, both mappings for `model`; origins follow the values that win."""
    return PresetDocument(merge(base.data, delta.data, model), {**base.origins, **delta.origins})


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


def validate(document: PresetDocument, source: str, schema: type[Config]) -> Config:
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

    document: PresetDocument
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
