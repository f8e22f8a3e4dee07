"""The users of an htpasswd file, as `dockyard passwd` and `htpasswd -B` write it: bcrypt hashes only.

A line is `user:hash`; what follows the hash after another colon is a comment, as in Apache and nginx. Empty lines, and
those that begin with `#`, are ignored. No message quotes a line: each names its number.
"""

import re
from collections.abc import Mapping

import attrs

from dockyard.config.files import read_file
from dockyard.config.who import RESERVED_NAMES

MAX_FILE_BYTES = 4 * 2**20
MAX_NAME_CHARS = 255
MIN_COST = 4
MAX_COST = 16  # several seconds of CPU time; each step doubles it
MAX_PROBLEMS = 20

_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}", re.ASCII)
_KINDS = (
    ("$apr1$", "an MD5 hash"),
    ("$1$", "an MD5 hash"),
    ("{SHA}", "a SHA-1 hash"),
    ("$5$", "a SHA-256 hash"),
    ("$6$", "a SHA-512 hash"),
    ("$2", "a bcrypt hash that is malformed"),
)
_CURE = "write the line anew with `dockyard passwd` or `htpasswd -B`"


@attrs.frozen
class Htpasswd:
    """The users of a file.

    `hashes` are the bcrypt hashes by user name. No password is right for the users in `unusable`, whose lines are wrong
    or repeated. `problems` says which lines these are.
    """

    hashes: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)
    unusable: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()


def read_htpasswd(path: str) -> Htpasswd:
    """Read a file in which all lines are right. Raises ValueError with the numbers of those that are not."""
    users = parse_htpasswd(read_file(path, MAX_FILE_BYTES)[0])
    if users.problems:
        raise ValueError(describe_problems(users.problems))
    return users


def describe_problems(problems: tuple[str, ...]) -> str:
    """The problems of a file in one line, at most MAX_PROBLEMS of them."""
    more = len(problems) - MAX_PROBLEMS
    return "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def cost_of(bcrypt_hash: bytes) -> int:
    """The cost of a bcrypt hash: the logarithm to base 2 of the number of its rounds."""
    return int(bcrypt_hash[4:6])


def parse_htpasswd(data: bytes) -> Htpasswd:
    """Parse the content of a file. What is wrong is in `problems`."""
    hashes: dict[str, bytes] = {}
    lines: dict[str, int] = {}
    unusable: set[str] = set()
    problems: list[str] = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip() or raw.startswith(b"#"):
            continue
        name, problem, found = _parse_line(raw)
        if name and (first := lines.setdefault(name, number)) != number:
            unusable.add(name)
            problem = problem or f"has the user of line {first} again, so that no password is right for this user"
        if problem:
            problems.append(f"line {number} {problem}")
            unusable.update({name} - {""})
        else:
            hashes[name] = found
    usable = {name: found for name, found in hashes.items() if name not in unusable}
    return Htpasswd(usable, frozenset(unusable), tuple(problems))


def _parse_line(raw: bytes) -> tuple[str, str, bytes]:
    """Return the user name as far as it is known, what is wrong with the line, and the hash."""
    try:
        name, colon, rest = raw.decode().rstrip().partition(":")
    except UnicodeDecodeError:
        return "", "is not UTF-8", b""
    if not colon:
        return "", "has no colon between user name and hash", b""
    if not name:
        return "", "has no user name", b""
    if len(name) > MAX_NAME_CHARS or not name.isprintable() or "*" in name or name != name.strip():
        return name, "has a user name with *, control characters, spaces around it, or too many characters", b""
    if name.lower() in RESERVED_NAMES:
        return name, f"has the user name {name}, which rules use for other clients", b""
    text = rest.partition(":")[0]
    match = _BCRYPT.fullmatch(text)
    if match is None:
        kind = next((kind for begin, kind in _KINDS if text.startswith(begin)), "something else than a hash")
        return name, f"has {kind}, and only bcrypt is supported: {_CURE}", b""
    if not MIN_COST <= int(match[1]) <= MAX_COST:
        return name, f"has a bcrypt hash of cost {match[1]}, which must be from {MIN_COST} to {MAX_COST}: {_CURE}", b""
    return name, "", text.encode("ascii")
