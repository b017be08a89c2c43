"""Measures the house: lines, files, import circles, and how the rooms of a package hang together.

    python tools/house.py            # a table
    python tools/house.py --json
    python tools/house.py --repo DIR # another checkout of the project

Imports are read from the code itself, those inside functions and under `TYPE_CHECKING` included.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "patchmint"


def modules_of(root: Path) -> dict[str, Path]:
    """Every module of the package, by dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, modules: Mapping[str, Path], *, deferred: bool) -> set[str]:
    """Modules of the package that a file imports.

    Args:
        path: the file.
        modules: of the package.
        deferred: with imports inside functions, which run late and so can't make a circle at import time.
    """
    found = set()
    for node in _walk(ast.parse(path.read_text()), deferred=deferred):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules.keys()


def _walk(node: ast.AST, *, deferred: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if deferred or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, deferred=deferred)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or over others (strongly connected components, Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def room_of(module: str, hall: str) -> str:
    """The room below a hall that a module is in: `patchmint.pipeline.plan` for `patchmint.pipeline.plan.keys`."""
    return ".".join(module.split(".")[: hall.count(".") + 2])


def edges_between_rooms(graph: Mapping[str, set[str]], hall: str) -> set[tuple[str, str]]:
    """Pairs of rooms directly below a hall, of which the first imports the second."""
    inside = [name for name in graph if name.startswith(f"{hall}.")]
    pairs = {(room_of(name, hall), room_of(other, hall)) for name in inside for other in graph[name] if other in inside}
    return {(one, other) for one, other in pairs if one != other}


def measure(root: Path) -> dict[str, object]:
    """All figures of a checkout."""
    hall = f"{PACKAGE}.pipeline"
    modules = modules_of(root)
    at_import = {name: imports_of(path, modules, deferred=False) for name, path in modules.items()}
    graph = {name: imports_of(path, modules, deferred=True) for name, path in modules.items()}
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules.items()}
    lines = {folder: _lines(root / folder) for folder in (PACKAGE, "tests", "tools", "benchmarks", "examples")}
    room_graph: dict[str, set[str]] = {}
    for name in graph:
        room_graph.setdefault(room_of(name, PACKAGE), set())
    for one, other in edges_between_rooms(graph, PACKAGE):
        room_graph[one].add(other)
    return {
        "lines": lines[PACKAGE] + lines["tests"],
        "lines_by_folder": lines,
        "files": len(modules),
        "median_lines": int(statistics.median(lengths.values())),
        "longest_file": max(lengths, key=lambda name: lengths[name]),
        "circles": len(circles(at_import)) + len(circles(room_graph)),
        "circles_of_modules": circles(at_import),
        "circles_of_rooms": circles(room_graph),
        "room_imports": len(edges_between_rooms(graph, PACKAGE)),
        "pipeline_rooms": len({room_of(name, hall) for name in modules if name.startswith(f"{hall}.")}),
        "pipeline_imports": len(edges_between_rooms(graph, hall)),
    }


def _lines(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repo", type=Path, default=Path(__file__).parents[1], help="the checkout to measure")
    arguments = parser.parse_args()
    figures = measure(arguments.repo)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
