"""JSON objects of others, parsed strictly: no repeated keys, no numbers that are none. Pure.

A key that occurs twice means something else to each parser. `NaN` and `Infinity` are no JSON.
"""

import json
from collections.abc import Mapping
from typing import Any


def parse_object(data: bytes) -> Mapping[str, Any]:
    """Parse a JSON object in UTF-8. Raises ValueError, whose message quotes nothing."""
    try:
        found = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_parse_float
        )
    except (ValueError, RecursionError) as exc:
        raise ValueError("is not valid JSON") from exc
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004  a wrong text, not a wrong type
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError("a number is not one")


def _parse_float(text: str) -> float:
    number = float(text)
    if abs(number) == float("inf"):
        raise ValueError("a number is too large")
    return number
