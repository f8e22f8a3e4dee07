"""From the name in a request to an upstream and the repository in it.

Every shape of request is first turned into one full name, upstream prefix and all; only full names are looked up. So
all shapes lead to the same Target, and so to the same cache key.

The world is closed: a name or an `ns` that no upstream is configured for is unknown. Dockyard never asks a host because
a client named it.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from dockyard.config.settings import Upstream
from dockyard.errors import NameUnknown
from dockyard.oci.reference import Name, quote

HUB: Final = "docker.io"
# All the hosts under which clients and configurations know Docker Hub.
HUB_HOSTS: Final = frozenset({HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})

_MAX_PREFIXES_SHOWN: Final = 20
REMEMBERED_NAMES: Final = 4096
MAX_REMEMBERED_CHARS: Final = 512


@attrs.frozen
class Target:
    """Whom to ask for what.

    `repository` is what is asked upstream, a path in `registry:` included. `name` is the full name with the upstream's
    prefix, normalised: the cache key.
    """

    upstream: Upstream
    repository: str
    name: Name


class Router:
    """The routes of one configuration. Prefixes of `upstreams` are different from each other."""

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._by_prefix = {upstream.prefix: upstream for upstream in upstreams}
        self._depth = max((prefix.count("/") + 1 for prefix in self._by_prefix), default=0)
        self._default = next((upstream for upstream in upstreams if upstream.default), None)
        self._roots = _roots_by_namespace(upstreams)
        self._remembered = functools.lru_cache(REMEMBERED_NAMES)(self._route)

    def route(self, name: str, ns: str | None = None, path_prefix: str | None = None) -> Target:
        """Find the target of a name; raise NameInvalid or NameUnknown.

        `ns` is the query parameter, a registry's host as the client calls it. `path_prefix` is what stood before `/v2/`
        in the path. A prefix in the path wins over one in the name, and that over `ns`.
        """
        is_short = len(name) + len(ns or "") + len(path_prefix or "") <= MAX_REMEMBERED_CHARS
        return (self._remembered if is_short else self._route)(name, ns, path_prefix)

    def _route(self, name: str, ns: str | None, path_prefix: str | None) -> Target:
        parsed = Name.parse(name)
        if path_prefix is not None:
            if path_prefix not in self._by_prefix:
                raise self._unknown(f"no upstream is configured for {quote(path_prefix)}")
            return self._require(f"{path_prefix}/{name}")
        if target := self._find(name):
            return target
        if ns is not None:
            return self._route_namespace(name, ns)
        if self._default is None or _looks_like_host(parsed.components[0]):
            raise self._unknown(f"no upstream is configured for {quote(name)}")
        return self._require(f"{self._default.prefix}/{name}")

    def _route_namespace(self, name: str, ns: str) -> Target:
        for root in self._roots.get(ns.lower(), ()):
            if target := self._find(f"{root}/{name}"):
                return target
        raise self._unknown(f"no upstream is configured for {quote(name)} of the registry {quote(ns)}")

    def _require(self, full_name: str) -> Target:
        if target := self._find(full_name):
            return target
        raise self._unknown(f"no upstream is configured for {quote(full_name)}")

    def _find(self, full_name: str) -> Target | None:
        name = Name.parse(full_name)
        for upstream, rest in self._matches(name):
            if rest.startswith("v2/"):
                raise self._unknown(f"leave /v2 out of the URL of the mirror: {quote(full_name)} has one too many")
            repository = "/".join(part for part in (_kept_prefix(upstream), rest) if part)
            if not repository:
                continue  # the name is a bare prefix, all of which would be stripped
            if _is_hub(upstream) and "/" not in repository:
                # Looked up again, since docker.io/x means docker.io/library/x even where docker.io/x is a prefix.
                return self._find(f"{_root(upstream)}/library/{repository}")
            return Target(upstream, "/".join(part for part in (upstream.path, repository) if part), name)
        return None

    def _matches(self, name: Name) -> Iterator[tuple[Upstream, str]]:
        """Yield the upstreams whose prefix begins the name, longest first, each with the rest of the name."""
        components = name.components
        for depth in range(min(self._depth, len(components)), 0, -1):
            if upstream := self._by_prefix.get("/".join(components[:depth])):
                yield upstream, "/".join(components[depth:])

    def _unknown(self, problem: str) -> NameUnknown:
        prefixes = list(self._by_prefix)
        shown = ", ".join(prefixes[:_MAX_PREFIXES_SHOWN]) or "none"
        more = len(prefixes) - _MAX_PREFIXES_SHOWN
        return NameUnknown(f"{problem} (configured prefixes: {shown}{f' and {more} more' if more > 0 else ''})")


def _roots_by_namespace(upstreams: Sequence[Upstream]) -> dict[str, list[str]]:
    """Return for each `ns` what to put before a name to make it a full name, best first.

    An `ns` is an upstream's prefix or its first component, a name of Docker Hub, or a registry's host and port.
    """
    pairs: list[tuple[str, str]] = []
    for upstream in upstreams:
        pairs.append((upstream.prefix, upstream.prefix))
        first = upstream.prefix.partition("/")[0]
        pairs.append((first, first))
    for upstream in sorted(upstreams, key=lambda upstream: upstream.prefix != HUB):
        if _is_hub(upstream):
            pairs += [(host, _root(upstream)) for host in sorted(HUB_HOSTS)]
    for upstream in upstreams:
        if not upstream.path:  # with a path the upstream is a part of that registry only, under other names
            pairs += [(authority, _root(upstream)) for authority in _authorities(upstream)]
    roots: dict[str, list[str]] = {}
    for namespace, root in pairs:
        known = roots.setdefault(namespace, [])
        if root not in known:
            known.append(root)
    return roots


def _authorities(upstream: Upstream) -> tuple[str, ...]:
    """Return how clients write the registry's host: with its port, and without when that is the scheme's own."""
    authority, port = upstream.origin.authority, f":{upstream.origin.port}"
    return (authority,) if authority.endswith(port) else (authority, authority + port)


def _kept_prefix(upstream: Upstream) -> str:
    """Return the part of the prefix that is a part of the repository: `my-org` of `ghcr.io/my-org` at `ghcr.io`.

    A path in `registry:` stands in its place: whoever writes one says what goes before the repository.
    """
    first, _, rest = upstream.prefix.partition("/")
    host = upstream.origin.host
    is_same_registry = first == host or (first in HUB_HOSTS and host in HUB_HOSTS)
    return rest if is_same_registry and not upstream.path else ""


def _root(upstream: Upstream) -> str:
    """Return what stands before the repository in a full name."""
    kept = _kept_prefix(upstream)
    return upstream.prefix.removesuffix(f"/{kept}") if kept else upstream.prefix


def _is_hub(upstream: Upstream) -> bool:
    """Tell whether names of one component mean `library/` there: at Docker Hub, and at what stands in for it."""
    return upstream.prefix == HUB or (upstream.origin.host in HUB_HOSTS and not upstream.path)


def _looks_like_host(component: str) -> bool:
    """Tell whether the first component of a name is a registry, by Docker's rule (names have no colon here)."""
    return "." in component or component == "localhost"
