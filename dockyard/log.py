"""Logging set-up: structlog in front, the standard library behind, one line for one event.

Everything goes through the same formatter, Granian, urllib3 and asyncio too. A line is ASCII, holds no control
character, and is at most `MAX_LINE_BYTES` long, so that a client can neither forge lines nor flood the log, and
workers that write to one file or pipe do not mix theirs. A log that cannot be written never fails a request.
"""

import functools
import io
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import structlog

from dockyard.config.settings import LoggerSettings

MAX_LINE_BYTES = 2048

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_WORDS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error"}
_COLORS = {"debug": "\x1b[36m", "info": "\x1b[32m", "warn": "\x1b[33m", "error": "\x1b[31m"}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"

_SHORTER = (400, 100, 25)  # characters left of a value, tried in turn on a line that is too long
_MAX_FRAMES = 8
_MAX_CAUSES = 3
_BARE = re.compile(r"[!#-<>-~]+")  # printable ASCII but for space, quote and =
_PLAIN = re.compile(r"[ -~]*")

Fields = dict[str, Any]


def set_up(settings: LoggerSettings) -> None:
    """Send all logging where the settings say. Call it in the supervisor and again in each worker.

    Granian puts its own handlers in place when it is built; call it after that. Raises OSError when the output is a
    file that cannot be opened.
    """
    logging._srcfile = None  # noqa: SLF001  as its documentation says: nobody need look for the line that called
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # since Python 3.12
    handler = _open(settings.output)
    handler.setFormatter(_Formatter(_choose_encoding(settings)))
    handler.addFilter(_is_worth_a_line)
    level = _LEVELS[settings.level]
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    for name, least in (
        ("_granian", level),
        ("granian.access", level),
        ("urllib3", max(level, logging.WARNING)),  # below that, one line per connection
        ("asyncio", max(level, logging.WARNING)),
    ):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(least)
    structlog.configure(
        processors=[_hand_over],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _open(output: str) -> logging.Handler:
    match output:
        case "stderr":
            return _StreamHandler(sys.stderr)
        case "stdout":
            return _StreamHandler(sys.stdout)
    return _FileHandler(output)


def _choose_encoding(settings: LoggerSettings) -> Callable[[Fields], str]:
    if settings.encoding == "json":
        return _as_json
    is_file = settings.output not in {"stderr", "stdout"}
    return _in_color if settings.color and not is_file and not os.environ.get("NO_COLOR") else _as_text


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for what Granian says of every chunk that it cannot send to a client that has left."""
    return record.levelno > logging.INFO or not (
        record.name.startswith("_granian") and str(record.msg).startswith("ASGI transport error")
    )


def _hand_over(_logger: Any, _method: str, event: structlog.typing.EventDict) -> tuple[tuple[Any], Fields]:
    """The event as the message of a record: all rendering is the formatter's."""
    return (event,), {"exc_info": event.pop("exc_info", None)}


class _StreamHandler(logging.StreamHandler[Any]):
    """The standard streams. Each line is one write."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the standard library's name
        pass


class _FileHandler(logging.Handler):
    """A file opened for appending, each line one write; opened again when logrotate has moved it away."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._file = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)}\n".encode("ascii", "backslashreplace")
        try:
            if self._is_elsewhere():
                self._file.close()
                self._file = self._open()
            self._file.write(line)
        except (OSError, ValueError):  # full, or closed and not to be made again: the next line tries anew
            pass

    def close(self) -> None:
        self._file.close()
        super().close()

    def _open(self) -> io.FileIO:
        return io.FileIO(self._path, "a")  # unbuffered: nothing is kept that a full disk has refused

    def _is_elsewhere(self) -> bool:
        if self._file.closed:
            return True
        ours = os.fstat(self._file.fileno())
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


class _Formatter(logging.Formatter):
    """Records of structlog and of everybody else, by one encoding."""

    def __init__(self, encode: Callable[[Fields], str]) -> None:
        super().__init__()
        self._encode = encode

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields_of(record)
        line = self._encode(fields)
        for characters in _SHORTER:
            if len(line) < MAX_LINE_BYTES:
                return line
            line = self._encode({name: _shorten(value, characters) for name, value in fields.items()})
        if len(line) < MAX_LINE_BYTES:
            return line
        first = list(fields.items())[:4]
        return self._encode({name: _shorten(value, _SHORTER[-1]) for name, value in first})


def _fields_of(record: logging.LogRecord) -> Fields:
    """Time, level, logger and event, in this order, then the event's own fields."""
    own: Fields = dict(record.msg) if isinstance(record.msg, dict) else {"event": _message(record)}
    milliseconds = f"{record.msecs:03.0f}" if record.msecs < 999.5 else "999"
    fields: Fields = {
        "timestamp": f"{_to_seconds(int(record.created))}.{milliseconds}Z",
        "level": _WORDS.get(record.levelno, record.levelname.lower()),
        "logger": record.name,
        "event": own.pop("event", ""),
    }
    for name, value in own.items():
        fields.setdefault(name, value)
    if record.exc_info and record.exc_info[1]:
        fields["exception"] = _trace(record.exc_info[1])
    return fields


@functools.lru_cache(maxsize=8)
def _to_seconds(created: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a library's arguments do not fit its own format
        return str(record.msg)


def _trace(exc: BaseException) -> str:
    """An exception on one line: what it says, then where, the innermost frame first."""
    told: list[str] = []
    current: BaseException | None = exc
    while current is not None and len(told) < _MAX_CAUSES:
        frames = [
            f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])}:{line} {frame.f_code.co_qualname}"
            for frame, line in traceback.walk_tb(current.__traceback__)
        ]
        told.append(f"{type(current).__name__}: {current} [{' < '.join(frames[: -_MAX_FRAMES - 1 : -1])}]")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "; caused by ".join(told)


def _shorten(value: Any, characters: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= characters else f"{text[:characters]}..."


def _json(value: Any) -> str:
    return json.dumps(value, default=str, separators=(",", ":"))


def _as_json(fields: Fields) -> str:
    return _json(fields)


def _as_text(fields: Fields) -> str:
    head = f"{fields['timestamp']} {fields['level']:5} {_plain(fields['event'])}"
    return f"{head} {' '.join(f'{name}={_value(value)}' for name, value in _rest(fields))}"


def _in_color(fields: Fields) -> str:
    level = f"{_COLORS.get(fields['level'], '')}{fields['level']:5}{_RESET}"
    head = f"{_DIM}{fields['timestamp']}{_RESET} {level} {_plain(fields['event'])}"
    return f"{head} {' '.join(f'{_DIM}{name}={_RESET}{_value(value)}' for name, value in _rest(fields))}"


def _rest(fields: Fields) -> list[tuple[str, Any]]:
    """The event's own fields, and the logger last: it is what a reader needs least."""
    return [*list(fields.items())[4:], ("logger", fields["logger"])]


def _plain(event: Any) -> str:
    text = str(event)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)[1:-1]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else json.dumps(value)
    return repr(value) if type(value) in {int, float} else _json(value)
