"""Unique strings in place of every secret, and the search for them wherever they must not appear.

A canary may reach the listeners in its `at`, and there only the headers for logins, or the body of a form (`in_form`,
for identity tokens). Anywhere else, in any encoding, it is a leak: other listeners, other headers, request targets,
responses to clients, the log, the metrics, and all files of the storage directory.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

import attrs

from tests.support.deployment import Deployment
from tests.support.http_client import Response
from tests.support.raw_http import Request

LOGIN_HEADERS = {"authorization", "proxy-authorization"}


@attrs.frozen
class Canary:
    """A secret, and the listeners that may receive it."""

    text: str
    at: frozenset[str] = frozenset()
    in_form: bool = False

    def spellings(self) -> Iterator[bytes]:
        """The secret as it is, URL-encoded, and in base64 after any user name."""
        yield self.text.encode()
        yield quote(self.text, safe="").encode()
        for skipped in range(3):
            # The bytes before it shift the bits; only the middle is the same whatever surrounds it.
            encoded = base64.b64encode(b"." * skipped + self.text.encode())
            yield encoded[4 if skipped else 0 : -4]


@attrs.define(eq=False)
class WatchedDeployment(Deployment):
    """A deployment that records its responses."""

    responses: list[Response] = attrs.field(factory=list)

    def get(self, path: str, **headers: str) -> Response:
        return self._recorded(super().get(path, **headers))

    def head(self, path: str, **headers: str) -> Response:
        return self._recorded(super().head(path, **headers))

    def request(self, method: str, path: str, **headers: str) -> Response:
        return self._recorded(super().request(method, path, **headers))

    def _recorded(self, response: Response) -> Response:
        self.responses.append(response)
        return response

    def leaks(self, canaries: Sequence[Canary]) -> list[str]:
        """Where canaries were found and must not be. Requests the metrics, so the deployment must still run."""
        while True:
            try:
                return [f"{canary.text} in {where}" for canary in canaries for where in self._find(canary)]
            except FileNotFoundError:  # a download has ended, and its file has another name: search again
                continue

    def _find(self, canary: Canary) -> Iterator[str]:
        spellings = tuple(canary.spellings())
        for exchange in self.fake_registry.received():
            if is_in(_forbidden_part(exchange.request, canary), spellings):
                yield f"a {exchange.request.method} at the listener {exchange.request.listener}"
        for response in [*self.responses, super().get("/metrics")]:
            if is_in([response.body, str(response.headers).encode()], spellings):
                yield f"a response with status {response.status}"
        if is_in([self.read_log().encode()], spellings):
            yield "the log"
        for path in self.dockyard.storage.rglob("*"):
            if is_in([str(path).encode(), path.read_bytes() if path.is_file() else b""], spellings):
                yield f"the storage directory: {path.relative_to(self.dockyard.storage)}"


def is_in(texts: Iterable[bytes], spellings: Sequence[bytes]) -> bool:
    """Whether any of the texts contains any of the spellings."""
    return any(spelling in text for text in texts for spelling in spellings)


def _forbidden_part(request: Request, canary: Canary) -> list[bytes]:
    """All parts of a request that must not contain this canary."""
    is_there = request.listener in canary.at
    headers = [pair for pair in request.headers if not (is_there and pair[0].lower() in LOGIN_HEADERS)]
    body = b"" if is_there and canary.in_form else request.body
    return [request.target.encode(), str(headers).encode(), body]
