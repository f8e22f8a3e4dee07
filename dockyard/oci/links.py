"""The Link header, which refers to the next page of a list (RFC 8288)."""

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlencode

# A target, and everything up to the next one. Quoted text may contain brackets and commas.
_LINK: Final = re.compile(r'<([^<>]*)>((?:[^<>"]|"(?:[^"\\]|\\.)*")*)', re.ASCII)
_RELATION: Final = re.compile(r';\s*rel\s*=\s*"?([^";,]*)', re.ASCII | re.IGNORECASE)


def find_next(headers: Iterable[str]) -> str | None:
    """Return the target of the link to the next page, unresolved; None on the last page.

    Raises ValueError for a header that is not a link, because a list that ends there may be incomplete.
    """
    for header in headers:
        links = _LINK.findall(header)
        if not links and header.strip():
            raise ValueError("malformed Link header")
        for target, parameters in links:
            relation = _RELATION.search(parameters)
            if relation and "next" in relation[1].lower().split():
                return str(target)
    return None


def format_next_link(path: str, query: Mapping[str, str]) -> str:
    """Return the value of a Link header to the next page, relative to the origin of the request."""
    return f'<{path}?{urlencode(query)}>; rel="next"'
