"""Downloads of key sets: what is sent, and which responses are refused."""

import gzip
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trustme

from dockyard.access import key_download
from dockyard.access.key_download import MAX_KEY_SET_BYTES, DownloadFailed, download_key_set
from dockyard.config.settings import JwtIssuer
from tests.support.certificates import server_context
from tests.support.raw_server import RawConnection, RawServer, response

BODY = b'{"keys": []}'
CANARY = "canary-2b9e"


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    """A function that starts a server which sends these bytes for each request."""
    servers: list[RawServer] = []

    def start(data: bytes | Callable[[RawConnection], None], tls: ssl.SSLContext | None = None) -> RawServer:
        def send(connection: RawConnection) -> None:
            if not connection.receive_request():
                return
            if callable(data):
                data(connection)
            else:
                connection.send(data)

        servers.append(RawServer(send, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


def issuer(url: str, **settings: str) -> JwtIssuer:
    """An issuer whose keys are at a URL."""
    return attrs.evolve(JwtIssuer("ci", "https://issuer.test", "dockyard", f"{url}/keys?a=b"), **settings)


def test_the_request_and_the_response(serve: Callable[..., RawServer]) -> None:
    """One GET without credentials, unless there is a token file."""
    server = serve(response(BODY))
    assert download_key_set(issuer(server.url)) == BODY
    (head,) = server.heads
    assert head.startswith(b"GET /keys?a=b HTTP/1.1\r\n")
    assert b"authorization" not in head.lower()
    assert b"User-Agent: dockyard/" in head


def test_the_token_file_is_read_for_each_request(serve: Callable[..., RawServer], tmp_path: Path) -> None:
    """Kubernetes replaces the token in it."""
    server = serve(response(BODY))
    file = tmp_path / "token"
    for token in ("one", "two"):
        file.write_text(f"{token}\n")
        download_key_set(issuer(server.url, token_file=str(file)))
        assert f"\r\nAuthorization: Bearer {token}\r\n".encode() in server.heads[-1]


@pytest.mark.parametrize("content", ["", "\n", f"{CANARY}\nx", f"{CANARY} x", f"{CANARY}\r\nX-Evil: 1", "\u00e9"])
def test_a_token_file_without_a_token(serve: Callable[..., RawServer], tmp_path: Path, content: str) -> None:
    """Nothing is sent, and the message does not quote the file."""
    server = serve(response(BODY))
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(DownloadFailed, match="has no token") as caught:
        download_key_set(issuer(server.url, token_file=str(file)))
    assert CANARY not in str(caught.value)
    with pytest.raises(DownloadFailed, match="cannot be read"):
        download_key_set(issuer(server.url, token_file=str(tmp_path / "missing")))
    assert server.heads == []


def test_tls_is_verified(serve: Callable[..., RawServer], tmp_path: Path) -> None:
    """With the certificates of `ca_file` in addition to those of the system, and the name of the host."""
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    server = serve(response(BODY), server_context(authority, "127.0.0.1"))
    assert download_key_set(issuer(server.url, ca_file=str(file))) == BODY
    with pytest.raises(DownloadFailed, match="not from a known certificate authority"):
        download_key_set(issuer(server.url))
    with pytest.raises(DownloadFailed, match="another host name"):
        download_key_set(issuer(server.url.replace("127.0.0.1", "localhost"), ca_file=str(file)))
    assert len(server.heads) == 1


def test_a_certificate_file_that_is_missing(serve: Callable[..., RawServer], tmp_path: Path) -> None:
    """Nothing is sent."""
    server = serve(response(BODY), server_context(trustme.CA(), "127.0.0.1"))
    with pytest.raises(DownloadFailed, match="No such file"):
        download_key_set(issuer(server.url, ca_file=str(tmp_path / "missing")))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(serve: Callable[..., RawServer], tmp_path: Path, status: int) -> None:
    """Neither the keys nor the token are anybody else's matter."""
    file = tmp_path / "token"
    file.write_text(CANARY)
    other = serve(response(BODY))
    for target in (other.url, "/other"):
        server = serve(f"HTTP/1.1 {status} x\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
        with pytest.raises(DownloadFailed, match=rf"status {status}: redirects are not followed"):
            download_key_set(issuer(server.url, token_file=str(file)))
        assert len(server.heads) == 1
    assert other.heads == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n", "status 401: set token_file"),
        (b"HTTP/1.1 403 x\r\nContent-Length: 0\r\n\r\n", "status 403: set token_file"),
        (b"HTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 204 x\r\n\r\n", "status 204"),
        (b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n", "status 500"),
        (b"", "not valid HTTP|reset"),
        (b"SSH-2.0-OpenSSH\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n" + b" " * 600_000, "larger than"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_KEY_SET_BYTES + 1), "larger than"),
        (response(gzip.compress(b" " * 10 * MAX_KEY_SET_BYTES), "Content-Encoding: gzip"), "larger than"),
    ],
)
def test_responses_that_are_refused(serve: Callable[..., RawServer], data: bytes, message: str) -> None:
    """Each with its reason."""
    with pytest.raises(DownloadFailed, match=message):
        download_key_set(issuer(serve(data).url))


def test_an_encoded_response(serve: Callable[..., RawServer]) -> None:
    """Some servers compress although nobody asks for it."""
    server = serve(response(gzip.compress(BODY), "Content-Encoding: gzip"))
    assert download_key_set(issuer(server.url)) == BODY


@pytest.mark.parametrize(
    "before", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"]
)
def test_a_slow_response_has_a_time_limit(
    serve: Callable[..., RawServer], monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    """Also if some bytes arrive all the time."""
    monkeypatch.setattr(key_download, "MAX_DOWNLOAD_S", 0.3)

    def trickle(connection: RawConnection) -> None:
        connection.send(before)
        while True:
            connection.send(b" ")
            threading.Event().wait(0.01)  # the server is slow

    with pytest.raises(DownloadFailed, match="no complete response"):
        download_key_set(issuer(serve(trickle).url))

    def hang(connection: RawConnection) -> None:
        connection.send(before)
        connection.wait_for_end()

    with pytest.raises(DownloadFailed, match="no complete response"):
        download_key_set(issuer(serve(hang).url))


def test_nobody_listens(serve: Callable[..., RawServer]) -> None:
    """And a name that does not exist."""
    server = serve(BODY)
    server.__exit__()
    with pytest.raises(DownloadFailed, match=r"Connection refused"):
        download_key_set(issuer(server.url))
    with pytest.raises(DownloadFailed, match=r"cannot resolve issuer\.invalid"):
        download_key_set(issuer("https://issuer.invalid"))
