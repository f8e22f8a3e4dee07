"""Logging set-up: structlog over the standard library, one line for each event.

All events go through the same formatter, those of Granian, urllib3 and asyncio too. A line is ASCII, holds no control
character, and is at most `MAX_LINE_BYTES` long, so that a client can neither forge lines nor flood the log, and
lines of several workers in one file or pipe are not mixed. A log that cannot be written never fails or delays a
request: `log_writer.py` writes the lines.
"""

import functools
import json
import logging
import os
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

import structlog

from dockyard.config.settings import LoggerSettings
from dockyard.log_writer import LogFile, LogWriter, Stream, open_log_file

MAX_LINE_BYTES = 2048

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_LEVEL_NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error"}
_COLORS = {"debug": "\x1b[36m", "info": "\x1b[32m", "warn": "\x1b[33m", "error": "\x1b[31m"}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"

_MAX_VALUE_CHARACTERS = (400, 100, 25)  # tried in turn on a line that is too long
_MAX_FRAMES = 8
_MAX_CAUSES = 3
_BARE = re.compile(r"[!#-<>-~]+")  # printable ASCII but for space, quote and =
_PLAIN = re.compile(r"[ -~]*")

_ROOT = logging.getLogger()

Fields = dict[str, Any]


def set_up(settings: LoggerSettings, count_dropped: Callable[[int], object] = lambda _: None) -> None:
    """Configure all logging by the settings. Call it in the supervisor and again in each worker.

    Building Granian's server installs other handlers, so call it again after that. `count_dropped(count)` is called
    for lines that could not be written.
    """
    logging._srcfile = None  # noqa: SLF001  as its documentation says: skips the search for the calling line
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # since Python 3.12
    handler = _Handler(settings, count_dropped)
    level = _LEVELS[settings.level]
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    for name, least in (
        ("_granian", logging.ERROR),  # below that, what the supervisor says, and advice for other servers
        ("granian.access", level),
        ("urllib3", max(level, logging.WARNING)),  # below that, one line per connection
        ("asyncio", max(level, logging.WARNING)),
    ):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(least)
    structlog.configure(
        processors=[_pass_event],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def is_debug() -> bool:
    """Whether debug lines are logged: to be asked before anything is computed for one."""
    return _ROOT.isEnabledFor(logging.DEBUG)


def check_output(settings: LoggerSettings) -> None:
    """Raise OSError when the output is a file that cannot be opened."""
    if settings.stream is None:
        os.close(open_log_file(settings.output))


def flush() -> None:
    """Wait until all lines are written, or for a second."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _choose_encoding(settings: LoggerSettings) -> Callable[[Fields], str]:
    if settings.encoding == "json":
        return _as_json
    is_terminal = settings.stream is not None and os.isatty(settings.stream)
    is_refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return _in_color if settings.color and is_terminal and not is_refused else _as_text


def _pass_event(_logger: Any, _method: str, event: structlog.typing.EventDict) -> tuple[tuple[Any], Fields]:
    """Pass the event as the message of a record; the formatter renders it."""
    return (event,), {"exc_info": event.pop("exc_info", None)}


class _Handler(logging.Handler):
    """Hands formatted lines to the writer."""

    def __init__(self, settings: LoggerSettings, count_dropped: Callable[[int], object]) -> None:
        super().__init__()
        self.setFormatter(_Formatter(_choose_encoding(settings)))
        output = LogFile(settings.output) if settings.stream is None else Stream(settings.stream)
        self._writer = LogWriter(output, self._report, count_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.write(self._line(record))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode("ascii", "backslashreplace")

    def _report(self, count: int) -> bytes:
        event = {"event": "log lines were dropped: the output did not take them", "count": count}
        return self._line(logging.LogRecord(__name__, logging.WARNING, "", 0, event, None, None))


class _Formatter(logging.Formatter):
    """Formats records of structlog and of the standard library in one encoding."""

    def __init__(self, encode: Callable[[Fields], str]) -> None:
        super().__init__()
        self._encode = encode

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields_of(record)
        line = self._encode(fields)
        for characters in _MAX_VALUE_CHARACTERS:
            if len(line) < MAX_LINE_BYTES:
                return line
            line = self._encode({name: _shorten(value, characters) for name, value in fields.items()})
        if len(line) < MAX_LINE_BYTES:
            return line
        first = list(fields.items())[:4]
        return self._encode({name: _shorten(value, _MAX_VALUE_CHARACTERS[-1]) for name, value in first})


def _fields_of(record: logging.LogRecord) -> Fields:
    """Return time, level, logger and event, in this order, then the fields of the event."""
    own: Fields = dict(record.msg) if isinstance(record.msg, dict) else {"event": _message(record)}
    milliseconds = f"{record.msecs:03.0f}" if record.msecs < 999.5 else "999"
    fields: Fields = {
        "timestamp": f"{_to_seconds(int(record.created))}.{milliseconds}Z",
        "level": _LEVEL_NAMES.get(record.levelno, record.levelname.lower()),
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
    except (TypeError, ValueError):  # the arguments do not fit the format
        return str(record.msg)


def _trace(exc: BaseException) -> str:
    """Return an exception as one line: its message, then its frames, the innermost first."""
    parts: list[str] = []
    current: BaseException | None = exc
    while current is not None and len(parts) < _MAX_CAUSES:
        frames = [
            f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])}:{line} {frame.f_code.co_qualname}"
            for frame, line in traceback.walk_tb(current.__traceback__)
        ]
        parts.append(f"{type(current).__name__}: {current} [{' < '.join(frames[: -_MAX_FRAMES - 1 : -1])}]")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "; caused by ".join(parts)


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
    """Return the fields of the event, and the logger last, as the least important."""
    return [*list(fields.items())[4:], ("logger", fields["logger"])]


def _plain(event: Any) -> str:
    text = str(event)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)[1:-1]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else json.dumps(value)
    return repr(value) if type(value) in {int, float} else _json(value)
