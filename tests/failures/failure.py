"""A failure, what was seen of it, and the form in which a line is compared with the page: without what varies."""

import re
from collections.abc import Mapping

import attrs

TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\S+Z ")
# What varies in every run, wherever it is; the literals of a failure are replaced before.
_VARIABLES = (
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:DIGEST"),
    (re.compile(r"\b(seconds|bytes)=[0-9.]+"), lambda match: f"{match[1]}={match[1].upper()}"),
    (re.compile(r"\bclient=\S+"), "client=CLIENT"),
    (re.compile(r"\b(process|pid[= ])(\s?)\d+"), r"\1\2PID"),
    (re.compile(r"\bupstreams\[\d+\]"), "upstreams[N]"),
    (re.compile(r"\b\d+\.\d s\b|(?<=differ by )\d+ s\b"), "SECONDS s"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"), "TIME"),
    (re.compile(r"\brun_directory=\S+"), "run_directory=RUN_DIRECTORY"),
    (re.compile(r"\b(uid|gid) \d+( \([^)]*\))?"), lambda match: f"{match[1]} {match[1].upper()}"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"\b[0-9a-f]{2}/(?=DIGEST)"), ""),
    (re.compile(r"\bconfigured prefixes: [^)]*"), "configured prefixes: PREFIXES"),
    (re.compile(r"(?<=not yet valid) or the system clock is incorrect\b"), ""),  # OpenSSL 3.6
    (re.compile(r"\b[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4} GMT"), "DATE"),
)


@attrs.frozen
class Failure:
    """One row of the table. The line must contain `where`, `why` and `cure`, each as it is on the page."""

    cause: str
    where: str
    why: str
    cure: str

    def find_gaps(self, line: str) -> list[str]:
        """What the line lacks: the name of each part that is not in it."""
        return [
            f"{name}: {text!r}"
            for name, text in (("where", self.where), ("why", self.why), ("cure", self.cure))
            if text not in line
        ]


@attrs.frozen
class Seen:
    """What a failure showed: the line for the operator, and the body that a client got (empty without a client)."""

    line: str
    body: bytes = attrs.field(default=b"", repr=False)
    output: str = attrs.field(default="", repr=False)
    """Everything that the program printed about it."""


def replace_variables(line: str, names: Mapping[str, str]) -> str:
    """The line without its timestamp, with placeholders for what varies; `names` are those of this failure."""
    text = TIMESTAMP.sub("", line.strip())
    for literal in sorted(names, key=len, reverse=True):
        text = text.replace(literal, names[literal])
    for pattern, placeholder in _VARIABLES:
        text = pattern.sub(placeholder, text)
    return text
