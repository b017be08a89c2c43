"""Log lines, for whoever looks for a fault: of patchmint's processes and of the libraries in them.

As text, or as JSON for programs: then each line that a process writes to stderr is an object of its own.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO, cast

VARIABLE = "PATCHMINT_LOG_LEVEL"
FORMAT_VARIABLE = "PATCHMINT_LOG_FORMAT"
_RAY_PREFIX = re.compile(r"^\(\S+ pid=\d+(?:, ip=\S+)?\) (?={)")
_known: dict[str, Any] = {}


class LogLevel(StrEnum):
    """The least important lines that are shown."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


class LogFormat(StrEnum):
    """How lines on stderr look."""

    TEXT = "text"
    JSON = "json"


def start_logging(level: LogLevel | None = None, form: LogFormat | None = None) -> None:
    """Show log lines on stderr from a level on, in this process and in those that it starts.

    Args:
        level: None: what the environment says; what it doesn't know leaves everything as Python has it.
        form: text or JSON. None: what the environment says, or text.
    """
    for variable, value in ((VARIABLE, level), (FORMAT_VARIABLE, form)):
        if value is not None:
            os.environ[variable] = value
    asked = os.environ.get(VARIABLE, "").lower()
    known = asked.upper() if asked in list(LogLevel) else None
    if in_json():
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # "[repeated 2x across cluster]" after an object is no JSON
        if not isinstance(sys.stderr, _ObjectPerLine):
            sys.stderr = cast(TextIO, _ObjectPerLine(sys.stderr))
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter())
        logging.basicConfig(level=known or logging.WARNING, handlers=[handler], force=True)
    elif known:
        logging.basicConfig(
            level=known, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s", force=True
        )


def in_json() -> bool:
    """Whether lines on stderr are JSON objects."""
    return os.environ.get(FORMAT_VARIABLE, "").lower() == LogFormat.JSON


def log_variables() -> Mapping[str, str]:
    """What another process needs in its environment to log as this one does."""
    return {name: os.environ[name] for name in (VARIABLE, FORMAT_VARIABLE) if name in os.environ}


def know(**fields: Any) -> None:
    """Have each JSON line of this process say something from now on, such as the run it belongs to; None: no more."""
    _known.update(fields)


def json_line(event: str, message: str, level: int = logging.INFO, **fields: Any) -> str:
    """One line of JSON: `time` (ISO 8601, UTC), `level`, `event`, `message`, `pid`, what is known, and `fields`."""
    head = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(level).lower(),
        "event": event,
        "message": message,
        "pid": os.getpid(),
    }
    known = {name: value for name, value in _known.items() if value is not None}
    return json.dumps(head | known | fields, default=str)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return json_line("log", record.getMessage(), record.levelno, logger=record.name, **trace)


class _ObjectPerLine:
    """A stderr that makes an object of each line that is none: of warnings, tracebacks, and what libraries print."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rest = ""
        self._one_at_a_time = threading.RLock()
        atexit.register(lambda: self._rest and self.write("\n"))

    def write(self, text: str) -> int:
        with self._one_at_a_time:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in filter(str.strip, lines):
                self._stream.write(_as_object(line) + "\n")
            self._stream.flush()
        return len(text)

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _as_object(line: str) -> str:
    inner = _RAY_PREFIX.sub("", line)  # a worker's object, which Ray brings to the driver
    try:
        if isinstance(json.loads(inner), dict):
            return inner
    except ValueError:
        pass
    return json_line("output", line)
