"""Log lines, for whoever looks for a fault: of patchmint's processes and of the libraries in them."""

from __future__ import annotations

import logging
import os
from enum import StrEnum

VARIABLE = "PATCHMINT_LOG_LEVEL"


class LogLevel(StrEnum):
    """The least important lines that are shown."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


def start_logging(level: LogLevel | None = None) -> None:
    """Show log lines on stderr from a level on, in this process and in those that it starts.

    Args:
        level: None: what the environment says; what it doesn't know leaves everything as Python has it.
    """
    if level is not None:
        os.environ[VARIABLE] = level
    asked = os.environ.get(VARIABLE, "").upper()
    if asked.lower() in list(LogLevel):
        logging.basicConfig(
            level=asked, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s", force=True
        )
