"""Lines of the log, for people and for programs: of a record that is about several requests, one for each."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import orjson

from router.causes.request_log import request_line


class AsText(logging.Formatter):
    """Time, level, who wrote it, logger, message."""

    def __init__(self, who: str = "") -> None:
        super().__init__(f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        requests = getattr(record, "requests", None)
        if requests is None:
            return super().format(record)
        message, record.msg = record.msg, ""
        head = super().format(record)
        record.msg = message
        return "\n".join([head + request_line(fields) for fields in requests])


class AsJson(logging.Formatter):
    """The same as a JSON object on each line; of a request, all of its figures."""

    def __init__(self, who: str = "") -> None:
        super().__init__()
        self._who = who.strip("[] ")

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if self._who:
            line["by"] = self._who
        requests = getattr(record, "requests", None)
        if requests is not None:
            head = orjson.dumps(line)[:-1] + b","
            return b"\n".join([head + orjson.dumps(fields, default=str)[1:] for fields in requests]).decode()
        line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()
