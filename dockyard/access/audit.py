"""The audit log: one line of JSON for each decision about access.

It has an output of its own, beside the log of the process. A thread writes the lines, so that an output that takes
nothing never delays a request; lines that cannot be written are counted, and reported when they can be written again.

A line is ASCII, and all control characters are escaped, so that a client cannot forge one. It has no credentials.
"""

import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import attrs

from dockyard import metrics
from dockyard.access.principals import Principal
from dockyard.config.settings import AccessSettings, find_stream
from dockyard.log_writer import LogFile, LogWriter, Stream, open_log_file

MAX_LINE_BYTES: Final = 4096  # the most that the kernel writes to a pipe in one piece
MAX_GROUPS: Final = 16
MAX_VALUE_CHARS: Final = 300

Verdict = Literal[
    "allowed", "denied", "hidden", "login required", "wrong login", "would deny", "unknown", "unavailable"
]
"""`hidden`: denied, with the response that an unknown repository gets. `unknown`: there is no such thing in the
repository, or it is not known to belong to it. `unavailable`: an upstream has to decide, and cannot be asked."""


@attrs.frozen
class AuditEntry:
    """One decision. `rule` is `rules[N]`, `default`, `none`, `login`, `upstream` or `links`: what has decided.

    `reference` is a tag, a digest, or empty. `address` is that of the client. Nothing of its login but the name of a
    principal whose login is right.
    """

    verdict: Verdict
    principal: Principal
    action: str
    kind: str
    method: str
    address: str
    upstream: str = ""
    repository: str = ""
    reference: str = ""
    rule: str = "none"
    reason: str = ""


class AuditLog:
    """Writes decisions to the output in `access.audit`. Belongs to the process that creates it."""

    def __init__(self, settings: AccessSettings) -> None:
        stream = find_stream(settings.audit)
        output = LogFile(settings.audit) if stream is None else Stream(stream)
        self._writer = LogWriter(output, _report_dropped, metrics.audit_lines_dropped.inc, name="audit")

    def write(self, entry: AuditEntry) -> None:
        """Have a line written. Does not block. For one thread at a time."""
        self._writer.write(format_line(entry, time.time()))

    def flush(self) -> bool:
        """Wait until all lines are written, or for a second; whether they are."""
        return self._writer.flush()

    def close(self) -> None:
        """Write what is there, or as much as the output takes within a second."""
        self._writer.close()


def check_audit_output(settings: AccessSettings) -> None:
    """Raise OSError if the audit log is a file that cannot be opened. The file is created."""
    if settings.audit and find_stream(settings.audit) is None:
        os.close(open_log_file(settings.audit))


def look_at_audit_output(settings: AccessSettings) -> None:
    """Raise OSError if the audit log is a file that cannot be opened. Nothing is created."""
    if not settings.audit or find_stream(settings.audit) is not None:
        return
    try:
        os.close(os.open(settings.audit, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except FileNotFoundError:
        directory = Path(settings.audit).parent
        directory.stat()
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory)) from None
    except OSError as exc:
        if exc.errno != errno.ENXIO:  # a named pipe that nobody reads now
            raise


def format_line(entry: AuditEntry, now_s: float) -> bytes:
    """Return an entry as one line of JSON of at most MAX_LINE_BYTES, without fields that are empty."""
    principal = entry.principal
    groups = sorted(principal.groups)
    fields: dict[str, object] = {
        "time": _format_time(now_s),
        "verdict": entry.verdict,
        "who": str(principal),
        "source": principal.source,
        "groups": groups[:MAX_GROUPS] + (["..."] if len(groups) > MAX_GROUPS else []),
        "networks": sorted(principal.networks)[:MAX_GROUPS],
        "action": entry.action,
        "upstream": entry.upstream,
        "repository": entry.repository,
        "reference": entry.reference,
        "kind": entry.kind,
        "method": entry.method,
        "rule": entry.rule,
        "reason": entry.reason,
        "address": entry.address,
    }
    line = _encode(fields)
    if len(line) > MAX_LINE_BYTES:
        line = _encode(fields | {"groups": [f"{len(groups)} groups"], "networks": []}, MAX_VALUE_CHARS)
    return line


def _encode(fields: Mapping[str, object], max_chars: int | None = None) -> bytes:
    kept = {name: _shorten(value, max_chars) for name, value in fields.items() if value not in ("", [])}
    return json.dumps(kept, separators=(",", ":")).replace("\x7f", "\\u007f").encode() + b"\n"


def _shorten(value: object, max_chars: int | None) -> object:
    if max_chars is None or not isinstance(value, str):
        return value
    shown = ascii(value)[1:-1]  # so that the length is that of the line
    return value if len(shown) <= max_chars else f"{shown[:max_chars]}..."


def _format_time(now_s: float) -> str:
    seconds, milliseconds = divmod(int(now_s * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"


def _report_dropped(count: int) -> bytes:
    fields = {"time": _format_time(time.time()), "event": "audit lines were dropped: the output did not take them"}
    return json.dumps(fields | {"count": count}, separators=(",", ":")).encode() + b"\n"
