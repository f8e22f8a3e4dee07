"""For the tests of `dockyard/upstream/`: a fake registry, and registries that ask it."""

import contextlib
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
import trustme

from dockyard.config.settings import Auth, Upstream, UpstreamLimits
from dockyard.config.types import Secret
from dockyard.errors import FailureDetails
from dockyard.oci.reference import Tag
from dockyard.upstream.circuit_breaker import CircuitBreaker
from dockyard.upstream.client import RegistryClient
from dockyard.upstream.keychain import Keychain
from dockyard.upstream.network_zones import NetworkZone, find_literal_zone, find_zone
from tests.support.fake_registry import Change, FakeRegistry
from tests.support.raw_http import Exchange, Request

LIMITS = UpstreamLimits(check_timeout=10.0, connect_timeout=5.0, stall_timeout=10.0)
SHORT = UpstreamLimits(check_timeout=1.0, connect_timeout=1.0, stall_timeout=1.0)
# Where some requests must succeed, also on a busy machine, and others must time out.
MODERATE = UpstreamLimits(check_timeout=5.0, connect_timeout=5.0, stall_timeout=5.0)
ANONYMOUS = Auth("anonymous")
BASIC = Auth("basic", "ann", Secret("s3cret-pass"))
BEARER = Auth("bearer", "", Secret("s3cret-bearer"))
KEYCHAIN = Auth("keychain")
LATEST = Tag("latest")
DETAILS = FailureDetails("registry.test:443", "HTTP 500 Internal Server Error", "response")

T = TypeVar("T")


class Ward:
    """A fake registry, and the registries that were made to ask it. Closes them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fake_registry = FakeRegistry()
        self._registries: list[RegistryClient] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for registry in self._registries:
            registry.close()
        self.fake_registry.__exit__()

    def registry(
        self,
        *,
        at: str = "",
        auth: Auth = ANONYMOUS,
        limits: UpstreamLimits = LIMITS,
        environ: Mapping[str, str] | None = None,
        name: str = "",
        server_name: str = "",
        **upstream: Any,
    ) -> RegistryClient:
        """A registry object; `at` is what `registry:` holds, the fake registry's own listener if it is not given."""
        name = name or f"up{len(self._registries)}.test"
        registry = RegistryClient(
            Upstream(name, at or self.fake_registry.url, auth, **upstream),
            limits,
            Keychain(environ or {}),
            CircuitBreaker(self.directory, name, interval_s=60.0),
            server_name,
        )
        self._registries.append(registry)
        return registry

    def authorizations(self, kind: str | None = None) -> list[str | None]:
        """The Authorization headers that reached the fake registry."""
        return [each.request.header("Authorization") for each in self.fake_registry.received(kind)]


def together(count: int, action: Callable[[], T]) -> list[T]:
    """Do the same in many threads that start at once."""
    barrier = threading.Barrier(count)

    def one(_: int) -> T:
        barrier.wait(10)
        return action()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def only_if(is_wanted: Callable[[Request], bool], change: Change) -> Change:
    """A change for the requests that a test picks itself."""
    return lambda request, answer: change(request, answer) if is_wanted(request) else answer


def methods(exchanges: list[Exchange]) -> list[str]:
    """The methods of some exchanges."""
    return [exchange.request.method for exchange in exchanges]


def pretend(monkeypatch: pytest.MonkeyPatch, zones: Mapping[str, NetworkZone]) -> None:
    """Let some loopback addresses pass for addresses elsewhere."""
    monkeypatch.setattr("dockyard.upstream.dialer.find_zone", lambda address: zones.get(address) or find_zone(address))
    spelt = "dockyard.upstream.transport.find_literal_zone"
    monkeypatch.setattr(spelt, lambda host: zones.get(host) or find_literal_zone(host))


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A server's TLS context with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def error_text(exc: BaseException) -> str:
    """All that an error could show to anybody: itself and what is behind it."""
    texts = []
    seen: BaseException | None = exc
    while seen is not None:
        texts.append(f"{seen!r} {seen}")
        with contextlib.suppress(AttributeError):
            texts.append(repr(vars(seen)))
        seen = seen.__cause__ or seen.__context__
    return "\n".join(texts)
