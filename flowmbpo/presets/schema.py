"""What the config classes allow, read from their annotations, and laying one mapping of options over another.

A *variant* is one class of a union joined by `kind`; a field holds a section (config classes),
a value, or either.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flowmbpo.config.base import FrozenConfig
from flowmbpo.presets.yaml import Document

KIND = "kind"
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}


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
