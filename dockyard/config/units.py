"""Durations and sizes as text: `1m30s` and `50GiB`. Pure.

Formatting a number and parsing the result gives the same number.
"""

import re
from decimal import Decimal
from fractions import Fraction

_NANOSECONDS = {
    "h": 3600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "\u00b5s": 10**3,  # micro sign
    "\u03bcs": 10**3,  # Greek mu
    "ns": 1,
}
_BYTES = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base ** (power + 1)
    for power, letter in enumerate("KMGTP")
    for suffix, base in (("B", 1000), ("iB", 1024), ("i", 1024))
}
_UNITS_IGNORING_CASE = {unit.lower(): factor for unit, factor in _BYTES.items()}

_NUMBER = r"(?:[0-9]{1,18}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
_DURATION_PART = re.compile(rf"({_NUMBER})(h|ms|m|us|\u00b5s|\u03bcs|ns|s)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern}){{1,8}}")
_SIZE = re.compile(rf"({_NUMBER}) ?([A-Za-z]{{0,3}})")
_OTHER_UNIT = re.compile(rf"({_NUMBER}) ?([A-Za-z]{{1,12}})")
# Units that are written by mistake, as a multiple of one that exists.
_OTHER_DURATIONS = {
    **dict.fromkeys(("w", "week", "weeks"), (168, "h")),
    **dict.fromkeys(("d", "day", "days"), (24, "h")),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), (1, "h")),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), (1, "m")),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), (1, "s")),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), (1, "ms")),
}


def parse_duration(text: str) -> float:
    """Parse a duration in Go's notation, such as `24h`, `1m30s`, `500ms` or `0`, to seconds. Raises ValueError."""
    if text.startswith("-"):
        raise ValueError("must not be negative")
    if re.fullmatch(_NUMBER, text):
        if Decimal(text) == 0:
            return 0.0
        raise ValueError(f"must have a unit, as in {text}s, {text}m or {text}h")
    if not _DURATION.fullmatch(text):
        raise ValueError(f"must be a duration such as 24h, 1m30s, 500ms or 0{_suggest_duration(text)}")
    nanoseconds = sum(Decimal(number) * _NANOSECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    return float(nanoseconds / 10**9)


def format_duration(seconds: float) -> str:
    """Format seconds as the shortest duration, exact to the nanosecond: `24h`, `1m30s`, `500ms`, `0s`."""
    rest = round(Fraction(seconds) * 10**9)
    hours, rest = divmod(rest, _NANOSECONDS["h"])
    minutes, rest = divmod(rest, _NANOSECONDS["m"])
    longer = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
    if longer and not rest:
        return longer
    unit = next((unit for unit in ("s", "ms", "us", "ns") if rest >= _NANOSECONDS[unit]), "s")
    return f"{longer}{Decimal(rest) / _NANOSECONDS[unit]:f}{unit}"


def parse_size(text: str) -> int:
    """Parse a size to bytes: `50GiB` or `50Gi` (powers of 1024), `500MB` (powers of 1000), or a number of bytes.

    Raises ValueError, also for `50G`: the unit is ambiguous.
    """
    if text.startswith("-"):
        raise ValueError("must not be negative")
    match = _SIZE.fullmatch(text)
    factor = _UNITS_IGNORING_CASE.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"must be a size such as 50GiB, 500MB, 0 or a number of bytes{_suggest_size(text)}")
    return int(Decimal(match[1]) * factor)


def format_size(size: int) -> str:
    """Format bytes in the largest binary unit in which the size is a whole number, else as a number of bytes."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return str(size)


def _suggest_duration(text: str) -> str:
    match = _OTHER_UNIT.fullmatch(text)
    known = _OTHER_DURATIONS.get(match[2].lower()) if match else None
    if match is None or known is None:
        return ""
    factor, unit = known
    return f"; write {(Decimal(match[1]) * factor).normalize():f}{unit}"


def _suggest_size(text: str) -> str:
    match = _OTHER_UNIT.fullmatch(text)
    letter = match[2][0].upper() if match else ""
    if match is None or letter not in "KMGTP":
        return ""
    return f"; write {match[1]}{letter}iB (powers of 1024) or {match[1]}{letter}B (powers of 1000)"
