"""What the config classes allow, read from their annotations; mappings laid over each other, and made typed configs.

A *variant* is one class of a union joined by `kind`; a field holds a section (config classes), a value, or either.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from flowmbpo.config.base import FrozenConfig
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.presets.yaml import KeyPath, PresetDocument

Config = TypeVar("Config", bound=FrozenConfig)

KIND = "kind"
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_BOUNDS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))
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


def kind_of(model: type[FrozenConfig]) -> str:
    """The `kind` of a variant."""
    return str(get_args(model.model_fields[KIND].annotation)[0])


def default_kind(model: type[FrozenConfig], key: str) -> str:
    """The variant that field `key`, a union, holds when nobody names one."""
    return kind_of(type(model.model_fields[key].get_default(call_default_factory=True)))


def variant(model: type[FrozenConfig], key: str, data: Mapping[str, Any]) -> type[FrozenConfig] | None:
    """The class that `data`, the section under `key`, is for; None if its `kind` is unknown."""
    classes = options(model, key)
    if len(classes) == 1:
        return classes[0]
    kind = data.get(KIND, default_kind(model, key))
    return next((cls for cls in classes if kind_of(cls) == kind), None)


@cache
def dotted_keys(model: type[FrozenConfig]) -> dict[str, bool]:
    """Every full key path of every variant, sections included, in the schema's order, and whether it is free text."""
    keys: dict[str, bool] = {}
    for key, info in model.model_fields.items():
        keys[key] = info.annotation is str
        for cls in options(model, key):
            for rest, is_text in dotted_keys(cls).items():
                keys[f"{key}.{rest}"] = is_text or keys.get(f"{key}.{rest}", False)
    return keys


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
        least = "".join(f", at least {item.min_length} of them" for item in metadata if isinstance(item, MinLen))
        return f"a list{count}, each item {_describe(args[0])}{least}"
    if isinstance(annotation, type) and issubclass(annotation, FrozenConfig):
        return "a mapping of keys"
    bounds = [
        f"{sign} {getattr(item, name):g}" for kind, name, sign in _BOUNDS for item in metadata if isinstance(item, kind)
    ]
    return str(_NAMES[annotation]) + (f" {' and '.join(bounds)}" if bounds else "")


def _flatten(metadata: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(item for part in metadata for item in (part.metadata if isinstance(part, FieldInfo) else (part,)))


def _either(parts: list[str]) -> str:
    unique = list(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def merge_documents(base: PresetDocument, delta: PresetDocument, model: type[FrozenConfig]) -> PresetDocument:
    """`delta` over `base`, both mappings for `model`; origins follow the values that win."""
    return PresetDocument(merge(base.data, delta.data, model), {**base.origins, **delta.origins})


def merge(base: Mapping[str, Any], delta: Mapping[str, Any], model: type[FrozenConfig] | None) -> dict[str, Any]:
    """Mappings merge key by key; lists and values replace.

    Where `delta` changes the `kind` of a section, keys of `base` that the new kind does not know are dropped and those
    it shares are kept. Unknown keys pass through: checking comes after merging. `model` None merges without a schema.
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
    data = _with_kinds(document.data, schema)
    try:
        return schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        messages: list[str] = []
        for detail in error.errors():
            path, text = _finding(detail, data, schema)
            above = (document.origins.get(path[:length]) for length in range(len(path), 0, -1))
            messages.append(f"{next(filter(None, above), source)}: {text}")
        messages = list(dict.fromkeys(messages))
        more = len(messages) - _SHOWN
        tail = [f"... and {more} more"] if more > 0 else []
        raise ConfigError("\n".join(messages[:_SHOWN] + tail)) from error


def _with_kinds(data: Mapping[str, Any], model: type[FrozenConfig]) -> dict[str, Any]:
    """`data` with the `kind` written out in every section that leaves it to the schema's default."""
    result = dict(data)
    for key, value in data.items():
        if isinstance(value, Mapping) and key in model.model_fields and options(model, key):
            named = {KIND: default_kind(model, key), **value} if len(options(model, key)) > 1 else value
            cls = variant(model, key, named)
            result[key] = named if cls is None else _with_kinds(named, cls)
    return result


def _finding(detail: ErrorDetails, data: Mapping[str, Any], schema: type[FrozenConfig]) -> tuple[KeyPath, str]:
    """Of one of pydantic's findings, the key path (the nearest origin above it is told) and what to say of it."""
    path, holder, key, inside, value = _locate(detail["loc"], data, schema)
    dotted = ".".join(path)
    match detail["type"]:
        case "extra_forbidden":
            path = (*path, str(detail["loc"][-1]))
            others = [kind_of(cls) for cls in options(holder, key) if path[-1] in cls.model_fields] if key else []
            return path, _unknown(path, inside, others, schema)
        case "union_tag_invalid":
            kinds, wrong = [kind_of(cls) for cls in options(holder, key)], value[KIND]
            hint = f"Use {', '.join(kinds)}.{nearest(str(wrong), kinds)}"
            return (*path, KIND), f"{dotted}.{KIND}: {_show(wrong)} is not allowed. {hint}"
        case "value_error":
            return path, f"{dotted}: {detail['ctx']['error']}" if dotted else str(detail["ctx"]["error"])
    if value is _MISSING:
        return path, f"the key '{dotted}' is missing. Set it to {allowed(holder, key)}."
    if isinstance(value, Mapping) and not options(holder, key):
        return path, f"'{dotted}' is a value, not a section. Use {allowed(holder, key)}."
    return path, f"{dotted}: {_show(value)} is not allowed. Use {allowed(holder, key)}."


def _unknown(path: KeyPath, model: type[FrozenConfig], others: list[str], schema: type[FrozenConfig]) -> str:
    dotted = ".".join(path)
    if others:
        return f"'{dotted}' is not an option of kind '{kind_of(model)}'; it belongs to {', '.join(others)}."
    hint = nearest(path[-1], model.model_fields) or nearest(dotted, dotted_keys(schema))
    allowed_keys = f" Allowed: {', '.join(model.model_fields)}."
    return f"unknown key '{dotted}'.{hint or allowed_keys}"


def _locate(
    loc: tuple[int | str, ...], data: Mapping[str, Any], schema: type[FrozenConfig]
) -> tuple[KeyPath, type[FrozenConfig], str, type[FrozenConfig], Any]:
    """The key path behind pydantic's `loc`, which also names kinds and union members, and what is written there.

    Between them the class that has the last key, that key, and the class of the section under it.
    """
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
    return path, holder, key, model, value


def _show(value: Any) -> str:
    """The value as one writes it in YAML, shortened."""
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
