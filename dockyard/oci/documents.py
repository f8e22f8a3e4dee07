"""JSON documents of upstreams that all parsers read in the same way.

JSON parsers handle duplicate keys, lone surrogates, `NaN` and byte order marks in different ways. Two clients could
read two images from such a document, so it is rejected, and so is one that is costly to parse.
"""

import json
import re
from typing import Any, Final, NoReturn

from dockyard.errors import BadUpstream

# The largest real index has about ten thousand. Parsing a body that consists of braces takes a hundred times its size.
_MAX_JSON_OBJECTS: Final = 200_000
# Python limits it too, by its version and the size of the stack: other parsers have limits from 500 on.
_MAX_JSON_DEPTH: Final = 500
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def parse_document(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; numbers with a fraction or exponent become strings. Raises BadUpstream."""
    parts = body.count(b"{") + body.count(b"[")
    if parts > _MAX_JSON_OBJECTS:
        raise BadUpstream("the upstream's manifest has too many parts")
    try:
        text = body.decode("utf-8")  # because json.loads also accepts UTF-16 and UTF-32 bytes
        document = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_float=str,  # manifests need no floats, and long ones are costly to convert
            parse_constant=_reject_constant,
        )
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(document, ensure_ascii=False).encode("utf-8")  # raises ValueError for a lone surrogate
    except (ValueError, RecursionError) as exc:  # JSONDecodeError and UnicodeError are ValueErrors
        raise BadUpstream("the upstream's response is not valid, unambiguous JSON") from exc
    if not isinstance(document, dict):
        raise BadUpstream("the upstream's response is not a manifest")
    if parts > _MAX_JSON_DEPTH and _is_deeper(document, _MAX_JSON_DEPTH):
        raise BadUpstream("the upstream's manifest is nested too deeply")
    return document


def _is_deeper(document: Any, depth: int) -> bool:
    """Return whether objects and arrays are nested in more than `depth` levels."""
    level = [document]
    for _ in range(depth):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("duplicate keys")
    return document


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
