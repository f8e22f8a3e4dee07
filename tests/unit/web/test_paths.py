"""Paths to endpoints: read from the right, with the prefix of a mirror before `/v2/`."""

from typing import Any

import pytest

from dockyard.web.paths import PathRouter


class Endpoint:
    """A resource that is identified by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def on_get(self) -> None:
        """Answer nothing."""

    on_head = on_get


ROUTER = PathRouter(
    Endpoint("base"),
    {kind: Endpoint(kind) for kind in ("manifests", "blobs", "tags", "referrers")},
    {"/version": Endpoint("version")},
)


def find(path: str) -> tuple[str, dict[str, str]] | None:
    """The endpoint of a path, by name, and its arguments."""
    found: Any = ROUTER.find(path)
    return found and (found[0].name, found[2])


@pytest.mark.parametrize(
    ("path", "endpoint", "arguments"),
    [
        ("/v2", "base", {"path_prefix": ""}),
        ("/v2/", "base", {"path_prefix": ""}),
        ("/docker.io/v2/", "base", {"path_prefix": "docker.io"}),
        ("/version", "version", {}),
        ("/v2/a/manifests/t", "manifests", {"path_prefix": "", "name": "a", "reference": "t"}),
        ("/v2/a/b/blobs/sha256:0", "blobs", {"path_prefix": "", "name": "a/b", "reference": "sha256:0"}),
        ("/d.io/v2/a/manifests/t", "manifests", {"path_prefix": "d.io", "name": "a", "reference": "t"}),
        ("/g.io/org/v2/a/blobs/d", "blobs", {"path_prefix": "g.io/org", "name": "a", "reference": "d"}),
        (
            "/v2/blobs/manifests/tags/list/manifests/t",
            "manifests",
            {"path_prefix": "", "name": "blobs/manifests/tags/list", "reference": "t"},
        ),
        ("/v2/a/tags/list", "tags", {"path_prefix": "", "name": "a", "reference": "list"}),
        ("/d.io/v2/a/tags/list", "tags", {"path_prefix": "d.io", "name": "a", "reference": "list"}),
        ("/v2/tags/list/tags/list", "tags", {"path_prefix": "", "name": "tags/list", "reference": "list"}),
        ("/v2/a/referrers/sha256:0", "referrers", {"path_prefix": "", "name": "a", "reference": "sha256:0"}),
        ("/v2/a/v2/b/manifests/t", "manifests", {"path_prefix": "", "name": "a/v2/b", "reference": "t"}),
    ],
)
def test_a_path_names_an_endpoint(path: str, endpoint: str, arguments: dict[str, str]) -> None:
    """Each shape that clients send is found, with its parts."""
    assert find(path) == (endpoint, arguments)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/",
        "/v2x",
        "/v2/_catalog",
        "/v2/a/blobs/uploads/1",
        "/v2/a",
        "/v2/a/tags/x",
        "/metrics",
    ],
)
def test_other_paths_are_no_endpoint(path: str) -> None:
    """What a read-only cache does not have is not found."""
    assert find(path) is None
