"""Routing of paths to endpoints. A path is parsed from the right, since a repository may be called `blobs`.

The part before `/v2/` is the prefix of an upstream: containerd and the Docker daemon put the path of a mirror there.
"""

from collections.abc import Mapping
from typing import Any

Route = tuple[Any, Mapping[str, Any], dict[str, str], str | None]


class PathRouter:
    """Implements Falcon's router interface for the paths of a registry.

    `api_version` is the resource of `/v2/`, `kinds` has those of `/v2/<name>/<kind>/<reference>` by kind, `others` has
    those of complete paths.
    """

    def __init__(self, api_version: Any, kinds: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        self._api_version = _resource_and_responders(api_version)
        self._kinds = {kind: _resource_and_responders(resource) for kind, resource in kinds.items()}
        self._others = {path: _resource_and_responders(resource) for path, resource in others.items()}

    @property
    def templates(self) -> list[str]:
        """All paths that have an endpoint."""
        return ["/v2/", *(f"/v2/{{name}}/{kind}/{{reference}}" for kind in self._kinds), *self._others]

    def find(self, uri: str, req: Any = None) -> Route | None:
        """Return the resource, its responders, their arguments and the path; None for a path without an endpoint."""
        if uri in self._others:
            return (*self._others[uri], {}, uri)
        if uri == "/v2":
            return (*self._api_version, {"path_prefix": ""}, uri)
        before, separator, after = uri.partition("/v2/")
        if not separator or before == "/":
            return None
        path_prefix = before.removeprefix("/")
        if not after:
            return (*self._api_version, {"path_prefix": path_prefix}, uri)
        name, kind, reference = _split(after)
        if kind not in self._kinds or (kind == "tags" and reference != "list"):
            return None
        return (*self._kinds[kind], {"path_prefix": path_prefix, "name": name, "reference": reference}, uri)

    def add_route(self, *_: object, **__: object) -> None:
        """Part of the interface, not supported: the endpoints are fixed."""
        raise NotImplementedError


def is_registry_path(path: str) -> bool:
    """Whether a path is one of the registry protocol."""
    return path == "/v2" or "/v2/" in path


def _split(path: str) -> tuple[str, str, str]:
    rest, _, reference = path.rpartition("/")
    name, _, kind = rest.rpartition("/")
    return name, kind, reference


def _resource_and_responders(resource: Any) -> tuple[Any, Mapping[str, Any]]:
    responders = {"GET": resource.on_get, "HEAD": resource.on_head}
    if hasattr(resource, "on_post"):
        responders["POST"] = resource.on_post
    return resource, responders
