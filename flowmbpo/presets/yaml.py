"""Reading and writing YAML without its traps, keeping the file and line of every key.

Scalars follow the core schema of YAML 1.2: `1e3` and `3e-4` are numbers; `on`, `off`, `yes`, `no`,
`1:30` and `2024-01-01` are text. Duplicate keys, aliases and tags are refused. PyYAML implements
YAML 1.1, in which each of these goes wrong silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from flowmbpo.errors import ConfigError

KeyPath = tuple[str, ...]

_TAG = "tag:yaml.org,2002:"
_WORDS = {
    **dict.fromkeys(("null", "Null", "NULL", "~", "")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_EXACT = 2**53  # largest integer up to which every float is exact


@dataclass(frozen=True)
class PresetDocument:
    """A mapping and where each of its keys was written, by path from the root: `file:line`, or a flag as given."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Composes nodes only, and no aliases; plain scalars are left unresolved for `_scalar`."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """PyYAML's, which would share one node between an alias and its anchor."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            assert event.start_mark is not None
            raise ConfigError(
                f"{self.name}:{event.start_mark.line + 1}: aliases (*{event.anchor}) are not supported; "
                "repeat the value, or share it through `extends`."
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would read as something other than text."""


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, (dict, list)) for item in value)
    return dumper.represent_sequence(f"{_TAG}seq", value, flow_style=flow)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_implicit_resolver(f"{_TAG}float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
_Dumper.add_implicit_resolver(f"{_TAG}int", re.compile(rf"^(?:{_INT.pattern})$"), list("-+0123456789"))


def parse_document(text: str, source: str) -> PresetDocument:
    """The mapping in `text`; `source` is the file's name in messages. Raises ConfigError."""
    node = _compose(text, source)
    if node is None:
        return PresetDocument()
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_origin(node, source)}: a preset is a mapping of keys (`key: value` lines), this is not.")
    origins: dict[KeyPath, str] = {}
    return PresetDocument(_mapping(node, source, (), origins), origins)


def parse_value(text: str, source: str) -> Any:
    """One YAML value (scalar, list or mapping), as in `--set key=VALUE`. Raises ConfigError."""
    node = _compose(text, source)
    return None if node is None else _value(node, source, (), {})


def dump_document(data: Mapping[str, Any]) -> str:
    """YAML text that `parse_document` (and any YAML 1.1 reader) reads back as `data`."""
    text: str = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=100)
    return text


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        loader.name = source
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = source if mark is None else f"{source}:{mark.line + 1}"
        hint = " Indent with spaces, not tabs." if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}.{hint}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error


def _origin(node: yaml.Node, source: str) -> str:
    return f"{source}:{node.start_mark.line + 1}"


def _value(node: yaml.Node, source: str, path: KeyPath, origins: dict[KeyPath, str]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, source, path, origins)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, source)
    return [_value(item, source, (*path, str(i)), {}) for i, item in enumerate(node.value)]


def _mapping(node: yaml.MappingNode, source: str, path: KeyPath, origins: dict[KeyPath, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        origin = _origin(key_node, source)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{origin}: a key must be a word.")
        key = str(key_node.value)
        here = (*path, key)
        if key in result:
            where = f" (first on line {origins[here].rpartition(':')[2]})"
            raise ConfigError(f"{origin}: duplicate key '{'.'.join(here)}'{where}. Remove one of them.")
        origins[here] = origin
        result[key] = _value(value_node, source, here, origins)
    return result


def _scalar(node: yaml.ScalarNode, source: str) -> Any:
    text = str(node.value)
    if node.tag != f"{_TAG}str":
        raise ConfigError(f"{_origin(node, source)}: the tag '{node.tag}' is not supported; write a plain value.")
    if node.style is not None:  # quoted or block text is text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if not _FLOAT.fullmatch(text):
        return text
    value = float(re.sub(r"\.(?=[a-zA-Z])", "", text))  # Python spells .inf and .nan without the dot
    # 1e3 is 1000, so that it fits an integer key as well as a number key
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value
