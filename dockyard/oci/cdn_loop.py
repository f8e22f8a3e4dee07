"""The CDN-Loop header (RFC 8586): which servers a request has passed, so that a loop of them is noticed.

Each Dockyard server has a name of its own, a random one. It appends the name to the header of each request that it
sends to a registry, and refuses a request whose header has it already. Pure functions.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

HEADER: Final = "CDN-Loop"
MAX_BYTES: Final = 2048  # of what is passed on: far more servers than requests pass, and far less than headers may have

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  of RFC 9110 section 5.6.2
_QUOTED = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*"'
_SPECIAL = re.compile(r'\\.|[",]', re.DOTALL)
_MEMBER = re.compile(rf"[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*")


def make_server_name(random: bytes) -> str:
    """The name of a server, which is made anew at each start."""
    return f"dockyard-{random.hex()}"


def parse_passed(values: Iterable[str]) -> tuple[str, ...]:
    """The servers that a request has passed, each with its parameters, the last one at the end.

    Malformed members are left out, and so are the first ones if all together are longer than MAX_BYTES: clients can
    send what they like, and a loop of servers appends at the end.
    """
    members = [text.strip(" \t") for value in values for text in _split(value)]
    passed: list[str] = []
    left = MAX_BYTES
    for member in reversed(members):
        if not _MEMBER.fullmatch(member):
            continue
        left -= len(member) + 2
        if left < 0:
            break
        passed.append(member)
    return tuple(reversed(passed))


def has_passed(passed: Sequence[str], name: str) -> bool:
    """Whether a request has passed the server with this name."""
    return any(member.partition(";")[0].rstrip(" \t") == name for member in passed)


def format_passed(passed: Sequence[str], name: str) -> str:
    """The value of the header in a request of the server with this name."""
    return ", ".join((*passed, name))


def _split(value: str) -> Iterator[str]:
    """The members of one header. In one pass: a client can send a header of nothing but quotes."""
    start, is_quoted = 0, False
    for match in _SPECIAL.finditer(value):
        if match[0] == '"':
            is_quoted = not is_quoted
        elif match[0] == "," and not is_quoted:
            yield value[start : match.start()]
            start = match.end()
    yield value[start:]
