"""The Link header: where the next page is (RFC 8288)."""

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlencode

# A target, and everything up to the next one. Quoted text may hold brackets and commas.
_LINK: Final = re.compile(r'<([^<>]*)>((?:[^<>"]|"(?:[^"\\]|\\.)*")*)', re.ASCII)
_RELATION: Final = re.compile(r';\s*rel\s*=\s*"?([^";,]*)', re.ASCII | re.IGNORECASE)


def find_next(headers: Iterable[str]) -> str | None:
    """The target of the link to the next page, as it stands there; None on the last page.

    Raises ValueError for a header that is no link: a list that ends there may not be whole.
    """
    for header in headers:
        links = _LINK.findall(header)
        if not links and header.strip():
            raise ValueError("a Link that makes no sense")
        for target, parameters in links:
            relation = _RELATION.search(parameters)
            if relation and "next" in relation[1].lower().split():
                return str(target)
    return None


def link_next(path: str, query: Mapping[str, str]) -> str:
    """The value of a Link header to the next page, relative to our own origin."""
    return f'<{path}?{urlencode(query)}>; rel="next"'
