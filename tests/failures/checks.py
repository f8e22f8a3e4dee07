"""What each line must have, and what neither it nor the client's body may have."""

import re
from collections.abc import Iterator

import attrs

from dockyard.config.reader import fields_of, section_in_list
from dockyard.config.settings import Settings
from tests.failures.buckets import STORE_SECRETS
from tests.failures.failure import Failure, Seen
from tests.failures.settings import SECRET
from tests.failures.upstreams import CANARIES
from tests.security.canaries import is_in

SECRETS = (*CANARIES, *STORE_SECRETS, SECRET)
# What only the operator sees: addresses, ports, paths, and errors of the system and of TLS.
_OPERATORS_OWN = re.compile(
    r"\d+\.\d+\.\d+\.\d+|localhost|:\d{4,5}\b|/(tmp|etc|home|root|var|usr)/|Errno|Traceback|X-Amz|\?|"
    r"Connection refused|Connection reset|not known|Temporary failure|local issuer|SSL|OpenSSL|\.py\b"
)
# A command, an option, a permission, a variable, a word to write, or the line of the settings that breaks a rule.
_COMMAND = re.compile(
    r"`[^`]+`|\b(chown|df -i|dmesg|set the clock|[Dd]id you mean|SSL_CERT_FILE)\b|(?<![\w-])--[a-z]|\bs3:[A-Z]\w+|"
    r"\bwrite [a-z]+$|\buse https?://|\bconfig\.yaml:\d+\b"
)


def _keys(cls: type, above: str = "") -> Iterator[str]:
    for field in fields_of(cls):
        key = f"{above}{field.name}"
        if "." in key:
            yield key
        element = section_in_list(field.type)
        if element is None and attrs.has(field.type):
            yield from _keys(field.type, f"{key}.")
        elif element is not None:
            yield from _keys(element, f"{key}[N].")


KEYS = frozenset(_keys(Settings))


def has_cure(line: str) -> bool:
    """Whether a line names a setting, a command, an option, a permission, or a line of the settings and its rule."""
    return bool(_COMMAND.search(line)) or any(
        re.search(rf"(?<![\w.]){re.escape(key)}(?![\w])", line) for key in KEYS | {"upstreams", "trusted_hosts"}
    )


def find_problems(failure: Failure, seen: Seen) -> list[str]:
    """What is wrong with what was seen of a failure; empty when nothing is."""
    problems = [f"the line does not say {gap}" for gap in failure.find_gaps(seen.line)]
    if not has_cure(seen.line):
        problems.append("the line names no setting and no command")
    if found := _OPERATORS_OWN.search(seen.body.decode()):
        problems.append(f"the client sees {found.group()!r}: {seen.body.decode()}")
    texts = [seen.line.encode(), seen.body, seen.output.encode()]
    problems += [f"{secret.text} is shown" for secret in SECRETS if is_in(texts, tuple(secret.spellings()))]
    return problems
