"""Upstream failures: what was pulled before is served stale; anything else is an error that says why."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.certificates import server_context
from tests.support.deployment import (
    CHECK_TIMEOUT_S,
    Deployment,
    eventually,
    open_deployment,
    parse_cache_status,
    upstream,
)
from tests.support.fake_registry import Change, FakeRegistry, Image
from tests.support.http_client import Response

CACHED = "/v2/up.test/app/manifests/v1"
UNKNOWN = "/v2/up.test/app/manifests/never-pulled"

# What goes wrong, and the statuses that an uncached tag may get.
FAILURES: dict[str, tuple[Change | str, set[int]]] = {
    "429 with Retry-After": (faults.error_response(429, "TOOMANYREQUESTS", "30"), {429}),
    "429 without": (faults.error_response(429, "TOOMANYREQUESTS"), {429}),
    "429 with a long one": (faults.error_response(429, "TOOMANYREQUESTS", "999999"), {429}),
    "429 with garbage": (faults.error_response(429, "TOOMANYREQUESTS", "abc"), {429}),
    "500": (faults.error_response(500), {502, 503}),
    "502": (faults.error_response(502), {502, 503}),
    "503": (faults.error_response(503, "UNAVAILABLE"), {502, 503}),
    "504": (faults.error_response(504), {502, 503, 504}),
    "refused": ("refused", {503}),
    "hangs": (faults.silent(), {503, 504}),
    "slow headers": (faults.slow_headers(0.2), {503, 504}),
    "garbage": (faults.html_page(), {502, 503}),
    "reset": (faults.disconnected("rst"), {502, 503}),
}


def _break(fake_registry: FakeRegistry, failure: str) -> None:
    change, _ = FAILURES[failure]
    if isinstance(change, str):
        fake_registry.listener.close()
    else:
        fake_registry.listener.drop_connections()
        fake_registry.on(None, change)


def _mend(fake_registry: FakeRegistry) -> None:
    fake_registry.remove_rules()
    if not fake_registry.listener.is_open:
        fake_registry.listener.open()


def _assert_stale(response: Response, image: Image, *, was_asked: bool) -> None:
    assert (response.status, response.body) == (200, image.body)
    assert response.header("Docker-Content-Digest") == image.digest
    warning = response.header("Warning") or ""
    assert warning.startswith('299 - "')
    assert "127.0.0.1" not in warning
    status = parse_cache_status(response)
    assert int(str(status["ttl"])) <= 0
    if was_asked:
        assert status["fwd"] == "stale"
        assert "hit" not in status
    else:
        assert status["hit"] is True
        assert "fwd" not in status


@pytest.mark.parametrize("failure", FAILURES)
def test_a_cached_tag_is_served_stale(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, failure: str
) -> None:
    """The cached image is served within the timeout of one check, marked stale; digests and blobs as usual."""
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get(CACHED).header("Warning") is None
    assert deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}").status == 200
    _break(fake_registry, failure)
    first = deployment.get(CACHED)
    _assert_stale(first, image, was_asked=True)
    assert is_within(first.took_s, CHECK_TIMEOUT_S + 0.5)
    count_before = fake_registry.count("manifest"), fake_registry.count("blob")
    assert deployment.get(f"/v2/up.test/app/manifests/{image.digest}").body == image.body
    assert deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}").status == 200
    assert (fake_registry.count("manifest"), fake_registry.count("blob")) == count_before
    _mend(fake_registry)
    if not failure.startswith(
        "429 with "
    ):  # the circuit breaker retries after half a minute or more; test_outage.py uses a shorter interval
        eventually(lambda: deployment.get(CACHED).header("Warning") is None, "fresh again", within_s=7)


@pytest.mark.parametrize("failure", FAILURES)
def test_an_uncached_tag_is_an_error_with_retry_after(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, failure: str
) -> None:
    """Five requests at once, as containerd sends them: never 404, always Retry-After; a 429 is remembered."""
    fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get(CACHED).status == 200
    _break(fake_registry, failure)
    before = fake_registry.count()
    responses = deployment.get_concurrently([UNKNOWN] * 5)
    for response in (*responses, deployment.get(UNKNOWN)):
        assert response.status in FAILURES[failure][1], response
        assert response.error
        deployment.assert_no_leak(response)
        if response.status in (429, 503, 504):
            assert 1 <= int(response.header("Retry-After") or 0) <= 60
    if failure.startswith("429"):
        assert fake_registry.count() - before == 1
        assert all(response.error == "TOOMANYREQUESTS" for response in responses)


def test_a_stale_response_has_its_age(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """`Age` counts the seconds since the tag was last checked."""
    fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert int(deployment.get(CACHED).header("Age") or 0) <= 1
    checked_at = time.monotonic()
    fake_registry.listener.close()
    response = eventually(lambda: _aged(deployment, 2), "two seconds old")
    since = time.monotonic() - checked_at
    assert int(response.header("Age") or -1) == pytest.approx(since, abs=1.5)
    assert int(str(parse_cache_status(response)["ttl"])) == pytest.approx(-since, abs=2)


def _aged(deployment: Deployment, age_s: int) -> Response | None:
    response = deployment.get(CACHED)
    return response if int(response.header("Age") or 0) >= age_s else None


def test_an_error_of_one_tag_does_not_affect_others(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """An invalid response for one repository does not make others stale: it is no outage of the upstream."""
    fake_registry.add_image("app", "v1")
    fake_registry.add_image("other", "v1")
    deployment = make_deployment()
    fake_registry.on("manifest", faults.html_page(), repo="app")
    for _ in range(8):
        assert deployment.get(CACHED).status == 502
    assert deployment.get("/v2/up.test/other/manifests/v1").status == 200


def _with_another_registry(
    fake_registry: FakeRegistry, directory: Path, deployments: ExitStack, registry: str, **more: Any
) -> tuple[Deployment, Image]:
    """A deployment whose cache was filled from the fake registry and whose upstream is another address now."""
    image = fake_registry.add_image("app", "v1")
    deployment = deployments.enter_context(
        open_deployment(fake_registry, directory, upstreams=[upstream("up.test", fake_registry.url)])
    )
    assert deployment.get(CACHED).status == 200
    assert deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}").status == 200
    deployment.dockyard.stop()
    deployment.dockyard.settings["upstreams"] = [upstream("up.test", registry, **more)]
    deployment.dockyard.start()
    return deployment, image


def _tls_listener(fake_registry: FakeRegistry, *names: str) -> str:
    return fake_registry.listen("tls", tls=server_context(trustme.CA(), *names)).url


@pytest.mark.parametrize("failure", ["no such host", "unknown authority", "plain HTTP on the TLS port", "refused"])
def test_starting_with_an_unreachable_upstream(fake_registry: FakeRegistry, tmp_path: Path, failure: str) -> None:
    """With DNS, TLS or connection errors Dockyard starts, serves cached content, and answers 502 or 503 otherwise."""
    match failure:
        case "no such host":
            registry = "http://registry.invalid"
        case "unknown authority":
            registry = _tls_listener(fake_registry, "127.0.0.1")
        case "plain HTTP on the TLS port":
            registry = fake_registry.url.replace("http:", "https:")
        case _:
            registry = "http://127.0.0.1:1"
    with ExitStack() as deployments:
        deployment, image = _with_another_registry(fake_registry, tmp_path, deployments, registry)
        fake_registry.clear_exchanges()
        response = deployment.get(CACHED)
        _assert_stale(response, image, was_asked=True)
        assert is_within(response.took_s, CHECK_TIMEOUT_S + 0.5)
        assert deployment.get(f"/v2/up.test/app/manifests/{image.digest}").body == image.body
        assert deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}").status == 200
        unknown = deployment.get(UNKNOWN)
        assert unknown.status in (502, 503, 504)
        assert is_within(unknown.took_s, CHECK_TIMEOUT_S + 0.5)
        deployment.assert_no_leak(unknown)
        assert fake_registry.count() == 0, "nothing is sent over a connection that is not what it should be"


def test_an_https_upstream_never_gets_plain_http(fake_registry: FakeRegistry, tmp_path: Path) -> None:
    """`insecure_skip_verify` is for certificates; a registry with https:// gets TLS connections only."""
    registry = _tls_listener(fake_registry, "another.test")
    with ExitStack() as deployments:
        deployment, _ = _with_another_registry(
            fake_registry, tmp_path, deployments, registry, insecure_skip_verify=True
        )
        response = deployment.get(CACHED)
        assert (response.status, response.header("Warning")) == (200, None)
        assert fake_registry.count(listener="tls") > 0


def test_a_private_certificate_authority_is_trusted_when_configured(
    fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """`ca_file` makes a registry with a private certificate work."""
    authority = trustme.CA()
    context = server_context(authority, "127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    registry = fake_registry.listen("tls", tls=context).url
    with ExitStack() as deployments:
        directory = tmp_path / "deployment"
        deployment, _ = _with_another_registry(
            fake_registry, directory, deployments, registry, ca_file=str(tmp_path / "ca.pem")
        )
        assert deployment.get(CACHED).header("Warning") is None


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_uncached_digests_are_errors_too(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, kind: str
) -> None:
    """As for tags: 503 with Retry-After while the upstream is down, not 404."""
    deployment = make_deployment()
    fake_registry.listener.close()
    for method in ("GET", "HEAD"):
        response = deployment.request(method, f"/v2/up.test/app/{kind}/sha256:{'4' * 64}")
        assert response.status == 503
        assert 1 <= int(response.header("Retry-After") or 0) <= 60
    fake_registry.listener.open()
    eventually(
        lambda: deployment.get(f"/v2/up.test/app/{kind}/sha256:{'4' * 64}").status == 404, "requested again", within_s=7
    )
