"""Examples under `--help`, one a line, so that they can be pasted."""


def examples(*commands: str) -> str:
    """Epilog text; a blank line between commands keeps typer from joining them."""
    return "\n\n".join(("Examples:", *(f"  {command}" for command in commands)))
