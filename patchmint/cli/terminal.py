"""Text for terminals."""


def examples(*commands: str) -> str:
    """Epilog of `--help`: one command a line, so that it can be pasted (a blank line keeps typer from joining them)."""
    return "\n\n".join(("Examples:", *(f"  {command}" for command in commands)))


def printable(text: str) -> str:
    """A text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
