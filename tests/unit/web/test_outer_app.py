"""The outer application, around a small ASGI application."""

import asyncio
from typing import Any

import pytest

from dockyard.web.connections import Connections
from dockyard.web.outer_app import OuterApp
from dockyard.web.request_record import SCOPE_KEY


async def respond(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An application that responds 200 while the request has a record."""
    assert SCOPE_KEY in scope
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(("path", "status"), [("/v2/", 200), ("/v2/%00", 400)])
def test_nothing_of_a_request_stays_in_its_scope(path: str, status: int) -> None:
    """Granian keeps the scope: the record has an error, whose traceback refers to objects of Granian."""
    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"dockyard.test")],
        "client": ("192.0.2.1", 1),
        "server": ("192.0.2.2", 5000),
    }
    app = OuterApp(respond, (), Connections(), "info", (), log_requests=False, log_responses=False)
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == status
    assert SCOPE_KEY not in scope
