"""Routing: T08 to T11 of the protocol's test cases, as tables of names in and targets out."""

import contextlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.config.settings import Upstream
from dockyard.errors import NameInvalid, NameUnknown
from dockyard.routing import Router

HUB = Upstream("docker.io", "registry-1.docker.io", default=True)
GHCR = Upstream("ghcr.io", "ghcr.io")
GHCR_ORG = Upstream("ghcr.io/my-org", "ghcr.io")
HUB_ORG = Upstream("docker.io/my-org", "registry-1.docker.io")
RENAMED = Upstream("mirror/k8s", "registry.k8s.io")
LOCAL = Upstream("local", "http://registry.local:5000")
SUBTREE = Upstream("team", "harbor.example/proxy/team")
ALL = (HUB, GHCR, GHCR_ORG, HUB_ORG, RENAMED, LOCAL, SUBTREE)


@attrs.frozen
class Found:
    """What a test looks at in a Target."""

    prefix: str
    repository: str
    name: str


def find(router: Router, name: str, ns: str | None = None, path_prefix: str | None = None) -> Found:
    """Route, and take the target apart."""
    target = router.route(name, ns=ns, path_prefix=path_prefix)
    return Found(target.upstream.prefix, target.repository, str(target.name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docker.io/library/nginx", Found("docker.io", "library/nginx", "docker.io/library/nginx")),
        ("docker.io/nginx", Found("docker.io", "library/nginx", "docker.io/library/nginx")),
        ("docker.io/org/app", Found("docker.io", "org/app", "docker.io/org/app")),
        ("ghcr.io/app", Found("ghcr.io", "app", "ghcr.io/app")),
        ("ghcr.io/a/b/c/d", Found("ghcr.io", "a/b/c/d", "ghcr.io/a/b/c/d")),
        # the longest prefix wins, component by component
        ("ghcr.io/my-org/app", Found("ghcr.io/my-org", "my-org/app", "ghcr.io/my-org/app")),
        ("ghcr.io/my-org/a/b", Found("ghcr.io/my-org", "my-org/a/b", "ghcr.io/my-org/a/b")),
        ("ghcr.io/my-org", Found("ghcr.io/my-org", "my-org", "ghcr.io/my-org")),
        ("ghcr.io/my-org-evil/x", Found("ghcr.io", "my-org-evil/x", "ghcr.io/my-org-evil/x")),
        ("ghcr.io/my-orgx/y", Found("ghcr.io", "my-orgx/y", "ghcr.io/my-orgx/y")),
        ("docker.io/my-org/app", Found("docker.io/my-org", "my-org/app", "docker.io/my-org/app")),
        # at the Hub a name of one component is an official image, whatever it is called
        ("docker.io/my-org", Found("docker.io", "library/my-org", "docker.io/library/my-org")),
        ("docker.io/library", Found("docker.io", "library/library", "docker.io/library/library")),
        # a prefix of another name is stripped whole
        ("mirror/k8s/pause", Found("mirror/k8s", "pause", "mirror/k8s/pause")),
        ("mirror/k8s/coredns/coredns", Found("mirror/k8s", "coredns/coredns", "mirror/k8s/coredns/coredns")),
        ("local/app", Found("local", "app", "local/app")),
        # a path in `registry:` is put before the repository
        ("team/app", Found("team", "proxy/team/app", "team/app")),
        # words of the API are words like others
        ("ghcr.io/blobs/manifests/tags", Found("ghcr.io", "blobs/manifests/tags", "ghcr.io/blobs/manifests/tags")),
        ("ghcr.io/a/v2/b", Found("ghcr.io", "a/v2/b", "ghcr.io/a/v2/b")),
        ("ghcr.io/v2", Found("ghcr.io", "v2", "ghcr.io/v2")),
    ],
)  # fmt: skip
def test_a_name_leads_to_an_upstream_and_a_repository(name: str, expected: Found) -> None:
    """The longest configured prefix decides (shape U1)."""
    assert find(Router(ALL), name) == expected


@pytest.mark.parametrize(
    ("upstream", "name", "repository"),
    [
        (Upstream("ghcr.io/my-org", "ghcr.io"), "ghcr.io/my-org/app", "my-org/app"),
        (Upstream("ghcr.io/my-org/team", "https://ghcr.io"), "ghcr.io/my-org/team/app", "my-org/team/app"),
        (Upstream("ghcr.io/my-org", "ghcr.io/my-org"), "ghcr.io/my-org/app", "my-org/app"),
        (Upstream("ghcr.io/my-org", "mirror.example"), "ghcr.io/my-org/app", "app"),
        (Upstream("ghcr.io/my-org", "mirror.example/cache/my-org"), "ghcr.io/my-org/app", "cache/my-org/app"),
        (Upstream("docker.io/my-org", "docker.io"), "docker.io/my-org/app", "my-org/app"),
        (Upstream("docker.io/my-org", "index.docker.io"), "docker.io/my-org/app", "my-org/app"),
        (Upstream("index.docker.io/my-org", "registry-1.docker.io"), "index.docker.io/my-org/app", "my-org/app"),
        (Upstream("docker.io/my-org", "mirror.example"), "docker.io/my-org/app", "app"),
        (Upstream("docker.io/library", "registry-1.docker.io"), "docker.io/library/nginx", "library/nginx"),
        (Upstream("docker.io/library", "registry-1.docker.io"), "docker.io/library", "library/library"),
        (Upstream("docker.io", "http://127.0.0.1:5001"), "docker.io/nginx", "library/nginx"),
        (Upstream("docker.io", "mirror.example/hub"), "docker.io/nginx", "hub/library/nginx"),
        (Upstream("hub", "registry-1.docker.io"), "hub/nginx", "library/nginx"),
        (Upstream("hub", "index.docker.io"), "hub/nginx", "library/nginx"),
        (Upstream("hub", "registry.hub.docker.com"), "hub/nginx", "library/nginx"),
        (Upstream("hub", "registry-1.docker.io/my-org"), "hub/app", "my-org/app"),
        (Upstream("registry.local", "registry.local:5000"), "registry.local/app", "app"),
        (Upstream("registry.local/org", "registry.local:5000"), "registry.local/org/app", "org/app"),
    ],
)
def test_what_of_the_prefix_stays_in_the_repository(upstream: Upstream, name: str, repository: str) -> None:
    """What follows the registry's own host stays, unless `registry:` has a path; other prefixes go."""
    assert Router([upstream]).route(name).repository == repository


@pytest.mark.parametrize(
    "shape",
    [
        ("docker.io/my-org/app", None, None),
        ("docker.io/my-org/app", "docker.io", None),
        ("my-org/app", "docker.io", "docker.io"),
        ("my-org/app", None, "docker.io"),
        ("app", "docker.io", "docker.io/my-org"),
        ("my-org/app", "docker.io", None),
        ("my-org/app", "index.docker.io", None),
        ("my-org/app", "registry-1.docker.io", None),
        ("my-org/app", "registry.hub.docker.com", None),
        ("my-org/app", "registry-1.docker.io:443", None),
        ("my-org/app", "DOCKER.IO", None),
        ("my-org/app", None, None),
    ],
)
@pytest.mark.parametrize("upstreams", [ALL, tuple(reversed(ALL))])
def test_all_shapes_of_a_request_lead_to_one_target(
    shape: tuple[str, str | None, str | None], upstreams: tuple[Upstream, ...]
) -> None:
    """U1 to U5 have one cache key, and the order of the upstreams is of no matter."""
    assert find(Router(upstreams), *shape) == Found("docker.io/my-org", "my-org/app", "docker.io/my-org/app")


@pytest.mark.parametrize(
    "shape",
    [
        ("docker.io/alpine", None, None),
        ("docker.io/library/alpine", None, None),
        ("docker.io/library/alpine", "docker.io", None),
        ("library/alpine", None, "docker.io"),
        ("alpine", None, "docker.io"),
        ("library/alpine", "docker.io", None),
        ("alpine", "docker.io", None),
        ("library/alpine", None, None),
        ("alpine", None, None),
    ],
)
def test_an_official_image_has_one_target(shape: tuple[str, str | None, str | None]) -> None:
    """`alpine` and `library/alpine` are one at the Hub, in every shape."""
    assert find(Router(ALL), *shape) == Found("docker.io", "library/alpine", "docker.io/library/alpine")


@pytest.mark.parametrize(
    ("name", "ns", "expected"),
    [
        ("app", "ghcr.io", Found("ghcr.io", "app", "ghcr.io/app")),
        ("app", "ghcr.io:443", Found("ghcr.io", "app", "ghcr.io/app")),
        ("my-org/app", "ghcr.io", Found("ghcr.io/my-org", "my-org/app", "ghcr.io/my-org/app")),
        ("pause", "registry.k8s.io", Found("mirror/k8s", "pause", "mirror/k8s/pause")),
        ("pause", "mirror/k8s", Found("mirror/k8s", "pause", "mirror/k8s/pause")),
        ("app", "registry.local:5000", Found("local", "app", "local/app")),
        ("app", "local", Found("local", "app", "local/app")),
    ],
)
def test_ns_names_an_upstream_by_prefix_or_registry_host(name: str, ns: str, expected: Found) -> None:
    """One hosts.toml may send every registry here (shape U4)."""
    assert find(Router(ALL), name, ns=ns) == expected


@pytest.mark.parametrize(
    "ns",
    [
        "",
        "evil.test",
        "169.254.169.254",
        "127.0.0.1:6379",
        "ghcr.io:443@evil.test",
        "ghcr.io:5000",
        "ghcr.io.",
        "xghcr.io",
        "ghcr.io/",
        "registry.local",
        "registry.local:50000",
        "harbor.example",
        "mirror/k8s/pause",
        "docker.io\r\nX: 1",
        "\u00e9",
        "x" * 5000,
    ],
)
def test_an_ns_that_nobody_configured_is_unknown(ns: str) -> None:
    """Dockyard is no open proxy, nor does the default upstream answer for others."""
    with pytest.raises(NameUnknown) as caught:
        Router(ALL).route("library/nginx", ns=ns)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 2000


def test_a_prefix_in_the_name_wins_over_ns() -> None:
    """The longer address is meant (shape U2), whatever `ns` says."""
    assert find(Router(ALL), "ghcr.io/x/app", ns="docker.io").prefix == "ghcr.io"
    assert find(Router(ALL), "ghcr.io/x/app", ns="evil.test").prefix == "ghcr.io"


def test_a_prefix_in_the_path_wins_over_ns_and_name() -> None:
    """What stands before `/v2/` is the operator's word (shape U3)."""
    assert find(Router(ALL), "x/app", ns="docker.io", path_prefix="ghcr.io").prefix == "ghcr.io"
    assert find(Router(ALL), "docker.io/x", path_prefix="ghcr.io") == Found(
        "ghcr.io", "docker.io/x", "ghcr.io/docker.io/x"
    )


@pytest.mark.parametrize("path_prefix", ["quay.io", "ghcr.io/other", "ghcr.io/my-org/app", "", "docker.io/", "mirror"])
def test_a_prefix_in_the_path_must_be_a_configured_one(path_prefix: str) -> None:
    """Anything else before `/v2/` is not found, even if `ns` is known."""
    with pytest.raises(NameUnknown):
        Router(ALL).route("library/nginx", ns="docker.io", path_prefix=path_prefix)


@pytest.mark.parametrize("name", ["quay.io/org/app", "localhost/app", "evil.test/a/b", "index.docker.io/x/y", "a.b"])
def test_a_name_with_an_unknown_host_is_not_for_the_default_upstream(name: str) -> None:
    """The error names the prefixes that would work."""
    with pytest.raises(NameUnknown, match=r"configured prefixes: docker\.io, ghcr\.io, ghcr\.io/my-org"):
        Router(ALL).route(name)


def test_a_bare_name_is_unknown_without_a_default_upstream() -> None:
    """Names need a prefix unless an upstream is the default."""
    with pytest.raises(NameUnknown, match=r"configured prefixes: ghcr\.io\)"):
        Router([GHCR]).route("library/nginx")


def test_the_default_upstream_need_not_be_the_hub() -> None:
    """Its prefix is put before bare names, and nothing else."""
    router = Router([HUB, attrs.evolve(LOCAL, default=True), attrs.evolve(HUB, prefix="hub", default=False)][1:])
    assert find(router, "app") == Found("local", "app", "local/app")


@pytest.mark.parametrize(
    ("name", "ns", "path_prefix"),
    [
        ("docker.io/v2/library/nginx", "docker.io", None),
        ("docker.io/v2/library/nginx", None, None),
        ("ghcr.io/my-org/v2/app", None, None),
        ("v2/library/nginx", "docker.io", None),
        ("v2/library/nginx", None, "docker.io"),
        ("v2/library/nginx", None, None),
    ],
)
def test_a_v2_behind_the_prefix_is_explained(name: str, ns: str | None, path_prefix: str | None) -> None:
    """A mirror URL with one `/v2` too many (shape U6) is a frequent mistake."""
    with pytest.raises(NameUnknown, match="leave /v2 out of the URL of the mirror"):
        Router(ALL).route(name, ns=ns, path_prefix=path_prefix)


@pytest.mark.parametrize("name", ["docker.io", "ghcr.io", "mirror/k8s/", "local", "team"])
def test_a_prefix_alone_is_no_repository(name: str) -> None:
    """There is nothing to ask for; a bare word is still a name for the default upstream."""
    router = Router([attrs.evolve(upstream, default=False) for upstream in ALL])
    with pytest.raises((NameUnknown, NameInvalid)):
        router.route(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Foo",
        "ghcr.io//my-org/x",
        "GHCR.IO/my-org/x",
        "ghcr.io/my-org/../x",
        "localhost:5000/x",
        "a" * 256,
        "ghcr.io/x\n",
    ],
)
@pytest.mark.parametrize("ns", [None, "docker.io"])
@pytest.mark.parametrize("path_prefix", [None, "docker.io"])
def test_a_name_outside_the_grammar_is_invalid(name: str, ns: str | None, path_prefix: str | None) -> None:
    """Names are checked before they are looked up, in every shape."""
    with pytest.raises(NameInvalid):
        Router(ALL).route(name, ns=ns, path_prefix=path_prefix)


@pytest.mark.parametrize("shape", [("x/" + "a" * 250, "docker.io", None), ("x/" + "a" * 250, None, "docker.io")])
def test_a_name_that_gets_too_long_is_invalid(shape: tuple[str, str | None, str | None]) -> None:
    """The limit is for the full name, so that all shapes agree."""
    with pytest.raises(NameInvalid):
        find(Router(ALL), *shape)
    with pytest.raises(NameInvalid):
        find(Router(ALL), "docker.io/" + "a" * 245)


def test_the_same_path_on_two_upstreams_has_two_keys() -> None:
    """Upstreams never share names."""
    router = Router(ALL)
    assert router.route("docker.io/a/b").name != router.route("ghcr.io/a/b").name


def test_an_entry_whose_prefix_the_client_names_is_preferred_for_its_ns() -> None:
    """Of two entries for one registry, the one under the registry's own name is meant; else the first."""
    renamed = Upstream("private", "ghcr.io")
    assert find(Router([renamed, GHCR]), "x/app", ns="ghcr.io").prefix == "ghcr.io"
    assert find(Router([renamed, attrs.evolve(renamed, prefix="other")]), "x/app", ns="ghcr.io").prefix == "private"


def test_the_entry_called_docker_io_is_the_hub_for_all_its_names() -> None:
    """A mirror configured under docker.io is asked, not the Hub behind another prefix."""
    router = Router([Upstream("hub", "registry-1.docker.io"), Upstream("docker.io", "mirror.example")])
    for ns in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        assert find(router, "nginx", ns=ns) == Found("docker.io", "library/nginx", "docker.io/library/nginx")


def test_prefixes_that_nest_around_library_end_somewhere() -> None:
    """A configuration that makes little sense still gives one stable answer."""
    router = Router([Upstream("hub", "registry-1.docker.io"), Upstream("hub/library", "registry-1.docker.io")])
    found = find(router, "hub/alpine")
    assert found.repository == "library/alpine"
    assert find(router, found.name) == found


def test_a_long_list_of_prefixes_is_shown_in_part() -> None:
    """An error message has an end."""
    router = Router([Upstream(f"r{number}.example", f"r{number}.example") for number in range(1000)])
    with pytest.raises(NameUnknown, match=r"r19.example and 980 more\)$"):
        router.route("x.example/y")


def test_a_router_without_upstreams_knows_nothing() -> None:
    """The error says so."""
    with pytest.raises(NameUnknown, match="configured prefixes: none"):
        Router([]).route("a")


words = st.sampled_from(
    ["docker.io", "ghcr.io", "my-org", "library", "mirror", "k8s", "local", "team", "v2", "app", "quay.io"]
)
names = st.lists(words, min_size=1, max_size=5).map("/".join)
spaces = st.none() | st.sampled_from(
    ["docker.io", "ghcr.io", "index.docker.io", "registry.local:5000", "evil.test", "mirror"]
)
prefixes = st.none() | st.sampled_from([upstream.prefix for upstream in ALL])


@given(names, spaces, prefixes, st.permutations(ALL))
def test_a_target_is_found_again_by_its_name(
    name: str, ns: str | None, path_prefix: str | None, upstreams: list[Upstream]
) -> None:
    """Whatever the shape, the cache key is a full name that leads to the same target (U1)."""
    router = Router(upstreams)
    try:
        target = router.route(name, ns=ns, path_prefix=path_prefix)
    except NameUnknown:
        return
    assert target.upstream in ALL
    assert str(target.name).startswith(f"{target.upstream.prefix}/") or str(target.name) == target.upstream.prefix
    assert router.route(str(target.name)) == target
    assert router.route(str(target.name), ns="evil.test") == target


@given(st.text(max_size=20), st.none() | st.text(max_size=20), st.none() | st.text(max_size=20))
def test_any_request_has_a_target_or_one_of_two_errors(name: str, ns: str | None, path_prefix: str | None) -> None:
    """No text makes the router raise anything else."""
    with contextlib.suppress(NameInvalid, NameUnknown):
        assert Router(ALL).route(name, ns=ns, path_prefix=path_prefix).upstream in ALL
