"""SIGHUP with real certificates: renewed, damaged, in both layouts of symbolic links; and SIGTERM at any time."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import attrs
import pytest
import trustme

from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, eventually, set_at_exit, stays, upstream
from tests.support.dockyard import Dockyard
from tests.support.fake_registry import FakeRegistry

MIB = 1024 * 1024
SLACK_S = 3.0


@attrs.define
class CertificateFiles:
    """The files of `server.certfile` and `server.keyfile`, and who writes them."""

    directory: Path
    authority: trustme.CA = attrs.field(factory=trustme.CA)
    number: int = 0

    @property
    def certfile(self) -> Path:
        return self.directory / "tls.crt"

    @property
    def keyfile(self) -> Path:
        return self.directory / "tls.key"

    def write(self, directory: Path) -> str:
        """Write a new pair to `directory`; return the fingerprint of the certificate."""
        issued = self.authority.issue_cert("localhost")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tls.crt").write_bytes(issued.cert_chain_pems[0].bytes())
        (directory / "tls.key").write_bytes(issued.private_key_pem.bytes())
        return fingerprint(ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode()))

    def renew(self) -> str:
        """Replace the pair as the program that manages this layout does; return the new fingerprint."""
        return self.write(self.directory)


class KubernetesSecret(CertificateFiles):
    """`tls.crt` is a link to `..data/tls.crt`, and `..data` one to a directory that is replaced and deleted."""

    def renew(self) -> str:
        data, before = self.directory / "..data", self.number
        self.number += 1
        found = self.write(self.directory / f"..v{self.number}")
        (self.directory / "..new").symlink_to(f"..v{self.number}")
        (self.directory / "..new").rename(data)
        for path in (self.certfile, self.keyfile):
            if not path.is_symlink():
                path.symlink_to(f"..data/{path.name}")
        shutil.rmtree(self.directory / f"..v{before}", ignore_errors=True)
        return found


class Certbot(CertificateFiles):
    """`live/` has links to numbered files in `archive/`, which stay."""

    def renew(self) -> str:
        self.number += 1
        found = self.write(self.directory / "archive" / str(self.number))
        for path in (self.certfile, self.keyfile):
            new = path.with_suffix(".new")
            new.symlink_to(f"archive/{self.number}/{path.name}")
            new.rename(path)
        return found


def fingerprint(certificate: bytes | None) -> str:
    """The SHA-256 of a certificate in DER."""
    assert certificate
    return hashlib.sha256(certificate).hexdigest()


Start = Callable[..., Deployment]


@pytest.fixture
def start(fake_registry: FakeRegistry, tmp_path: Path) -> Iterator[Start]:
    """Start a server with these certificate files."""
    with contextlib.ExitStack() as servers:

        def start(files: CertificateFiles, workers: int = 2, drain_timeout: str = "10s") -> Deployment:
            client = ssl.create_default_context()
            files.authority.configure_trust(client)
            server = {
                "tls": True,
                "certfile": str(files.certfile),
                "keyfile": str(files.keyfile),
                "drain_timeout": drain_timeout,
            }
            dockyard = Dockyard(
                tmp_path / "deployment",
                [upstream("up.test", fake_registry.url)],
                workers=workers,
                settings={"server": server},
            )
            deployment = Deployment(fake_registry, dockyard, tls=client)
            servers.callback(dockyard.kill)
            dockyard.start(wait=False)
            eventually(lambda: is_answering(deployment), "HTTPS")
            deployment.wait_for_workers(workers)
            return deployment

        yield start


def is_answering(deployment: Deployment) -> bool:
    """Whether it is ready."""
    try:
        return deployment.get("/readyz").status == 200
    except OSError:
        return False


def served_certificate(deployment: Deployment) -> str:
    """The fingerprint of the certificate that a new connection gets."""
    assert deployment.tls
    with (
        socket.create_connection(deployment.address, 10) as plain,
        deployment.tls.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return fingerprint(connection.getpeercert(binary_form=True))


def wait_for_certificate(deployment: Deployment, expected: str) -> None:
    """Wait until all workers have this certificate: the kernel distributes connections over them."""
    eventually(lambda: {served_certificate(deployment) for _ in range(12)} == {expected}, "the new certificate")


@contextlib.contextmanager
def no_failed_connection(deployment: Deployment) -> Iterator[None]:
    """Connect without a pause while the block runs; each connection must be served."""
    stop, failed, count = threading.Event(), [], [0]

    def connect() -> None:
        while not stop.is_set():
            try:
                served_certificate(deployment)
            except OSError as exc:
                failed.append(repr(exc))
            count[0] += 1

    threads = [threading.Thread(target=connect) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with set_at_exit(stop):
            yield
    finally:
        for thread in threads:
            thread.join()
    assert count[0] > 10
    assert failed == []


def hang_up(deployment: Deployment) -> None:
    """Send SIGHUP to the supervisor."""
    deployment.dockyard._running.send(signal.SIGHUP)


@pytest.mark.parametrize("layout", [KubernetesSecret, Certbot, CertificateFiles])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_renewed_certificate_is_used_after_sighup(
    start: Start, tmp_path: Path, layout: type[CertificateFiles], workers: int
) -> None:
    """Again and again, and no connection fails meanwhile."""
    files = layout(tmp_path / "tls")
    first = files.renew()
    deployment = start(files, workers)
    assert served_certificate(deployment) == first
    pids = deployment.dockyard.worker_pids()
    with no_failed_connection(deployment):
        for _ in range(2):
            renewed = files.renew()
            assert served_certificate(deployment) != renewed
            hang_up(deployment)
            wait_for_certificate(deployment, renewed)
        eventually(lambda: len(deployment.dockyard.worker_pids()) == workers, "the old workers have ended")
    assert not set(pids) & set(deployment.dockyard.worker_pids())


@pytest.mark.parametrize("layout", [KubernetesSecret, Certbot])
def test_a_worker_that_dies_after_a_renewal_is_replaced(
    start: Start, tmp_path: Path, layout: type[CertificateFiles]
) -> None:
    """Without a signal, the new worker has the new certificate."""
    files = layout(tmp_path / "tls")
    first = files.renew()
    deployment = start(files)
    renewed = files.renew()
    victim, other = deployment.dockyard.worker_pids()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: served_certificate(deployment) == renewed, "a worker has the new certificate")
    assert other in deployment.dockyard.worker_pids()
    os.kill(other, signal.SIGKILL)
    wait_for_certificate(deployment, renewed)
    assert first != renewed


def _truncate(files: CertificateFiles) -> Path:
    files.certfile.write_bytes(files.certfile.read_bytes()[:300])
    return files.certfile


def _remove(files: CertificateFiles) -> Path:
    files.keyfile.unlink()
    return files.keyfile


def _write_one_of_two(files: CertificateFiles) -> Path:
    other = files.directory / "other"
    files.write(other)
    (other / "tls.crt").rename(files.certfile)
    return files.keyfile


@pytest.mark.parametrize("damage", [_truncate, _remove, _write_one_of_two])
def test_a_certificate_that_cannot_be_used_changes_nothing(
    start: Start, tmp_path: Path, damage: Callable[[CertificateFiles], Path]
) -> None:
    """The same workers keep the old one, one line says why, and the next SIGHUP with a good pair works."""
    files = CertificateFiles(tmp_path / "tls")
    first = files.renew()
    deployment = start(files)
    pids = deployment.dockyard.worker_pids()
    with no_failed_connection(deployment):
        path = damage(files)
        hang_up(deployment)
        deployment.wait_for_log("cannot use the new TLS certificate")
        assert {served_certificate(deployment) for _ in range(8)} == {first}
        assert deployment.dockyard.worker_pids() == pids
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: pids[0] not in deployment.dockyard.worker_pids(), "the worker has ended")
    (line, *_) = [line for line in deployment.dockyard.read_log().splitlines() if "cannot use the new TLS" in line]
    assert f"setting=server.{'certfile' if path == files.certfile else 'keyfile'}" in line
    assert f"file={path}" in line
    wait_for_certificate(deployment, first)
    renewed = files.renew()
    hang_up(deployment)
    wait_for_certificate(deployment, renewed)


def test_a_certificate_that_ends_the_new_worker_changes_nothing(start: Start, tmp_path: Path) -> None:
    """OpenSSL can read a key on the curve P-521, the server cannot use it."""
    files = CertificateFiles(tmp_path / "tls")
    first = files.renew()
    deployment = start(files)
    pids = deployment.dockyard.worker_pids()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp521r1"),
            *("-subj", "/CN=localhost", "-keyout", str(files.keyfile), "-out", str(files.certfile)),
        ],
        check=True,
        capture_output=True,
    )
    with no_failed_connection(deployment):
        hang_up(deployment)
        deployment.wait_for_log("reload failed")
        assert deployment.dockyard.worker_pids()[:2] == pids
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: pids[0] not in deployment.dockyard.worker_pids(), "the worker has ended")
    eventually(lambda: len(deployment.dockyard.worker_pids()) == 2, "the worker is replaced")
    wait_for_certificate(deployment, first)


def test_sighup_without_tls_replaces_the_workers(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Several signals in a row are no more than some reloads; a running download is finished."""
    content = Bytes(Random(3).randbytes(8 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(workers=2, server={"drain_timeout": "20s"})
    deployment.wait_for_workers(2)
    pids = deployment.dockyard.worker_pids()
    with set_at_exit(threading.Event()) as go_on, deployment.crowd(path, content, 4) as crowd:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        crowd.run(until=lambda: all(member.received > MIB for member in crowd.members))
        for _ in range(5):
            hang_up(deployment)
        deployment.wait_for_log("all workers have been replaced")
        assert deployment.get("/v2/").status == 200
        go_on.set()
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    eventually(lambda: not set(pids) & set(deployment.dockyard.worker_pids()), "the old workers have ended")
    eventually(lambda: len(deployment.dockyard.worker_pids()) == 2, "two workers")
    assert fake_registry.count("blob", "GET") == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 1.0, 3.0])
def test_sigterm_ends_a_reload(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, delay_s: float
) -> None:
    """With downloads on all workers: ended within the drain timeout, and not ready at once."""
    content = Bytes(Random(4).randbytes(8 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(workers=4, server={"drain_timeout": "4s"})
    deployment.wait_for_workers(4)
    process = deployment.dockyard._running
    with set_at_exit(threading.Event()) as never, deployment.crowd(path, content, 16) as crowd:
        fake_registry.on("blob", faults.stalled(0.5, never))
        crowd.run(until=lambda: all(member.received > MIB for member in crowd.members))
        hang_up(deployment)
        time.sleep(delay_s)  # at several moments of the reload
        sent_at = time.monotonic()
        process.send(signal.SIGTERM)
        eventually(lambda: not is_answering(deployment), "not ready", within_s=0)
        eventually(lambda: process.popen.poll() is not None, "the end")
        assert is_within(time.monotonic() - sent_at, 4, slack_s=SLACK_S)
    assert process.popen.poll() == 0, deployment.dockyard.read_log()[-2000:]
    assert "Traceback" not in deployment.dockyard.read_log()


def test_a_frozen_worker_ends_a_reload_for_itself_only(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A worker that does not react to SIGTERM is killed after the drain timeout; the reload does not wait for it."""
    deployment = make_deployment(workers=2, server={"drain_timeout": "3s"})
    deployment.wait_for_workers(2)
    pids = deployment.dockyard.worker_pids()
    os.kill(pids[0], signal.SIGSTOP)
    hang_up(deployment)
    deployment.wait_for_log("all workers have been replaced")
    eventually(lambda: not set(pids) & set(deployment.dockyard.worker_pids()), "the old workers have ended")
    stays(lambda: deployment.get("/v2/").status == 200, "it serves", 1.0)
