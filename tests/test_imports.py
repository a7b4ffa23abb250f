"""Imports point one way without exception, and configuration stays free of torch. Read from the syntax trees.

Imports under `if TYPE_CHECKING:` do not count. Imports inside functions count for the direction and for circles, not
for what importing a module costs.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numpy", "wandb", "mujoco", "dm_control", "matplotlib"}
# The rooms from the bottom up: a module imports from its own room and from those before it.
LAYERS = (
    ("flowmbpo.json_documents", "flowmbpo.errors", "flowmbpo.files", "flowmbpo.spec"),
    ("flowmbpo.config",),
    ("flowmbpo.presets", "flowmbpo.nets"),
    ("flowmbpo.flows", "flowmbpo.envs"),
    ("flowmbpo.data",),
    ("flowmbpo.models",),
    ("flowmbpo.training",),
    ("flowmbpo.parity",),
    ("flowmbpo.checkpoints", "flowmbpo.tracking"),
    ("flowmbpo.stages", "flowmbpo.planning"),
    ("flowmbpo.evaluation", "flowmbpo.diagnostics"),
    ("flowmbpo.runs",),
    ("flowmbpo_cli",),
)


@dataclass(frozen=True)
class Imports:
    """Names of imported modules: at import time, and anywhere in the file."""

    eager: frozenset[str]
    every: frozenset[str]


def read_imports(source, module, is_package=False):
    """The imports of one file, absolute; `from a import b` gives both `a` and `a.b`."""
    eager, every = set(), set()

    def visit(node, deferred):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            children = node.orelse
        else:
            children = ast.iter_child_nodes(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = imported_names(node, module, is_package)
            every.update(names)
            if not deferred:
                eager.update(names)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in children:
            visit(child, inside)

    visit(ast.parse(source), deferred=False)
    return Imports(frozenset(eager), frozenset(every))


def imported_names(node, module, is_package):
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = node.module or ""
    if node.level:
        kept = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
        base = ".".join([*kept, base] if base else kept)
    return {base} | {f"{base}.{alias.name}" for alias in node.names}


def read_tree():
    """Every module of the product with its imports."""
    found = {}
    for package in ("flowmbpo", "flowmbpo_cli"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            found[module] = read_imports(path.read_text(encoding="utf-8"), module, is_package)
    return found


TREE = read_tree()


def layer(module):
    """The layer whose prefix fits `module` best; the package's own __init__ belongs to the foundation."""
    if module == "flowmbpo":
        return 0
    fits = [
        (len(prefix), number)
        for number, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    assert fits, f"{module} has no place in LAYERS: add it where its imports allow"
    return max(fits)[1]


def against_the_direction(tree):
    """(importer, imported) pairs that point upwards."""
    return [
        (module, target)
        for module, imports in tree.items()
        for target in sorted(imports.every & TREE.keys())
        if layer(target) > layer(module)
    ]


def circle(tree):
    """Modules that import each other in a ring, imports inside functions included; None where there is no ring."""
    graph = {module: (imports.every & tree.keys()) - {module} for module, imports in tree.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return None


def eager_closure(module):
    """All that importing `module` imports: product modules, parent packages and outside packages."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        if name in TREE:
            waiting.extend(TREE[name].eager)
    return seen


def is_light(module):
    """Modules that presets, runs and the start of the command line need without torch."""
    return module.startswith(("flowmbpo.config", "flowmbpo.presets")) or module in (
        *("flowmbpo", "flowmbpo.errors", "flowmbpo.files", "flowmbpo.spec"),
        *("flowmbpo.envs.tasks", "flowmbpo.envs.resolve", "flowmbpo_cli.main"),
    )


LIGHT = sorted(filter(is_light, TREE))


def test_imports_point_one_way():
    assert against_the_direction(TREE) == []


def test_no_circle_even_among_lazy_imports():
    assert circle(TREE) is None


def test_a_lazy_circle_is_found():
    tree = {"a": read_imports("def f():\n    import b", "a"), "b": read_imports("import a", "b")}
    assert set(circle(tree)) == {"a", "b"}


@pytest.mark.parametrize("module", LIGHT)
def test_configuration_imports_nothing_heavy(module):
    assert not HEAVY & eager_closure(module)


def test_configuration_loads_without_torch_in_a_fresh_interpreter():
    """Third-party packages count too, which the syntax trees do not show."""
    code = f"import sys, importlib; [importlib.import_module(m) for m in {LIGHT}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "flowmbpo.errors" in loaded
    assert not HEAVY & loaded


def test_the_reading_of_imports():
    source = """
from typing import TYPE_CHECKING
import a.b
from . import sibling
from ..up import thing
if TYPE_CHECKING:
    import unseen
else:
    import seen
class C:
    import inner
def build():
    from late import part
"""
    found = read_imports(source, "pkg.sub.module")
    assert found.every - found.eager == {"late", "late.part"}
    assert {"a.b", "pkg.sub.sibling", "pkg.up.thing", "seen", "inner"} <= found.eager
    assert "unseen" not in found.every
    assert "pkg.sub.sibling" in read_imports("from . import sibling", "pkg.sub", is_package=True).eager
    assert "pkg.up.thing" in read_imports("from ..up import thing", "pkg.sub", is_package=True).eager


def test_an_import_against_the_direction_is_found():
    source = "from flowmbpo.training import updates\nfrom flowmbpo.nets import mlp\n"
    assert against_the_direction({"flowmbpo.models.x": read_imports(source, "flowmbpo.models.x")}) == [
        ("flowmbpo.models.x", "flowmbpo.training"),
        ("flowmbpo.models.x", "flowmbpo.training.updates"),
    ]


def test_a_module_without_a_layer_is_refused():
    with pytest.raises(AssertionError, match=r"flowmbpo\.somewhere has no place"):
        layer("flowmbpo.somewhere")
