"""Running `docker-credential-*` programs (docker-credential-helpers, client/command.go).

The server goes to stdin as text, the answer comes from stdout as JSON; exit status 1 with words on stdout is an error.
A helper gets ten seconds and 64 KiB, no shell, and the environment that Dockyard was given; then its whole process
group is killed. What it prints is never repeated: it may be a secret.
"""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress

import attrs

HELPER_TIMEOUT_S = 10.0
MAX_OUTPUT_BYTES = 64 * 1024

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_NOT_FOUND = b"credentials not found in native keychain"


class HelperFailed(Exception):
    """The helper failed or printed no valid login. The message may be sent to clients.

    For the log: the `program` or the `path` of the file that failed, and the `error` of the system.
    """

    def __init__(self, message: str, *, program: str = "", path: str = "", error: str = "") -> None:
        super().__init__(message)
        self.program = program
        self.path = path
        self.error = error


def program_name(name: str) -> str:
    """The program of the credential helper with this name."""
    return f"docker-credential-{name}"


def failed(name: str, what: str, error: str) -> HelperFailed:
    """The error for a helper. `error` contains nothing that the helper printed."""
    program = program_name(name)
    return HelperFailed(f"the credential helper {program} {what}", program=program, error=error)


def took_too_long(name: str, timeout_s: float) -> HelperFailed:
    """The error for a helper that has not ended in time."""
    return failed(name, "takes too long", f"did not end within {timeout_s:.1f} s")


@attrs.frozen
class HelperLogin:
    """The login that a helper printed."""

    username: str
    secret: str = attrs.field(repr=False)


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """The path of the program of a helper. Raises HelperFailed."""
    if not _NAME.fullmatch(name):
        raise HelperFailed("the name of a credential helper is malformed")
    program = shutil.which(f"docker-credential-{name}", path=environ.get("PATH", ""))
    if program is None:
        raise failed(name, "is not installed", f"not found in PATH ({environ.get('PATH', '')})")
    return program


def run_helper(
    name: str, server: str, environ: Mapping[str, str], timeout_s: float = HELPER_TIMEOUT_S
) -> HelperLogin | None:
    """The login for a server; None when the helper has none. Raises HelperFailed."""
    program = find_program(name, environ)
    status, output = _run(name, [program, "get"], server.encode(), environ, timeout_s)
    if status != 0:
        if _NOT_FOUND in output:
            return None
        raise failed(name, "failed", f"exit status {status} of {program} get, with {server} on its standard input")
    return _parse(name, output)


def _run(
    name: str, command: list[str], question: bytes, environ: Mapping[str, str], timeout_s: float
) -> tuple[int, bytes]:
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(  # noqa: S603  a fixed program, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as exc:
        raise failed(name, "cannot be run", str(exc)) from exc
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None  # noqa: S101  for mypy: both are pipes
    assert stdout is not None  # noqa: S101
    try:
        with suppress(BrokenPipeError):
            stdin.write(question)
            stdin.close()
        output = _collect(stdout.fileno(), deadline)
        return process.wait(max(0.0, deadline - time.monotonic())), output
    except (TimeoutError, subprocess.TimeoutExpired):
        raise took_too_long(name, timeout_s) from None
    except OverflowError:
        raise failed(name, "prints too much", f"{command[0]} printed more than {MAX_OUTPUT_BYTES} bytes") from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        stdout.close()
        with suppress(BrokenPipeError):
            stdin.close()


def _collect(descriptor: int, deadline: float) -> bytes:
    """Everything until the end of the pipe. Raises TimeoutError, OverflowError."""
    output = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError
        piece = os.read(descriptor, MAX_OUTPUT_BYTES)
        if not piece:
            return output
        output += piece
        if len(output) > MAX_OUTPUT_BYTES:
            raise OverflowError


def _parse(name: str, output: bytes) -> HelperLogin:
    try:
        document = json.loads(output)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError):
        document = username = secret = None
    if not isinstance(username, str) or not isinstance(secret, str) or not secret:
        error = "the output is not a JSON object with Username and Secret"
        raise failed(name, "gave no sensible answer", error)
    return HelperLogin(username, secret)
