"""Logging set-up: structlog over the standard library, one line for each event.

All events go through the same formatter, those of Granian, urllib3 and asyncio too. A line is ASCII, holds no control
character, and is at most `MAX_LINE_BYTES` long, so that a client can neither forge lines nor flood the log, and
lines of several workers in one file or pipe are not mixed. A log that cannot be written never fails or delays a
request: `log_writer.py` writes the lines.
"""

import functools
import itertools
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from dockyard.config.settings import LoggerSettings
from dockyard.config.types import Level
from dockyard.log_writer import LogFile, LogWriter, Stream, open_log_file

MAX_LINE_BYTES = 2048

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_LEVEL_NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error"}
_COLORS = {"debug": "\x1b[36m", "info": "\x1b[32m", "warn": "\x1b[33m", "error": "\x1b[31m"}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"

_MAX_VALUE_CHARACTERS = (400, 100, 25)  # tried in turn on a line that is too long
_MAX_FRAMES = 8
_MAX_CAUSES = 3
_is_bare = re.compile(r"[!#-<>-~]+").fullmatch  # printable ASCII but for space, quote and =
_is_plain = re.compile(r"[ -~]*").fullmatch

_as_json = json.JSONEncoder(default=str, separators=(",", ":")).encode

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
        logger_factory=_LoggerFactory([__name__]),  # not the module that asks for a logger
        cache_logger_on_first_use=True,
    )


def is_debug() -> bool:
    """Whether debug lines are logged: to be asked before anything is computed for one."""
    return _ROOT.isEnabledFor(logging.DEBUG)


def write_request(level: Level, fields: Fields) -> None:
    """Write the line of a request. These are most of all lines, and structlog would take a third of their time."""
    if _ROOT.isEnabledFor(_LEVELS[level]):
        _write_event(level, "dockyard.request", {"event": "request", **fields})


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
    """Pass the event to the logger as it is."""
    return (event,), {}


class _LoggerFactory(structlog.stdlib.LoggerFactory):
    """Makes loggers with the names that loggers of the standard library would have."""

    def __call__(self, *args: Any) -> Any:
        return _EventLogger(super().__call__(*args).name)


class _EventLogger:
    """Passes events of structlog to the handler. Loggers of the standard library take longer than all the rest."""

    def __init__(self, name: str) -> None:
        self.debug = functools.partial(_write_event, "debug", name)
        self.info = functools.partial(_write_event, "info", name)
        self.warning = functools.partial(_write_event, "warn", name)
        self.error = functools.partial(_write_event, "error", name)


def _write_event(level: str, logger: str, event: Fields) -> None:
    """Write an event. The handler is looked for each time: modules keep their loggers, and `set_up` replaces it."""
    exc_info = event.pop("exc_info", None)
    exception = sys.exception() if exc_info is True else exc_info
    for handler in _ROOT.handlers:
        if isinstance(handler, _Handler):
            handler.write_event(time.time(), level, logger, event, exception)


class _Handler(logging.Handler):
    """Makes lines of events, those of structlog and of the standard library, and hands them to the writer."""

    def __init__(self, settings: LoggerSettings, count_dropped: Callable[[int], object]) -> None:
        super().__init__()
        self._encode = _choose_encoding(settings)
        output = LogFile(settings.output) if settings.stream is None else Stream(settings.stream)
        self._writer = LogWriter(output, self._report, count_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVEL_NAMES.get(record.levelno, record.levelname.lower())
        exception = record.exc_info[1] if record.exc_info else None
        self.write_event(record.created, level, record.name, {"event": _message(record)}, exception)

    def write_event(
        self, created: float, level: str, logger: str, event: Fields, exception: BaseException | None
    ) -> None:
        """Write the line of an event at a time in seconds since the epoch. For any thread; does not block."""
        line = self._make_line(created, level, logger, event, exception)
        with self.lock:  # type: ignore[union-attr]  # it has one
            self._writer.write(line)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        super().close()

    def _make_line(
        self, created: float, level: str, logger: str, event: Fields, exception: BaseException | None = None
    ) -> bytes:
        """Return a line with time, level, logger and event, in this order, then the other fields of the event."""
        first: Fields = {
            "timestamp": f"{_to_seconds(int(created))}.{int(created % 1 * 1000):03}Z",
            "level": level,
            "logger": logger,
            "event": event.get("event", ""),
        }
        fields = first | event
        fields |= first
        if exception:
            fields["exception"] = _trace(exception)
        return f"{self._encode_within_limit(fields)}\n".encode("ascii", "backslashreplace")

    def _encode_within_limit(self, fields: Fields) -> str:
        line = self._encode(fields)
        for characters in _MAX_VALUE_CHARACTERS:
            if len(line) < MAX_LINE_BYTES:
                return line
            line = self._encode({name: _shorten(value, characters) for name, value in fields.items()})
        if len(line) < MAX_LINE_BYTES:
            return line
        first = list(fields.items())[:4]
        return self._encode({name: _shorten(value, _MAX_VALUE_CHARACTERS[-1]) for name, value in first})

    def _report(self, count: int) -> bytes:
        event = {"event": "log lines were dropped: the output did not take them", "count": count}
        return self._make_line(time.time(), "warn", __name__, event)


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
    text = value if isinstance(value, str) else _as_json(value)
    return text if len(text) <= characters else f"{text[:characters]}..."


def _as_text(fields: Fields) -> str:
    head = f"{fields['timestamp']} {fields['level']:5} {_plain(fields['event'])}"
    return " ".join([head, *[f"{name}={_value(value)}" for name, value in _rest(fields)]])


def _in_color(fields: Fields) -> str:
    level = f"{_COLORS.get(fields['level'], '')}{fields['level']:5}{_RESET}"
    head = f"{_DIM}{fields['timestamp']}{_RESET} {level} {_plain(fields['event'])}"
    return f"{head} {' '.join(f'{_DIM}{name}={_RESET}{_value(value)}' for name, value in _rest(fields))}"


def _rest(fields: Fields) -> Iterator[tuple[str, Any]]:
    """Return the fields of the event, and the logger last, as the least important."""
    return itertools.chain(itertools.islice(fields.items(), 4, None), (("logger", fields["logger"]),))


def _plain(event: Any) -> str:
    text = str(event)
    return text if _is_plain(text) else json.dumps(text)[1:-1]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value if _is_bare(value) else json.dumps(value)
    return repr(value) if type(value) in {int, float} else _as_json(value)
