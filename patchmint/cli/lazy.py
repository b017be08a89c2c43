"""Groups of commands whose modules are imported when a command is used, not for the list of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True)
class LazyCommand:
    """A command that isn't imported yet.

    Attributes:
        where: "MODULE:NAME" of its function, or of the `typer.Typer` of a group.
        summary: what the list of commands says: the first line of its docstring.
        examples: command lines for the end of its help; a group brings its own.
    """

    where: str
    summary: str
    examples: tuple[str, ...] = ()

    def load(self, name: str) -> Any:
        """Import it and make it a command of this name."""
        return _load(self, name)


@cache  # typer takes as long for the options of a command as many a command for its work
def _load(command: LazyCommand, name: str) -> Any:
    module, _, attribute = command.where.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, epilog=examples(*command.examples))(found)
    return typer.main.get_command(app)


class _LazyGroup(TyperGroup):
    table: ClassVar[Mapping[str, LazyCommand]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=command.summary) for name, command in self.table.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that was asked for, imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.table[name].load(name) if name is not None else command, rest


def lazy_group(commands: Mapping[str, LazyCommand]) -> type[TyperGroup]:
    """The class of a group with these commands, for `typer.Typer(cls=...)`, which needs a callback as well.

    Args:
        commands: by name, in the order of the list.
    """
    return type("LazyGroup", (_LazyGroup,), {"table": commands})


def examples(*commands: str) -> str:
    """Epilog of `--help`: one command a line, so that it can be pasted (a blank line keeps typer from joining them)."""
    return "\n\n".join(("Examples:", *(f"  {command}" for command in commands)))
