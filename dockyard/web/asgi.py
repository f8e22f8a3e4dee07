"""Types of the ASGI interface (asgi.readthedocs.io, HTTP and lifespan protocols)."""

from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def has_request_body(scope: Scope) -> bool:
    """Whether the headers of a request announce a body."""
    return any(name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"])
