"""What a check found, and how important it is."""

from enum import IntEnum

import attrs


class Severity(IntEnum):
    """An ERROR prevents the start, or was found by a connection. A WARNING should be looked at. The rest informs."""

    ERROR = 0
    WARNING = 1
    NOTE = 2
    OK = 3


@attrs.frozen
class Finding:
    """One line of the list. `is_setting`: it is an error in the settings, with another exit status."""

    severity: Severity
    text: str
    is_setting: bool = False


def error(text: str) -> Finding:
    """Something that prevents the start."""
    return Finding(Severity.ERROR, text)


def warning(text: str) -> Finding:
    """Something that is probably not intended."""
    return Finding(Severity.WARNING, text)


def note(text: str) -> Finding:
    """Something to know."""
    return Finding(Severity.NOTE, text)


def ok(text: str) -> Finding:
    """Something that works."""
    return Finding(Severity.OK, text)
