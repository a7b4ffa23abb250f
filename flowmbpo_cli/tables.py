"""Documents as tables and trees for people, on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree


def show(value: Any) -> str:
    """One value for people: thousands separated, four significant digits, '-' for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(item) for item in value) or "none"
    return str(value)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; columns of numbers are right-aligned."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        values = [row[index] for row in rows if row[index] is not None]
        numbers = bool(values) and all(isinstance(value, (int, float)) for value in values)
        table.add_column(Text(column), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(show(value)) for value in row))
    _print(table)


def print_records(title: str, columns: Mapping[str, str], records: Iterable[Mapping[str, Any]]) -> None:
    """A table of documents: `columns` maps the keys that are shown to what stands above them."""
    print_table(title, list(columns.values()), [[record[key] for key in columns] for record in records])


def print_pairs(title: str, document: Mapping[str, Any]) -> None:
    """Keys and values under each other."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, title_style="bold", pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in document.items():
        table.add_row(Text(key.replace("_", " "), style="dim"), Text(show(value)))
    _print(table)


def print_tree(title: str, content: Any) -> None:
    """A nested document."""
    tree = Tree(Text(title, style="bold"))
    _grow(tree, content)
    _print(tree)


def _print(content: Table | Tree) -> None:
    width = None if sys.stdout.isatty() else 160  # a pipe has no width of its own: do not wrap at 80
    Console(file=sys.stdout, width=width, highlight=False).print(content)


def _grow(tree: Tree, content: Any) -> None:
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, Mapping) or _is_list_of_mappings(value):
                _grow(tree.add(Text(str(key))), value)
            else:
                tree.add(Text(f"{key}: {show(value)}"))
    elif _is_list_of_mappings(content):
        for item in content:
            tree.add(Text("  ".join(f"{key} {show(value)}" for key, value in item.items())))
    else:
        tree.add(Text(show(content)))


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)
