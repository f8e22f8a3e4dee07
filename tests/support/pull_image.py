"""A minimal client: read an image as its manifests describe it, and check every digest."""

import contextlib
import hashlib
import http.client

from tests.support.fake_registry import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.support.images import PushedImage

ACCEPT = f"{DOCKER_MANIFEST}, {OCI_INDEX}, {OCI_MANIFEST}"
READ_BYTES = 1 << 20
TIMEOUT_S = 60.0


def pull_and_verify(port: int, name: str, image: PushedImage) -> None:
    """Read the tag, every manifest and every blob of `image` under `name` from the server on a loopback port."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        assert _read(connection, f"/v2/{name}/manifests/{image.tag}") == image.digest
        for digest in sorted(image.manifests):
            assert _read(connection, f"/v2/{name}/manifests/{digest}") == digest
        for digest in sorted(image.blobs):
            assert _read(connection, f"/v2/{name}/blobs/{digest}") == digest


def _read(connection: http.client.HTTPConnection, target: str) -> str:
    connection.request("GET", target, headers={"Accept": ACCEPT})
    response = connection.getresponse()
    hasher = hashlib.sha256()
    while data := response.read(READ_BYTES):
        hasher.update(data)
    assert response.status == http.HTTPStatus.OK, f"GET {target} -> {response.status}"
    return f"sha256:{hasher.hexdigest()}"
