"""The `passwd` command: makes lines of an htpasswd file, and replaces or deletes them in it. Blocking.

Only the lines of one user are changed; all others stay byte for byte what they are, also those that are wrong. The file
is replaced as a whole by a rename, so that a server never reads a part of it.
"""

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dockyard.access.passwords import hash_password
from dockyard.config.access import explain
from dockyard.config.files import read_file
from dockyard.config.htpasswd import MAX_FILE_BYTES, MAX_NAME_CHARS
from dockyard.config.who import RESERVED_NAMES

NEW_FILE_MODE: Final = 0o600

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class FileProblem(Exception):
    """The file cannot be changed, and is what it was. The message names it, and says why."""


def check_user(name: str) -> None:
    """Raise ValueError unless a user can have this name in the file and in rules."""
    if not name:
        raise ValueError("must not be empty")
    if ":" in name:
        raise ValueError("must not contain a colon, which ends the name in the file")
    if not name.isprintable() or any(char.isspace() for char in name):
        raise ValueError("must not contain spaces or control characters")
    if "*" in name:
        raise ValueError("must not contain *, which stands for any text in rules")
    if name.startswith("#"):
        raise ValueError("must not begin with #, which begins a comment in the file")
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(f"must have at most {MAX_NAME_CHARS} characters")
    if name.lower() in RESERVED_NAMES:
        raise ValueError(f"must not be {name}, which means other clients in rules")


def make_line(user: str, password: str) -> str:
    """Return a line for the file, without its end. Raises ValueError for a password that cannot be used."""
    try:
        password.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("must be UTF-8") from exc
    # The same algorithm has two names: $2b$ is that of OpenBSD, $2y$ that of Apache.
    return f"{user}:$2y${hash_password(password).removeprefix('$2b$')}"


def set_line(path: Path, user: str, line: str) -> bool:
    """Replace the line of a user in a file, or add it, and make the file if there is none. Raises FileProblem.

    Returns whether there was such a line. What follows its hash, as a comment, is kept.
    """
    with _changing(path) as (target, data):
        changed, was_there = _replace(data or b"", user, line.encode())
        _write(target, changed, is_new=data is None)
    return was_there


def delete_line(path: Path, user: str) -> None:
    """Delete the lines of a user in a file. Raises FileProblem, also if there is none."""
    with _changing(path) as (target, data):
        if data is None:
            raise FileProblem(f"{path}: there is no such file")
        changed, was_there = _replace(data, user, None)
        if not was_there:
            raise FileProblem(f"{path}: there is no user {user}")
        _write(target, changed, is_new=False)


def _replace(data: bytes, user: str, line: bytes | None) -> tuple[bytes, bool]:
    """Return the content of a file with this line for a user, or without one, and whether there was one."""
    wanted = user.encode("utf-8", "surrogateescape")
    mark = _BYTE_ORDER_MARK if data.startswith(_BYTE_ORDER_MARK) else b""
    kept: list[bytes] = []
    was_there = False
    for raw in re.findall(rb"[^\n]*\n|[^\n]+", data.removeprefix(mark)):
        content = raw.rstrip(b"\r\n")
        name, *rest = content.split(b":", 2)
        if not rest or name != wanted:
            kept.append(raw)
        elif line is not None and not was_there:
            kept.append(b":".join([line, *rest[1:]]) + raw[len(content) :])
        was_there = was_there or (bool(rest) and name == wanted)
    if line is not None and not was_there:
        end = b"\r\n" if kept and kept[-1].endswith(b"\r\n") else b"\n"
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += end
        kept.append(line + end)
    return mark + b"".join(kept), was_there


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[tuple[Path, bytes | None]]:
    """Yield the file behind symbolic links, and its content, None without one; one process at a time."""
    target = Path(os.path.realpath(path))
    try:
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise FileProblem(f"{path}: {explain(exc, target.parent)}") from exc
    try:
        with contextlib.suppress(OSError):  # not every file system can lock a directory
            fcntl.flock(directory, fcntl.LOCK_EX)
        try:
            data = read_file(str(target), MAX_FILE_BYTES)[0] if target.exists() else None
        except ValueError as exc:
            raise FileProblem(f"{path}: {exc}") from exc
        yield target, data
        with contextlib.suppress(OSError):  # not every file system can sync a directory
            os.fsync(directory)
    except OSError as exc:
        raise FileProblem(f"{path}: cannot be replaced: {explain(exc, target, is_writing=True)}") from exc
    finally:
        os.close(directory)


def _write(target: Path, data: bytes, *, is_new: bool) -> None:
    """Replace a file, with the mode, the owner and the attributes that it has. Raises OSError."""
    fd, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if is_new:
                os.fchmod(fd, NEW_FILE_MODE)
            else:
                _copy_attributes(target, fd)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _copy_attributes(source: Path, fd: int) -> None:
    found, own = source.stat(), os.fstat(fd)
    if (own.st_uid, own.st_gid) != (found.st_uid, found.st_gid):
        os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, stat.S_IMODE(found.st_mode))
    with contextlib.suppress(OSError):  # access control lists and security labels, where there are some
        for name in os.listxattr(source):
            os.setxattr(fd, name, os.getxattr(source, name))
