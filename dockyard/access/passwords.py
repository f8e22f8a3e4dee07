"""Passwords of the users in the htpasswd file. Blocking: a verification takes as long as the cost of its hash says.

An unknown user takes the same time as a known one, so that time does not tell who is known. bcrypt reads 72 bytes of a
password, and takes one with a NUL byte for another: such passwords are never right.
"""

import hashlib
import hmac
import unicodedata
from collections.abc import Sequence

import attrs
import bcrypt
import structlog

from dockyard.access.files import FileVersion, WatchedFile
from dockyard.config.htpasswd import MAX_FILE_BYTES, Htpasswd, cost_of, describe_problems, parse_htpasswd

MAX_PASSWORD_BYTES = 72
DEFAULT_COST = 12  # about 0.2 s of CPU time

log = structlog.get_logger()


@attrs.frozen
class Account:
    """What the file says of a user name. `hash` is None for a user for whom no password is right.

    For a name that the file does not have, `is_known` is False, unless it is the name of a user in another spelling.
    """

    is_known: bool
    hash: bytes | None = attrs.field(default=None, repr=False)


class PasswordFile:
    """The htpasswd file. Without a readable file there are no users, and no login is taken for that of an upstream."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = WatchedFile(path, MAX_FILE_BYTES, _parse, _Users(), self._report)

    def refresh(self) -> None:
        """Read the file if it has changed."""
        self._file.read()

    def read(self, username: str) -> Account:
        """Return the account of a user name, after reading the file if it has changed."""
        return _account(self._file.read(), username)

    def find(self, username: str) -> Account | None:
        """Return the account of a user name if the file in memory is current. Only looks at the status of the file."""
        version = self._file.find()
        return None if version is None else _account(version, username)

    def is_right(self, username: str, password: str, account: Account) -> bool:
        """Verify a password, in the same time for each user name; at once if there are no users."""
        users = self._file.read()
        if users.error:
            return False
        data = password.encode("utf-8", "surrogatepass")
        is_usable = len(data) <= MAX_PASSWORD_BYTES and b"\0" not in data and account.hash is not None
        found = account.hash if is_usable and account.hash else users.content.dummy_for(username)
        is_equal = bcrypt.checkpw(data if is_usable else b"x", found)
        return is_equal and is_usable

    def _report(self, version: FileVersion["_Users"]) -> None:
        """Log what is wrong with the file. Called once for each version."""
        if version.error:
            log.error("no user is admitted: the htpasswd file cannot be used", path=self._path, reason=version.error)
        elif problems := version.content.file.problems:
            log.error(
                "some users are not admitted: lines of the htpasswd file are wrong",
                path=self._path,
                lines=describe_problems(problems),
            )


def hash_password(password: str, cost: int = DEFAULT_COST) -> str:
    """Return the bcrypt hash of a password, for a line of an htpasswd file. Raises ValueError."""
    data = password.encode("utf-8", "surrogatepass")
    if not data or b"\0" in data:
        raise ValueError("must have at least one character, and no NUL")
    if len(data) > MAX_PASSWORD_BYTES:
        raise ValueError(f"must have at most {MAX_PASSWORD_BYTES} bytes in UTF-8, because bcrypt reads no more")
    return bcrypt.hashpw(data, bcrypt.gensalt(cost)).decode("ascii")


@attrs.frozen
class _Users:
    """`folded` are the names of all users, usable or not, without what is easily mistyped in them."""

    file: Htpasswd = attrs.field(factory=Htpasswd)
    folded: frozenset[str] = frozenset()
    costs: Sequence[int] = (DEFAULT_COST,)
    key: bytes = attrs.field(default=b"", repr=False)

    def dummy_for(self, username: str) -> bytes:
        """Return a hash that no password has, of the cost of some user: always the same one for a name."""
        chosen = hmac.digest(self.key, username.encode("utf-8", "surrogatepass"), "sha256")
        cost = self.costs[int.from_bytes(chosen[:8], "big") % len(self.costs)]
        return b"$2b$%02d$%s" % (cost, b"." * 53)


def _parse(data: bytes) -> _Users:
    file = parse_htpasswd(data)
    costs = sorted(cost_of(found) for found in file.hashes.values())
    folded = frozenset(map(_fold, file.hashes.keys() | file.unusable))
    return _Users(file, folded, costs or (DEFAULT_COST,), hashlib.sha256(data).digest())


def _fold(username: str) -> str:
    """A user name without case, spaces around it, and the form of its characters."""
    return unicodedata.normalize("NFKC", username).casefold().strip()


def _account(version: FileVersion[_Users], username: str) -> Account:
    users = version.content
    return Account(bool(version.error) or _fold(username) in users.folded, users.file.hashes.get(username))
