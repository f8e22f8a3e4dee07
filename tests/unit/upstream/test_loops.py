"""CDN-Loop in requests to upstreams: where it is sent, what it says, and what a 508 means."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dockyard.errors import LoopDetected, RegistryError
from dockyard.oci.login import Login
from dockyard.oci.reference import Digest
from dockyard.upstream.client import RegistryClient
from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.fake_auth import FakeTokenService
from tests.support.raw_http import Exchange
from tests.support.upstreams import LATEST, Ward

NAME = "dockyard-0123456789abcdef"
PASSED = ("cdn.example; x=1", "dockyard-other")
ALL = f"cdn.example; x=1, dockyard-other, {NAME}"
LAYER = b"a layer"


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """A fake registry with an image."""
    with Ward(tmp_path) as ward:
        ward.fake_registry.add_image("app", "latest", [LAYER])
        yield ward


def sent(exchanges: list[Exchange]) -> list[str | None]:
    """The CDN-Loop headers of requests."""
    return [exchange.request.header("CDN-Loop") for exchange in exchanges]


def ask_everything(client: RegistryClient) -> None:
    """Send each kind of request."""
    digest = Digest.parse(digest_of(LAYER))
    client.head_manifest("app", LATEST)
    client.get_manifest("app", LATEST)
    client.head_blob("app", digest)
    client.open_blob("app", digest).close()
    client.open_blob("app", digest, 0, 3).close()
    client.list_referrers("app", digest)


def test_each_request_names_its_server(ward: Ward) -> None:
    """Alone, or after the servers that the request has passed for which it is sent."""
    client = ward.registry(server_name=NAME)
    ask_everything(client)
    assert set(sent(ward.fake_registry.received())) == {NAME}
    ward.fake_registry.exchanges.clear()
    ask_everything(client.with_passed(PASSED))
    assert set(sent(ward.fake_registry.received())) == {ALL}
    client.head_manifest("app", LATEST)
    assert sent(ward.fake_registry.received())[-1] == NAME, "one request leaves nothing for the next"


def test_a_client_without_a_name_sends_nothing(ward: Ward) -> None:
    """`dockyard check --connect` asks for nothing that could lead back."""
    ask_everything(ward.registry().with_passed(PASSED))
    assert set(sent(ward.fake_registry.received())) == {None}


def test_token_services_and_logins(ward: Ward) -> None:
    """A token service may be that of a Dockyard, which asks an upstream about a login."""
    FakeTokenService(ward.fake_registry)
    client = ward.registry(server_name=NAME).with_passed(PASSED)
    client.head_manifest("app", LATEST)
    client.with_login(Login("ann", "x")).head_manifest("app", LATEST)
    client.check_access(Login("ann", "x"), "app", LATEST, is_blob=False, deadline=None)
    client.check_login(Login("ann", "x"), None)
    assert ward.fake_registry.count("token") >= 2
    assert set(sent(ward.fake_registry.received())) == {ALL}


def test_redirects(ward: Ward) -> None:
    """It is sent to what looks like a registry, which may be a Dockyard, and not to presigned URLs."""
    other = ward.fake_registry.listen("other")
    storage = ward.fake_registry.listen("storage")
    client = ward.registry(server_name=NAME, trusted_hosts=(other.authority, storage.authority))
    digest = Digest.parse(digest_of(LAYER))
    ward.fake_registry.on("blob", faults.redirected(f"{storage.url}/x?X-Amz-Signature=1"), listener="registry")
    with pytest.raises(RegistryError):
        client.open_blob("app", digest)
    elsewhere = [each for each in ward.fake_registry.received() if each.request.listener == "storage"]
    assert sent(elsewhere) == [None]
    ward.fake_registry.rules.clear()
    to_other = faults.redirected(lambda request: f"{other.url}{request.target}")
    ward.fake_registry.on(None, to_other, listener="registry")
    client.with_passed(PASSED).open_blob("app", digest).close()
    client.with_passed(PASSED).head_manifest("app", LATEST)
    elsewhere = [each for each in ward.fake_registry.received() if each.request.listener == "other"]
    assert sent(elsewhere) == [ALL, ALL]


def test_508_is_a_mistake_in_settings(ward: Ward) -> None:
    """It is neither retried, nor "not found", nor an outage: other repositories are asked. It is logged once."""
    ward.fake_registry.add_image("other", "latest", [LAYER])
    ward.fake_registry.on(None, faults.error_response(508), when=lambda request: "/app/" in request.target)
    client = ward.registry(server_name=NAME, name="docker.io")
    digest = Digest.parse(digest_of(LAYER))
    operations: list[Any] = [
        lambda: client.head_manifest("app", LATEST),
        lambda: client.get_manifest("app", LATEST),
        lambda: client.head_blob("app", digest),
        lambda: client.open_blob("app", digest),
        lambda: client.open_blob("app", digest, 5, 7),
        lambda: client.list_tags("app"),
        lambda: client.list_referrers("app", digest),
        lambda: client.check_access(None, "app", LATEST, is_blob=False, deadline=None),
    ]
    with capture_logs() as logs:
        for number, operation in enumerate(operations * 2, 1):
            with pytest.raises(LoopDetected, match=r"docker\.io leads back to a server that the request has passed"):
                operation()
            assert len(ward.fake_registry.received()) == number
    assert not client.is_breaker_open
    assert client.head_manifest("other", LATEST)
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["upstream"] == "docker.io"
    assert line["host"] == ward.fake_registry.authority
    assert "correct `registry`" in line["reason"]


def test_508_of_a_token_service(ward: Ward) -> None:
    """It is a loop, too."""
    FakeTokenService(ward.fake_registry)
    ward.fake_registry.on("token", faults.error_response(508))
    with pytest.raises(LoopDetected, match=r"the token service of docker\.io leads back"):
        ward.registry(server_name=NAME, name="docker.io").head_manifest("app", LATEST)
