"""With which login the content of a target is fetched, and which errors concern only the login that was used.

The client of a target also knows which servers the request has passed, and tells the upstream (`oci.cdn_loop`).

The caches are shared by all clients, and so is the work: what one client started, others join. Where the upstream
decides about access, an error may be due to the login of the client that started it. It is no answer for the others:
each of them tries with its own login.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

from dockyard.errors import (
    AccessDenied,
    BlobUnknown,
    Denied,
    LoginRequired,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    TooManyRequests,
)
from dockyard.routing import Target

T = TypeVar("T")

# Registries say "not found" for what they do not show to a login.
_OF_LOGIN: Final = (LoginRequired, AccessDenied, Denied, NameUnknown, ManifestUnknown, BlobUnknown, TooManyRequests)


def find_client(upstreams: Mapping[str, T], target: Target) -> T:
    """The client with which content of a target is fetched. `upstreams` are those of the operator, by prefix."""
    client: Any = find_operator(upstreams, target)
    if target.upstream.access == "upstream":
        client = client.with_login(target.login)
    return cast("T", client)


def find_operator(upstreams: Mapping[str, T], target: Target) -> T:
    """The client of the operator for the upstream of a target."""
    operator: Any = upstreams[target.upstream.prefix]
    return cast("T", operator.with_passed(target.passed) if target.passed else operator)


def may_be_due_to_login(error: RegistryError) -> bool:
    """Whether the same request may succeed with another login, or in another repository."""
    return isinstance(error, _OF_LOGIN)
