"""The operations of a registry for one client of Dockyard, where the registry decides who may pull what.

Content that is missing is fetched with the operator's login if there is one, and otherwise, or if the registry refuses
that login the repository, with the login of the client (or without one). Whether a blob belongs to a repository is
asked with the login of the client. Only what the registry says to the client becomes an error for the client.
"""

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from cachetools import TTLCache

from dockyard.errors import BlobUnknown, Denied, ManifestUnknown, NameUnknown
from dockyard.oci.lists import Referrer
from dockyard.oci.manifest import Descriptor, Manifest
from dockyard.oci.reference import Digest, Reference
from dockyard.upstream.blob_location import BlobLocation
from dockyard.upstream.responses import UpstreamBlob

MAX_REPOSITORIES = 4096
REMEMBERED_FOR_S = 300.0

T = TypeVar("T")


class Operations(Protocol):
    """A registry, used with one login. The methods are those of RegistryClient."""

    def has_login(self, repository: str) -> bool: ...
    def head_manifest(
        self, repository: str, reference: Reference, deadline: float | None = None, *, has_copy: bool = False
    ) -> Descriptor: ...
    def get_manifest(self, repository: str, reference: Reference) -> Manifest: ...
    def head_blob(self, repository: str, digest: Digest) -> int: ...
    def open_blob(
        self,
        repository: str,
        digest: Digest,
        start: int = 0,
        stop: int | None = None,
        location: BlobLocation | None = None,
    ) -> UpstreamBlob: ...
    def list_tags(self, repository: str) -> list[str]: ...
    def list_referrers(self, repository: str, digest: Digest) -> list[Referrer]: ...


class VisibleRepositories:
    """Which repositories the operator's login sees, as far as it was tried a short time ago."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sees: TTLCache[str, bool] = TTLCache(MAX_REPOSITORIES, REMEMBERED_FOR_S)

    def find(self, repository: str) -> bool | None:
        """Whether the operator's login sees a repository; None if that is not known."""
        with self._lock:
            return self._sees.get(repository)

    def record(self, repository: str, *, is_visible: bool) -> None:
        with self._lock:
            self._sees[repository] = is_visible


class ClientOperations:
    """The operations of `operator`, and of `client` where the login of the operator does not help."""

    def __init__(self, operator: Operations, client: Operations, visible: VisibleRepositories) -> None:
        self._operator = operator
        self._client = client
        self._visible = visible

    def head_manifest(
        self, repository: str, reference: Reference, deadline: float | None = None, *, has_copy: bool = False
    ) -> Descriptor:
        """As RegistryClient.head_manifest."""
        return self._run(
            repository, lambda registry: registry.head_manifest(repository, reference, deadline, has_copy=has_copy)
        )

    def get_manifest(self, repository: str, reference: Reference) -> Manifest:
        """As RegistryClient.get_manifest."""
        return self._run(repository, lambda registry: registry.get_manifest(repository, reference))

    def head_blob(self, repository: str, digest: Digest) -> int:
        """As RegistryClient.head_blob, only with the login of the client.

        A registry that stores a blob once for all repositories may show it to the operator in each of them.
        """
        return self._client.head_blob(repository, digest)

    def open_blob(
        self,
        repository: str,
        digest: Digest,
        start: int = 0,
        stop: int | None = None,
        location: BlobLocation | None = None,
    ) -> UpstreamBlob:
        """As RegistryClient.open_blob."""
        return self._run(repository, lambda registry: registry.open_blob(repository, digest, start, stop, location))

    def list_tags(self, repository: str) -> list[str]:
        """As RegistryClient.list_tags."""
        return self._run(repository, lambda registry: registry.list_tags(repository))

    def list_referrers(self, repository: str, digest: Digest) -> list[Referrer]:
        """As RegistryClient.list_referrers."""
        return self._run(repository, lambda registry: registry.list_referrers(repository, digest))

    def _run(self, repository: str, operation: Callable[[Operations], T]) -> T:
        """With the operator's login if it has one for the repository and is admitted; else with that of the client."""
        is_visible = self._visible.find(repository)
        if is_visible is False or not self._operator.has_login(repository):
            return operation(self._client)
        try:
            result = operation(self._operator)
        except (Denied, NameUnknown, ManifestUnknown, BlobUnknown) as exc:
            if is_visible and not isinstance(exc, Denied):
                raise  # the registry shows the repository to the operator, and does not have this
            result = operation(self._client)
            self._visible.record(repository, is_visible=False)
            return result
        self._visible.record(repository, is_visible=True)
        return result
