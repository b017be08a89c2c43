"""Text for terminals."""


def examples(*commands: str) -> str:
    """Epilog of `--help`: one command a line, so that it can be pasted (a blank line keeps typer from joining them)."""
    return "\n\n".join(("Examples:", *(f"  {command}" for command in commands)))
