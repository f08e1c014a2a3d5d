"""How a line of log looks: as text, or as one JSON object. Whatever it quotes, it stays one line.

A record may carry `fields` (a mapping), which become keys of the object, or `key=value` at the end of the text.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

log = logging.getLogger("lorachat")

# Set by us at the start of every line of a traceback, so that none of them can pass for a line of log.
CONTINUATION = "  | "


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE key=value …`, times in UTC. Control characters are shown as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {escaped(record.getMessage())}{fields}"
        trace = _trace(self, record)
        if trace:
            lines = (f"{CONTINUATION}{escaped(part)}" for part in trace.splitlines())
            line = "\n".join((line, *lines))
        return line


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", …fields}` in ASCII; a traceback is the text under `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in _fields(record).items() if name not in line}
        trace = _trace(self, record)
        if trace:
            line["exception"] = trace
        return json.dumps(line, default=str)


FORMATTERS: Mapping[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def set_up(kind: str, level: str, stream: TextIO | None = None) -> None:
    """Everything that is logged, by whatever library, and what nobody caught, in one form on standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(FORMATTERS[kind]())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda failure: log.critical(
        "a thread failed: %s",
        failure.thread.name if failure.thread else "unknown",
        exc_info=failure.exc_value,
    )


def escaped(text: str) -> str:
    """The text with everything that is not printable as an escape: no new line, no colour, nothing hidden."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the program failed", exc_info=(kind, error, trace))


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _shown(value: object) -> str:
    """Plain where that can be read back without doubt, else a JSON string."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, str) and (
        not text or not text.isprintable() or any(char in text for char in ' "=\\')
    ):
        return json.dumps(text)
    return text


def _time(record: logging.LogRecord) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{stamp}.{int(record.msecs):03d}Z"


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
