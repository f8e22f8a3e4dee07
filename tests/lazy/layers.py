"""A layer at the registry, the requests of a lazy client for it, and the check of their responses."""

import attrs

from tests.lazy.patterns import PATTERNS, LazyRequest, Pattern
from tests.support.bodies import Body, Synthetic
from tests.support.deployment import Deployment
from tests.support.http_client import Response, parse_multipart


@attrs.frozen
class Layer:
    """A layer in the registry that is not cached."""

    deployment: Deployment
    path: str
    body: Body

    @property
    def digest(self) -> str:
        return self.body.digest

    def send(self, request: LazyRequest) -> Response:
        """Send a request with what the clients send besides."""
        ranges = {"Range": request.header, "Accept_Encoding": "identity"} if request.header else {}
        return self.deployment.request(request.method, self.path, **ranges)

    def check(self, request: LazyRequest, response: Response) -> None:
        """Status, headers and all bytes are right."""
        if request.has_too_many_ranges:
            assert response.status == 400
            return
        assert response.is_complete
        assert response.header("Accept-Ranges") == "bytes"
        if request.method == "HEAD":
            assert (response.status, response.header("Content-Length")) == (200, str(self.body.size))
        elif request.header is None:
            assert response.status == 200
            assert response.body == self.read(0, self.body.size)
        elif len(request.places) == 1:
            (place,) = request.places
            assert response.status == 206
            assert response.header("Content-Range") == place.content_range(self.body.size)
            assert response.header("Content-Type") == "application/octet-stream"
            assert response.body == self.read(place.start, place.stop)
        else:
            assert response.status == 206
            for place, part in zip(request.places, parse_multipart(response), strict=True):
                assert part == (place.content_range(self.body.size), self.read(place.start, place.stop))

    def read(self, start: int, stop: int) -> bytes:
        return b"".join(self.body.pieces(start, stop))


def add_layer(deployment: Deployment, pattern: Pattern, prefix: str, use: int) -> Layer:
    """Add a layer that no other test has; `use` is the number of this use of the pattern."""
    body = Synthetic(pattern.size, seed=7, first=10_000 * use + 1000 * [*PATTERNS].index(pattern.name))
    digest = deployment.fake_registry.add_blob(body)
    path = f"team/app/blobs/{digest}"
    return Layer(deployment, f"/v2/{path}?ns={prefix}" if pattern.has_namespace else f"/v2/{prefix}/{path}", body)
