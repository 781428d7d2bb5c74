"""The library's floors: a module imports from its own floor and from those below it, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import polydetox

LIBRARY = Path(polydetox.__file__).parent

# From the ground up; of each floor the packages and the modules at the root.
FLOORS = {
    "core": "core quarto",
    "data and models": "data models",
    "measuring": "generation scoring stats metrics training",
    "results": "results",
    "chapters": "preference evaluation mechanism transfer attribute_control benchmarks synthetic scorer",
    "report": "report publish execute opening workflow preflight cluster",
    "command line": "cli __main__",
}
FLOOR = {name: floor for floor, names in enumerate(FLOORS.values()) for name in names.split()}
CHAPTERS = FLOORS["chapters"].split()


LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 450, 60


def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package, which itself is the empty name."""
    found = {}
    for file in LIBRARY.rglob("*.py"):
        parts = file.relative_to(LIBRARY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Whatever a module imports from this package, within functions as well, but not for a type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if (node.module or "").split(".")[0] == "polydetox":
                yield from (f"{node.module}.{alias.name}".removeprefix("polydetox.") for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (name.removeprefix("polydetox.") for name in names if name.startswith("polydetox."))
        yield from imports(node)


@cache
def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = modules()
    found = {}
    for name, file in known.items():
        targets = {target if target in known else target.rpartition(".")[0] for target in imports(
            ast.parse(file.read_text("utf-8")))}  # fmt: skip
        found[name] = (targets & set(known)) - {name, ""}
    return found


def part(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_has_a_floor_and_there_are_at_most_eight():
    assert len(FLOORS) <= 8
    assert not {part(name) for name in graph()} - {*FLOOR, ""}, "give a new package or module its floor above"


def test_nothing_imports_upward():
    upward = {
        (module, target)
        for module, targets in graph().items()
        for target in targets
        if module and FLOOR[part(target)] > FLOOR[part(module)]
    }
    assert not upward


def test_what_two_chapters_need_is_one_floor_down():
    between = {
        (module, target)
        for module, targets in graph().items()
        for target in targets
        if part(module) != part(target) and {part(module), part(target)} <= set(CHAPTERS)
    }
    assert not between


def test_no_file_and_no_function_is_long():
    trees = {module: (text := file.read_text("utf-8"), ast.parse(text)) for module, file in modules().items()}
    assert not [module for module, (text, _) in trees.items() if len(text.splitlines()) > LINES_OF_A_FILE]
    long = {
        f"{module}: {node.name}"
        for module, (_, tree) in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= LINES_OF_A_FUNCTION
    }
    assert not long


def test_no_modules_import_one_another_in_a_circle():
    rest = {module: set(targets) for module, targets in graph().items()}
    while free := [module for module, targets in rest.items() if not targets & set(rest)]:
        for module in free:
            del rest[module]
    assert not rest, f"a circle among {', '.join(sorted(rest))}"
