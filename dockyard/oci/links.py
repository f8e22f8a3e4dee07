"""The Link header, which refers to the next page of a list (RFC 8288)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs, unquote, urlencode, urljoin, urlsplit

# A target, and everything up to the next one. Quoted text may contain brackets and commas.
_LINK: Final = re.compile(r'<([^<>]*+)>((?:[^<>"]++|"(?:[^"\\]++|\\.)*+")*+)', re.ASCII)
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


def next_query(path: str, link: str, page: bytes) -> str:
    """Return the query of the next page of a list, as it is written in the link that was sent with `page`.

    Only the query is used of a link: the next page is requested at the URL of this page, `path`. Registries behind a
    proxy do not know their host, and leave out a part of the path or add one. Raises ValueError if the link is of
    another list: its path has another repository at the end, and its `last` is not an entry of this page.
    """
    target = urlsplit(urljoin(path, link))
    list_name, link_name = (unquote(text).rpartition("/v2/")[2] for text in (path, target.path))
    is_same = f"/{list_name}".endswith(f"/{link_name}") or f"/{link_name}".endswith(f"/{list_name}")
    last = parse_qs(target.query).get("last", [""])[0]
    if not is_same and (not last or f'"{last}"'.encode() not in page):
        raise ValueError("a Link to another list")
    return link.partition("#")[0].partition("?")[2]


def format_next_link(path: str, query: Mapping[str, str | Sequence[str]]) -> str:
    """Return the value of a Link header to the next page, relative to the origin of the request."""
    return f'<{path}?{urlencode(query, doseq=True)}>; rel="next"'
