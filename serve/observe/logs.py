"""Log lines of a serving process: text for people, or one JSON object a line for machines.

A line written while a request is answered names its id, whichever module writes it. No line holds what was
asked, answered or shown.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from casa_core.printable import printable
from serve.observe.record import current_request

LogFormat = Literal["text", "json"]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the request's id, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": _request_id(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if not line["request_id"]:
            del line["request_id"]
        return printable(json.dumps(line, ensure_ascii=False, default=str))


class TextFormatter(logging.Formatter):
    """``15:04:05 info casa.serve [req-…] message``; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        request_id = _request_id()
        where = f" [{request_id}]" if request_id and request_id not in record.getMessage() else ""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower()} {record.name}{where} {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logs(kind: LogFormat, *others: str) -> None:
    """Write this process's log lines of `casa` to standard error, in one form; called once, by the process.

    Other handlers of the process, such as Ray's, no longer get them.

    Args:
        others: Further loggers whose warnings are written in the same form.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter())
    for name in ("casa", *others):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING if name in others else logging.INFO)


def _request_id() -> str:
    record = current_request()
    return record.id if record is not None else ""
