"""Paths to endpoints. Read from the right, since a repository may be called `blobs` or `manifests` itself.

What stands before `/v2/` is the prefix of an upstream: containerd and the Docker daemon put the path of a mirror there.
"""

from collections.abc import Mapping
from typing import Any

Found = tuple[Any, Mapping[str, Any], dict[str, str], str | None]


class PathRouter:
    """Falcon's router interface over the registry's paths.

    `base` is the resource of `/v2/`, `kinds` those of `/v2/<name>/<kind>/<reference>`, `others` those of whole paths.
    """

    def __init__(self, base: Any, kinds: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        self._base = _route(base)
        self._kinds = {kind: _route(resource) for kind, resource in kinds.items()}
        self._others = {path: _route(resource) for path, resource in others.items()}

    def find(self, uri: str, req: Any = None) -> Found | None:
        """The resource, its responders and their arguments; None for a path that is no endpoint."""
        if uri in self._others:
            return (*self._others[uri], {}, uri)
        if uri == "/v2":
            return (*self._base, {"path_prefix": ""}, uri)
        before, separator, after = uri.partition("/v2/")
        if not separator or before == "/":
            return None
        path_prefix = before.removeprefix("/")
        if not after:
            return (*self._base, {"path_prefix": path_prefix}, uri)
        name, kind, reference = _split(after)
        if kind not in self._kinds or (kind == "tags" and reference != "list"):
            return None
        return (*self._kinds[kind], {"path_prefix": path_prefix, "name": name, "reference": reference}, uri)

    def add_route(self, *_: object, **__: object) -> None:
        """Falcon asks for it; the endpoints are fixed."""
        raise NotImplementedError


def _split(path: str) -> tuple[str, str, str]:
    rest, _, reference = path.rpartition("/")
    name, _, kind = rest.rpartition("/")
    return name, kind, reference


def _route(resource: Any) -> tuple[Any, Mapping[str, Any]]:
    return resource, {"GET": resource.on_get, "HEAD": resource.on_head}
