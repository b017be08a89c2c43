"""Conditions in SQL over Arrow tables, one table at a time, by a DuckDB that reaches nothing but that table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import duckdb
import numpy as np
import pyarrow as pa

from patchmint.errors import InputError
from patchmint.sql import check_expression, sandbox
from patchmint.types import Integers

_TABLE = "shard"
_NUMBER = "index"
_DIRECTION = re.compile(r"\s+(asc|desc)\s*$", re.IGNORECASE)
_WORD = re.compile(r"\w+")


class Conditions:
    """Which rows meet all of some conditions, and in which order.

    What is kept is a number a row that does (8 bytes, and the value to sort by): tables can be added without end.

    Args:
        schema: of the tables, as they would be with all columns; conditions see another one, `index`: a row's number,
            counted through all tables from 0.
        own: conditions of ours, in SQL, with `$name` for values.
        values: of those names.
        where: a condition in SQL as the user wrote it; empty for none.
        sort: what to sort by, in SQL, as the user wrote it; may end in asc or desc. Empty: in the tables' order.

    Raises:
        InputError: the user's SQL is no condition over those columns.
    """

    def __init__(
        self, schema: pa.Schema, own: Sequence[str], values: Mapping[str, object], *, where: str = "", sort: str = ""
    ) -> None:
        self._values = dict(values)
        self._added = 0
        self._base = sandbox(threads=2)
        self._base.register(_TABLE, schema.empty_table())
        described = self._base.execute(f"DESCRIBE {_TABLE}").fetchall()
        self._form = ", ".join(f'"{name}" {kind}' for name, kind, *_ in (*described, (_NUMBER, "BIGINT")))
        by, self._descending = _sort_key(sort)
        for part in filter(str.strip, (where, by)):
            self._check(part)
        written = [*own, where] if where.strip() else list(own)
        self.columns = _columns(schema, [*own, where, by])
        # Lines of their own, so that a comment ends with its condition, and errors show nothing but the condition.
        condition = "\nAND\n".join(f"({part}\n)" for part in written) or "true"
        # Not from outside: each part was found to be one expression, and values are bound.
        self._select = f"SELECT {_NUMBER},\n({by or _NUMBER}\n) AS value FROM {_TABLE} WHERE\n{condition}"  # noqa: S608
        self._run(f"CREATE TABLE found AS {self._select}", schema.empty_table())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def add(self, table: pa.Table) -> None:
        """Look through the next table's rows; it must have `columns`, others don't matter.

        Raises:
            InputError: a condition can't be computed on these rows (a text that is no number, say).
        """
        self._run(f"INSERT INTO found {self._select}", table)
        self._added += table.num_rows

    @property
    def total(self) -> int:
        """Rows that met the conditions."""
        ((rows,),) = self._base.execute("SELECT count(*) FROM found").fetchall()
        return int(rows)

    def numbers(self, limit: int = 0) -> Integers:
        """Numbers of those rows, counted through all tables from 0, in order; the first `limit`, or all for 0."""
        direction = "DESC" if self._descending else "ASC"
        found = self._base.table("found").order(f"value {direction} NULLS LAST, {_NUMBER}")
        if limit:
            found = found.limit(limit)
        return np.asarray(found.fetchnumpy()[_NUMBER], np.int64)

    def _run(self, query: str, table: pa.Table) -> None:
        numbers = pa.array(np.arange(self._added, self._added + table.num_rows))
        self._base.register(_TABLE, table.append_column(_NUMBER, numbers))
        with self._explained():
            self._base.execute(query, self._values)

    def _check(self, written: str) -> None:
        with self._explained():
            check_expression(self._base, written)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.Error, InputError) as error:
            raise InputError(
                f"the condition can't be used: {error}\nIt is SQL (DuckDB's) over these columns: {self._form}"
            ) from error


def _sort_key(sort: str) -> tuple[str, bool]:
    direction = _DIRECTION.search(sort)
    if direction is None:
        return sort, False
    return sort[: direction.start()], direction[1].lower() == "desc"


def _columns(schema: pa.Schema, written: Sequence[str]) -> list[str]:
    """The columns that are named; all where they may be meant without their names."""
    words = {word.lower() for part in written for word in _WORD.findall(part)}
    if {"columns", _TABLE} & words or any("#" in part for part in written):
        return list(schema.names)
    return [name for name in schema.names if name in words] or [schema.names[0]]
