"""Conditions in SQL as users write them, for a DuckDB that reaches nothing but the tables that it is given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb

from patchmint.errors import InputError

_NODES = {"SUBQUERY": "a subquery", "WINDOW": "a window function"}
_MULTIPLYING = {"unnest", "generate_subscripts"}


def sandbox(threads: int = 1) -> duckdb.DuckDBPyConnection:
    """A database in memory, without files, network, extensions, and variables of this process."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "threads": str(threads),
    }
    base = duckdb.connect(":memory:", config=config)
    base.execute("SET lock_configuration = true")
    return base


@dataclass(frozen=True)
class Expression:
    """What an expression is made of.

    Attributes:
        columns: that it names, each once, in order.
        stars: whether it means columns without their names (`*`, `COLUMNS(...)`).
        functions: that it calls.
    """

    columns: tuple[str, ...]
    stars: bool
    functions: frozenset[str]


def check_expression(connection: duckdb.DuckDBPyConnection, written: str) -> Expression:
    """Refuse what isn't one expression, and what looks at other rows: tables are looked through one at a time.

    Args:
        connection: whose functions it may call.
        written: by the user.

    Returns:
        What it is made of.

    Raises:
        duckdb.Error: it isn't one expression: it would close our brackets, or begin a statement of its own.
        InputError: it has a subquery, a window function or an aggregate, or makes several rows of one; or it is
            nested too deeply to tell.
    """
    duckdb.SQLExpression(written)
    ((parsed,),) = connection.execute("SELECT json_serialize_sql($1)", [f"SELECT ({written}\n)"]).fetchall()
    aggregates = _aggregates()
    try:
        nodes = list(_objects(json.loads(parsed)))
    except RecursionError as error:
        raise InputError("it is nested too deeply; make it shorter") from error
    for node in nodes:
        function = node.get("function_name")
        why = _NODES.get(node.get("class", ""), "")
        if not why and function in aggregates:
            why = f"{function!r} is an aggregate"
        elif not why and function in _MULTIPLYING:
            why = f"{function!r} makes several rows of one"
        if why:
            raise InputError(f"it sees one sample at a time, but there is more to it: {why}")
    own = {name for node in nodes if node.get("class") == "LAMBDA" for name in _columns(_objects(node["lhs"]))}
    return Expression(
        columns=tuple(dict.fromkeys(name for name in _columns(nodes) if name not in own)),
        stars=any(node.get("class") == "STAR" for node in nodes),
        functions=frozenset(node["function_name"] for node in nodes if node.get("function_name")),
    )


@cache  # the list takes longer than all the rest
def _aggregates() -> frozenset[str]:
    """Names of DuckDB's aggregates."""
    listed = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'"
    with sandbox() as base:
        return frozenset(name for (name,) in base.execute(listed).fetchall())


def _columns(nodes: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (node["column_names"][0] for node in nodes if node.get("class") == "COLUMN_REF")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON document, outer ones first."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _objects(inner)
