"""Maps the name in a request to an upstream and a repository there. Pure.

A request may contain the registry as a prefix of the name, as the `ns` parameter, as a prefix of the path, or not at
all. All are first converted to a full name, which begins with the prefix of an upstream, and only full names are looked
up. So all forms of a request have the same Target, and the same cache key.

A name or an `ns` without a configured upstream is unknown: Dockyard never connects to a host because a client names it.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from dockyard.config.hosts import DOCKER_HUB, DOCKER_HUB_HOSTS
from dockyard.config.settings import Upstream
from dockyard.errors import FailureDetails, NameUnknown
from dockyard.oci.login import Login
from dockyard.oci.reference import Name, quote

_MAX_PREFIXES_SHOWN: Final = 20
MAX_CACHED_NAMES: Final = 4096
MAX_CACHED_NAME_CHARS: Final = 512


@attrs.frozen
class Target:
    """The upstream and the repository that a request is for.

    `repository` is the name at the upstream, including a path in `registry`. `name` is the normalized full name, which
    begins with the prefix of the upstream: the cache key. `login` is the client's own login at this upstream, with
    which content is fetched that the operator's login cannot get; None if it has none, or if the upstream does not
    decide about access. `passed` are the servers that the request has passed (`oci.cdn_loop`).
    """

    upstream: Upstream
    repository: str
    name: Name
    login: Login | None = attrs.field(default=None, eq=False, repr=False)
    passed: tuple[str, ...] = attrs.field(default=(), eq=False)


class Router:
    """Routes requests to upstreams, whose prefixes must be different."""

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._by_prefix = {upstream.prefix: upstream for upstream in upstreams}
        self._depth = max((prefix.count("/") + 1 for prefix in self._by_prefix), default=0)
        self._default = next((upstream for upstream in upstreams if upstream.default), None)
        self._roots = _roots_by_namespace(upstreams)
        self._route_cached = functools.lru_cache(MAX_CACHED_NAMES)(self._route)

    def route(self, name: str, ns: str | None = None, path_prefix: str | None = None) -> Target:
        """Return the target of a name. Raises NameInvalid or NameUnknown.

        `ns` is the query parameter, the host of a registry. `path_prefix` is the part of the path before `/v2/`. A
        prefix in the path takes precedence over one in the name, and that over `ns`.
        """
        is_short = len(name) + len(ns or "") + len(path_prefix or "") <= MAX_CACHED_NAME_CHARS
        return (self._route_cached if is_short else self._route)(name, ns, path_prefix)

    def find_upstream(self, path_prefix: str) -> Upstream | None:
        """Return the upstream of a prefix in a path; None if there is none."""
        return next(filter(None, map(self._by_prefix.get, self._hub_names(path_prefix))), None)

    def _route(self, name: str, ns: str | None, path_prefix: str | None) -> Target:
        parsed = Name.parse(name)
        if path_prefix is not None:
            upstream = self.find_upstream(path_prefix)
            if upstream is None:
                raise self._unknown(f"no upstream is configured for {quote(path_prefix)}")
            return self._require(f"{upstream.prefix}/{name}")
        for full_name in self._hub_names(name):
            if target := self._find(full_name):
                return target
        if ns is not None:
            return self._route_namespace(name, ns)
        if self._default is None or _looks_like_host(parsed.components[0]):
            raise self._unknown(f"no upstream is configured for {quote(name)}")
        return self._require(f"{self._default.prefix}/{name}")

    def _route_namespace(self, name: str, ns: str) -> Target:
        for root in self._find_roots(ns.lower()):
            if target := self._find(f"{root}/{name}"):
                return target
        raise self._unknown(f"no upstream is configured for {quote(name)} of the registry {quote(ns)}")

    def _find_roots(self, ns: str) -> Sequence[str]:
        host = ns.removesuffix(":443")
        return self._roots.get(ns, self._roots.get(host, ()) if ":" not in host else ())

    def _hub_names(self, name: str) -> Iterator[str]:
        """Yield a full name or prefix as it is, then, if it begins with a host of Docker Hub, as it is configured."""
        yield name
        first, slash, rest = name.partition("/")
        if first in DOCKER_HUB_HOSTS:
            for root in self._find_roots(first):
                yield f"{root}{slash}{rest}"

    def _require(self, full_name: str) -> Target:
        if target := self._find(full_name):
            return target
        raise self._unknown(f"no upstream is configured for {quote(full_name)}")

    def _find(self, full_name: str) -> Target | None:
        name = Name.parse(full_name)
        for upstream, rest in self._matches(name):
            if rest.startswith("v2/"):
                raise self._unknown(
                    f"remove /v2 from the URL of the mirror: {quote(full_name)} contains v2 after the prefix"
                )
            repository = "/".join(part for part in (upstream.kept_prefix, rest) if part)
            if not repository:
                continue  # the name is only a prefix, which would be removed
            if upstream.is_hub and "/" not in repository:
                # Look it up again, because docker.io/x means docker.io/library/x even if docker.io/x is a prefix.
                return self._find(f"{_root(upstream)}/library/{repository}")
            return Target(upstream, "/".join(part for part in (upstream.path, repository) if part), name)
        return None

    def _matches(self, name: Name) -> Iterator[tuple[Upstream, str]]:
        """Yield the upstreams whose prefixes match the name, the longest first, each with the rest of the name."""
        components = name.components
        for depth in range(min(self._depth, len(components)), 0, -1):
            if upstream := self._by_prefix.get("/".join(components[:depth])):
                yield upstream, "/".join(components[depth:])

    def _unknown(self, problem: str) -> NameUnknown:
        prefixes = list(self._by_prefix)
        shown = ", ".join(prefixes[:_MAX_PREFIXES_SHOWN]) or "none"
        more = len(prefixes) - _MAX_PREFIXES_SHOWN
        return NameUnknown(
            f"{problem} (configured prefixes: {shown}{f' and {more} more' if more > 0 else ''})",
            details=FailureDetails(cure="add its registry to `upstreams` in the settings, or correct the name"),
        )


def _roots_by_namespace(upstreams: Sequence[Upstream]) -> dict[str, list[str]]:
    """Return for each `ns` the prefixes that make a name a full name, the preferred one first.

    An `ns` is the prefix of an upstream or its first component, a host name of Docker Hub, or the host and port of a
    registry. The port 443 may be added to each of them.
    """
    pairs: list[tuple[str, str]] = []
    for upstream in upstreams:
        pairs.append((upstream.prefix, upstream.prefix))
        first = upstream.prefix.partition("/")[0]
        pairs.append((first, first))
    for upstream in sorted(upstreams, key=lambda upstream: upstream.prefix != DOCKER_HUB):
        if upstream.is_hub:
            pairs += [(host, _root(upstream)) for host in sorted(DOCKER_HUB_HOSTS)]
    for upstream in upstreams:
        if not upstream.path:  # with a path, the upstream is only a part of that registry, under other names
            pairs += [(authority, _root(upstream)) for authority in _authorities(upstream)]
    roots: dict[str, list[str]] = {}
    for namespace, root in pairs:
        known = roots.setdefault(namespace, [])
        if root not in known:
            known.append(root)
    return roots


def _authorities(upstream: Upstream) -> tuple[str, ...]:
    """Return the host of the registry as clients write it: with its port, and without it if it is the default."""
    authority, port = upstream.origin.authority, f":{upstream.origin.port}"
    return (authority,) if authority.endswith(port) else (authority, authority + port)


def _root(upstream: Upstream) -> str:
    """Return the part of a full name before the repository."""
    kept = upstream.kept_prefix
    return upstream.prefix.removesuffix(f"/{kept}") if kept else upstream.prefix


def _looks_like_host(component: str) -> bool:
    """Return whether the first component of a name is a registry, by the rule of Docker. Names contain no colon."""
    return "." in component or component == "localhost"
