"""The S3 store over TLS, and with the bucket in the host name, as on AWS."""

import contextlib
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trustme
from urllib3 import exceptions as failures

from dockyard.config.settings import StorageSettings
from dockyard.errors import Unavailable
from dockyard.oci.reference import Digest
from dockyard.s3.errors import S3Error, to_s3_error
from dockyard.s3.store import S3Store
from tests.s3.store.servers import BUCKET, MIB, Minio, make_s3_store
from tests.s3.store.store_adapters import pieces, reader
from tests.support.processes import Process
from tests.support.programs import Programs

BODY = os.urandom(8 * MIB)
DIGEST = Digest.of(BODY)


class TlsMinio(Minio):
    """A MinIO with TLS. Its bucket is created as a directory before it starts."""

    def start(self) -> None:
        (self.data / BUCKET).mkdir()
        self._process = Process.start(self._command(), log=self.log, environ=self._environ())
        self._process.wait_until(self._responds, "responding")

    def _connection(self) -> http.client.HTTPConnection:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The certificate authority of the server."""
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_minio(
    programs: Programs, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TlsMinio]:
    """A MinIO with a certificate for its domain and its subdomains."""
    home = tmp_path_factory.mktemp("minio-tls")
    certificate = authority.issue_cert(f"*.{Minio.domain}", Minio.domain)
    (home / "certificates").mkdir()
    (home / "certificates" / "public.crt").write_bytes(certificate.cert_chain_pems[0].bytes())
    (home / "certificates" / "private.key").write_bytes(certificate.private_key_pem.bytes())
    with contextlib.closing(TlsMinio(programs.need("minio"), home)) as server:
        server.start()
        yield server


@pytest.fixture
def settings(tls_minio: TlsMinio, prefix: str, monkeypatch: pytest.MonkeyPatch) -> StorageSettings:
    """Settings for it. Every name in its domain resolves to this machine."""
    lookup = socket.getaddrinfo

    def find(host: str, *given: object, **named: object) -> object:
        return lookup("127.0.0.1" if host.endswith(Minio.domain) else host, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", find)
    endpoint = f"{Minio.domain}:{tls_minio.port}"
    return attrs.evolve(tls_minio.settings(prefix, endpoint), use_ssl=True, force_path_style=False)


@pytest.fixture
def _trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the certificate authority of the server."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("path_style", [False, True])
def test_both_styles_work_over_tls(settings: StorageSettings, path_style: bool) -> None:  # noqa: FBT001
    """All operations work with the bucket in the host name and in the path."""
    with contextlib.closing(make_s3_store(attrs.evolve(settings, force_path_style=path_style))) as s3:
        assert s3._client.host.startswith(BUCKET) is not path_style
        assert s3.check() == []
        assert s3.open_blob(DIGEST) is None
        s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
        body = s3.open_blob(DIGEST)
        assert body is not None
        assert b"".join(iter(lambda: body.read(256 * 1024), b"")) == BODY
        assert s3.touch(f"{settings.prefix}blobs/sha256/{DIGEST.encoded[:2]}/{DIGEST.encoded}")


@pytest.mark.usefixtures("_trusted")
def test_wrong_bytes_are_rejected_over_tls(settings: StorageSettings) -> None:
    """The payload hash is signed over TLS too."""
    with contextlib.closing(make_s3_store(settings)) as s3:
        with pytest.raises(S3Error, match="XAmzContentSHA256Mismatch"):
            s3.publish_blob(Digest.of(b"another"), 1000, reader([bytes(1000)]))
        assert s3.stat_blob(Digest.of(b"another")) is None


@pytest.mark.usefixtures("_trusted")
def test_a_read_can_be_aborted_over_tls(settings: StorageSettings, tls_minio: TlsMinio) -> None:
    """The TCP connection is shut down below TLS."""
    with contextlib.closing(S3Store(settings, {})) as s3:
        large = os.urandom(32 * MIB)
        s3.publish_blob(Digest.of(large), len(large), reader(pieces(large)))
        body = s3.open_blob(Digest.of(large))
        assert body is not None
        tls_minio.freeze()
        try:
            threading.Timer(0.1, body.abort).start()
            with pytest.raises(Unavailable):
                b"".join(iter(lambda: body.read(256 * 1024), b""))
        finally:
            tls_minio.thaw()
        body.close()


def test_a_certificate_of_another_authority_is_not_trusted(settings: StorageSettings) -> None:
    """The start-up check names the certificate."""
    [problem] = S3Store(settings, {}).check()
    assert "no trusted TLS connection" in problem
    assert "certificate" in problem


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (failures.SSLError(ssl.SSLCertVerificationError("self-signed")), "insecure"),
        (failures.SSLError(ssl.SSLEOFError("in the middle")), "broken"),
        (ssl.SSLEOFError("in the middle"), "broken"),
        (ssl.SSLError("bad record"), "insecure"),
        (failures.ProtocolError("aborted", ConnectionResetError()), "broken"),
        (failures.ReadTimeoutError(None, "", ""), "timeout"),  # type: ignore[arg-type]
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_tls_errors_differ_from_closed_connections(exc: Exception, code: str) -> None:
    """A request on a reused connection that the service has closed is retried."""
    assert to_s3_error(exc, "S3").code == code


def test_plain_http_to_a_tls_port_is_named(settings: StorageSettings) -> None:
    """The start-up check names `storage.use_ssl`."""
    [problem] = S3Store(attrs.evolve(settings, use_ssl=False), {}).check()
    assert "storage.use_ssl" in problem
