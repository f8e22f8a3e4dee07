"""Routing: tables of requests and their targets."""

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
class Expected:
    """The fields of a Target that are compared."""

    prefix: str
    repository: str
    name: str


def find(router: Router, name: str, ns: str | None = None, path_prefix: str | None = None) -> Expected:
    """Route a request, and return the fields to compare."""
    target = router.route(name, ns=ns, path_prefix=path_prefix)
    return Expected(target.upstream.prefix, target.repository, str(target.name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docker.io/library/nginx", Expected("docker.io", "library/nginx", "docker.io/library/nginx")),
        ("docker.io/nginx", Expected("docker.io", "library/nginx", "docker.io/library/nginx")),
        ("docker.io/org/app", Expected("docker.io", "org/app", "docker.io/org/app")),
        ("ghcr.io/app", Expected("ghcr.io", "app", "ghcr.io/app")),
        ("ghcr.io/a/b/c/d", Expected("ghcr.io", "a/b/c/d", "ghcr.io/a/b/c/d")),
        # the longest prefix matches, by components
        ("ghcr.io/my-org/app", Expected("ghcr.io/my-org", "my-org/app", "ghcr.io/my-org/app")),
        ("ghcr.io/my-org/a/b", Expected("ghcr.io/my-org", "my-org/a/b", "ghcr.io/my-org/a/b")),
        ("ghcr.io/my-org", Expected("ghcr.io/my-org", "my-org", "ghcr.io/my-org")),
        ("ghcr.io/my-org-evil/x", Expected("ghcr.io", "my-org-evil/x", "ghcr.io/my-org-evil/x")),
        ("ghcr.io/my-orgx/y", Expected("ghcr.io", "my-orgx/y", "ghcr.io/my-orgx/y")),
        ("docker.io/my-org/app", Expected("docker.io/my-org", "my-org/app", "docker.io/my-org/app")),
        # at Docker Hub, any name of one component is an official image
        ("docker.io/my-org", Expected("docker.io", "library/my-org", "docker.io/library/my-org")),
        ("docker.io/library", Expected("docker.io", "library/library", "docker.io/library/library")),
        # a prefix other than the host of the registry is removed completely
        ("mirror/k8s/pause", Expected("mirror/k8s", "pause", "mirror/k8s/pause")),
        ("mirror/k8s/coredns/coredns", Expected("mirror/k8s", "coredns/coredns", "mirror/k8s/coredns/coredns")),
        ("local/app", Expected("local", "app", "local/app")),
        # a path in `registry:` is put before the repository
        ("team/app", Expected("team", "proxy/team/app", "team/app")),
        # path components of the API may be in names
        ("ghcr.io/blobs/manifests/tags", Expected("ghcr.io", "blobs/manifests/tags", "ghcr.io/blobs/manifests/tags")),
        ("ghcr.io/a/v2/b", Expected("ghcr.io", "a/v2/b", "ghcr.io/a/v2/b")),
        ("ghcr.io/v2", Expected("ghcr.io", "v2", "ghcr.io/v2")),
    ],
)  # fmt: skip
def test_a_name_is_routed_to_an_upstream_and_a_repository(name: str, expected: Expected) -> None:
    """By the longest configured prefix."""
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
def test_a_prefix_below_the_registry_host_stays_in_the_repository(
    upstream: Upstream, name: str, repository: str
) -> None:
    """Unless `registry` has a path. Other prefixes are removed."""
    assert Router([upstream]).route(name).repository == repository


@pytest.mark.parametrize(
    "form",
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
        ("my-org/app", "docker.io:443", None),
        ("my-org/app", "Index.Docker.IO:443", None),
        ("index.docker.io/my-org/app", None, None),
        ("registry-1.docker.io/my-org/app", None, None),
        ("registry.hub.docker.com/my-org/app", "docker.io", None),
        ("index.docker.io/my-org/app", "ghcr.io", None),
        ("my-org/app", None, "index.docker.io"),
        ("my-org/app", "docker.io:443", "registry-1.docker.io"),
        ("app", None, "registry.hub.docker.com/my-org"),
        ("my-org/app", "DOCKER.IO", None),
        ("my-org/app", None, None),
    ],
)
@pytest.mark.parametrize("upstreams", [ALL, tuple(reversed(ALL))])
def test_all_forms_of_a_request_have_one_target(
    form: tuple[str, str | None, str | None], upstreams: tuple[Upstream, ...]
) -> None:
    """With a prefix, an `ns`, a path prefix, or none of them; in any order of the upstreams."""
    assert find(Router(upstreams), *form) == Expected("docker.io/my-org", "my-org/app", "docker.io/my-org/app")


@pytest.mark.parametrize(
    "form",
    [
        ("docker.io/alpine", None, None),
        ("docker.io/library/alpine", None, None),
        ("docker.io/library/alpine", "docker.io", None),
        ("library/alpine", None, "docker.io"),
        ("alpine", None, "docker.io"),
        ("index.docker.io/alpine", None, None),
        ("registry-1.docker.io/library/alpine", None, None),
        ("alpine", None, "registry.hub.docker.com"),
        ("alpine", "docker.io:443", None),
        ("library/alpine", "docker.io", None),
        ("alpine", "docker.io", None),
        ("library/alpine", None, None),
        ("alpine", None, None),
    ],
)
def test_an_official_image_has_one_target(form: tuple[str, str | None, str | None]) -> None:
    """`alpine` and `library/alpine` are the same at Docker Hub, in every form of request."""
    assert find(Router(ALL), *form) == Expected("docker.io", "library/alpine", "docker.io/library/alpine")


@pytest.mark.parametrize(
    ("name", "ns", "expected"),
    [
        ("app", "ghcr.io", Expected("ghcr.io", "app", "ghcr.io/app")),
        ("app", "ghcr.io:443", Expected("ghcr.io", "app", "ghcr.io/app")),
        ("my-org/app", "ghcr.io", Expected("ghcr.io/my-org", "my-org/app", "ghcr.io/my-org/app")),
        ("pause", "registry.k8s.io", Expected("mirror/k8s", "pause", "mirror/k8s/pause")),
        ("pause", "mirror/k8s", Expected("mirror/k8s", "pause", "mirror/k8s/pause")),
        ("app", "registry.local:5000", Expected("local", "app", "local/app")),
        ("app", "local", Expected("local", "app", "local/app")),
    ],
)
def test_ns_is_the_prefix_or_the_registry_host_of_an_upstream(name: str, ns: str, expected: Expected) -> None:
    """Containerd sends it, so that one hosts.toml is enough for all registries."""
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
def test_an_ns_without_an_upstream_is_unknown(ns: str) -> None:
    """Dockyard is not an open proxy, and the default upstream is not used for other registries."""
    with pytest.raises(NameUnknown) as caught:
        Router(ALL).route("library/nginx", ns=ns)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 2000


def test_a_prefix_in_the_name_takes_precedence_over_ns() -> None:
    """For any `ns`, also for an unknown one."""
    assert find(Router(ALL), "ghcr.io/x/app", ns="docker.io").prefix == "ghcr.io"
    assert find(Router(ALL), "ghcr.io/x/app", ns="evil.test").prefix == "ghcr.io"


def test_a_prefix_in_the_path_takes_precedence_over_ns_and_name() -> None:
    """The operator configures it in the URL of the mirror."""
    assert find(Router(ALL), "x/app", ns="docker.io", path_prefix="ghcr.io").prefix == "ghcr.io"
    assert find(Router(ALL), "docker.io/x", path_prefix="ghcr.io") == Expected(
        "ghcr.io", "docker.io/x", "ghcr.io/docker.io/x"
    )


@pytest.mark.parametrize("path_prefix", ["quay.io", "ghcr.io/other", "ghcr.io/my-org/app", "", "docker.io/", "mirror"])
def test_a_prefix_in_the_path_must_be_configured(path_prefix: str) -> None:
    """Any other is unknown, even if `ns` is known."""
    with pytest.raises(NameUnknown):
        Router(ALL).route("library/nginx", ns="docker.io", path_prefix=path_prefix)


@pytest.mark.parametrize("name", ["quay.io/org/app", "localhost/app", "evil.test/a/b", "hub.docker.com/x/y", "a.b"])
def test_a_name_with_an_unknown_host_is_not_routed_to_the_default_upstream(name: str) -> None:
    """The error contains the configured prefixes."""
    with pytest.raises(NameUnknown, match=r"configured prefixes: docker\.io, ghcr\.io, ghcr\.io/my-org"):
        Router(ALL).route(name)


def test_a_name_without_a_prefix_is_unknown_without_a_default_upstream() -> None:
    """The error contains the configured prefixes."""
    with pytest.raises(NameUnknown, match=r"configured prefixes: ghcr\.io\)"):
        Router([GHCR]).route("library/nginx")


def test_the_default_upstream_may_be_any() -> None:
    """Its prefix is added to names without one, and nothing else."""
    router = Router([HUB, attrs.evolve(LOCAL, default=True), attrs.evolve(HUB, prefix="hub", default=False)][1:])
    assert find(router, "app") == Expected("local", "app", "local/app")


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
def test_the_error_for_v2_after_the_prefix_has_the_remedy(name: str, ns: str | None, path_prefix: str | None) -> None:
    """A mirror URL with `/v2` is a frequent error."""
    with pytest.raises(NameUnknown, match="remove /v2 from the URL of the mirror"):
        Router(ALL).route(name, ns=ns, path_prefix=path_prefix)


@pytest.mark.parametrize("name", ["docker.io", "ghcr.io", "mirror/k8s/", "local", "team"])
def test_a_prefix_alone_is_not_a_repository(name: str) -> None:
    """Unless there is a default upstream."""
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
def test_an_invalid_name_is_rejected(name: str, ns: str | None, path_prefix: str | None) -> None:
    """Before it is looked up, in every form of request."""
    with pytest.raises(NameInvalid):
        Router(ALL).route(name, ns=ns, path_prefix=path_prefix)


@pytest.mark.parametrize("form", [("x/" + "a" * 250, "docker.io", None), ("x/" + "a" * 250, None, "docker.io")])
def test_a_full_name_that_is_too_long_is_invalid(form: tuple[str, str | None, str | None]) -> None:
    """The limit applies to the full name, so that all forms of a request give the same result."""
    with pytest.raises(NameInvalid):
        find(Router(ALL), *form)
    with pytest.raises(NameInvalid):
        find(Router(ALL), "docker.io/" + "a" * 245)


def test_two_upstreams_never_share_a_cache_key() -> None:
    """Even for the same repository."""
    router = Router(ALL)
    assert router.route("docker.io/a/b").name != router.route("ghcr.io/a/b").name


def test_the_upstream_whose_prefix_is_the_ns_is_preferred() -> None:
    """Of two upstreams with one registry, it is used; else the first of them."""
    renamed = Upstream("private", "ghcr.io")
    assert find(Router([renamed, GHCR]), "x/app", ns="ghcr.io").prefix == "ghcr.io"
    assert find(Router([renamed, attrs.evolve(renamed, prefix="other")]), "x/app", ns="ghcr.io").prefix == "private"


def test_the_upstream_docker_io_is_used_for_all_host_names_of_docker_hub() -> None:
    """Even if it is a mirror, and Docker Hub is configured with another prefix."""
    router = Router([Upstream("hub", "registry-1.docker.io"), Upstream("docker.io", "mirror.example")])
    for ns in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        assert find(router, "nginx", ns=ns) == Expected("docker.io", "library/nginx", "docker.io/library/nginx")


def test_nested_prefixes_with_library_give_a_stable_target() -> None:
    """Routing the full name gives the same target again."""
    router = Router([Upstream("hub", "registry-1.docker.io"), Upstream("hub/library", "registry-1.docker.io")])
    target = find(router, "hub/alpine")
    assert target.repository == "library/alpine"
    assert find(router, target.name) == target


def test_a_long_list_of_prefixes_is_truncated() -> None:
    """In the error message."""
    router = Router([Upstream(f"r{number}.example", f"r{number}.example") for number in range(1000)])
    with pytest.raises(NameUnknown, match=r"r19.example and 980 more\)$"):
        router.route("x.example/y")


def test_without_upstreams_every_name_is_unknown() -> None:
    """The error message says that none is configured."""
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
def test_the_name_of_a_target_is_routed_to_the_same_target(
    name: str, ns: str | None, path_prefix: str | None, upstreams: list[Upstream]
) -> None:
    """For any form of request."""
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
    """Routing raises no other error."""
    with contextlib.suppress(NameInvalid, NameUnknown):
        assert Router(ALL).route(name, ns=ns, path_prefix=path_prefix).upstream in ALL


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"])
@pytest.mark.parametrize(
    "upstream",
    [
        Upstream("hub", "registry-1.docker.io"),
        Upstream("index.docker.io", "docker.io"),
        Upstream("docker.io", "mirror.example/hub"),
        Upstream("dockerhub.example", "https://index.docker.io"),
    ],
    ids=lambda upstream: upstream.prefix,
)
def test_docker_hub_has_any_of_its_names(upstream: Upstream, host: str) -> None:
    """In the name, in the path, and as `ns`, whatever its prefix is; the cache key has the prefix."""
    router = Router([upstream, GHCR])
    for form in (
        (f"{host}/alpine", None, None),
        ("alpine", None, host),
        ("alpine", host, None),
        ("alpine", f"{host}:443", None),
    ):
        assert str(router.route(form[0], ns=form[1], path_prefix=form[2]).name) == f"{upstream.prefix}/library/alpine"


def test_a_prefix_that_is_a_name_of_docker_hub_is_that_upstream() -> None:
    """The exact prefix comes first."""
    index = Upstream("index.docker.io", "http://other.example:5000")
    router = Router([HUB, index])
    assert find(router, "index.docker.io/org/app") == Expected("index.docker.io", "org/app", "index.docker.io/org/app")
    assert find(router, "org/app", None, "index.docker.io").prefix == "index.docker.io"
    assert find(router, "registry-1.docker.io/org/app").prefix == "docker.io"


@pytest.mark.parametrize(
    ("name", "ns", "path_prefix"),
    [
        ("index.docker.io/org/app", None, None),
        ("org/app", None, "index.docker.io"),
        ("org/app", "index.docker.io:443", None),
        ("index.docker.io", None, None),
        ("org/app", "ghcr.io:80", None),
        ("org/app", "ghcr.io:443:443", None),
        ("org/app", ":443", None),
    ],
)
def test_without_docker_hub_its_names_are_unknown(name: str, ns: str | None, path_prefix: str | None) -> None:
    """They are never taken for another upstream."""
    with pytest.raises(NameUnknown):
        Router([GHCR, LOCAL]).route(name, ns=ns, path_prefix=path_prefix)


def test_port_443_may_be_added_to_any_registry() -> None:
    """It is the default port."""
    assert find(Router(ALL), "app", "ghcr.io:443") == Expected("ghcr.io", "app", "ghcr.io/app")
    assert find(Router(ALL), "app", "registry.local:5000").prefix == "local"
