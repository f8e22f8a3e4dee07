"""Certificates, signals, start and stop: renewal is routine, SIGTERM always ends it, and it starts on any disk."""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import attrs
import pytest
import trustme
import yaml

from tests.cases.file_systems import make_read_only, mounted, use_all_inodes
from tests.support.bodies import digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.deployment import Deployment, eventually, stays, upstream
from tests.support.dockyard import Dockyard, delete_in_use
from tests.support.fake_registry import FakeRegistry

MIB = 1024 * 1024
TAG = "/v2/up.test/org/app/manifests/v1"


@attrs.define
class Certificates:
    """The directory of a mounted Secret, or of a client of an ACME authority: links to what is current."""

    directory: Path
    authority: trustme.CA
    by_data_link: bool
    version: int = 0

    def renew(self, *, keep_old: bool = False) -> None:
        """Make a new pair and switch the links to it; delete the pair before."""
        old, self.version = self.version, self.version + 1
        new = self.directory / f"..v{self.version}"
        new.mkdir()
        certificate = self.authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(str(new / "tls.crt"))
        certificate.private_key_pem.write_to_path(str(new / "tls.key"))
        if self.by_data_link:
            self._link(self.directory / "..data", new.name)
        for name in ("tls.crt", "tls.key"):
            self._link(self.directory / name, f"..data/{name}" if self.by_data_link else f"{new.name}/{name}")
        if old and not keep_old:
            shutil.rmtree(self.directory / f"..v{old}")

    def _link(self, path: Path, target: str) -> None:
        temporary = path.with_name(path.name + ".tmp")
        temporary.symlink_to(target)
        temporary.replace(path)

    def current(self) -> bytes:
        """The certificate that should be served, in DER."""
        return ssl.PEM_cert_to_DER_cert((self.directory / "tls.crt").read_text())


def served_certificate(port: int) -> bytes:
    """The certificate that a new connection gets; empty when it is refused."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return secure.getpeercert(binary_form=True) or b""
    except OSError:
        return b""


@pytest.fixture(params=[True, False], ids=["mounted Secret", "links to files"])
def tls_server(
    request: pytest.FixtureRequest, fake_registry: FakeRegistry, tmp_path: Path
) -> Iterator[tuple[Dockyard, Certificates]]:
    """A server with TLS and two workers."""
    (tmp_path / "tls").mkdir()
    certificates = Certificates(tmp_path / "tls", trustme.CA(), request.param)
    certificates.renew()
    server = {
        "tls": True,
        "certfile": str(tmp_path / "tls/tls.crt"),
        "keyfile": str(tmp_path / "tls/tls.key"),
    }
    dockyard = Dockyard(
        tmp_path / "deployment", [upstream("up.test", fake_registry.url)], workers=2, settings={"server": server}
    )
    try:
        dockyard.start(wait=False)
        eventually(lambda: served_certificate(dockyard.port), "HTTPS")
        eventually(lambda: len(list(dockyard.storage.glob("run/shard-*.sock"))) == 2, "two workers")
        yield dockyard, certificates
    finally:
        dockyard.kill()


def test_a_renewed_certificate_is_used_after_a_reload(tls_server: tuple[Dockyard, Certificates]) -> None:
    """What the setting names is opened again; no connection is refused meanwhile; twice."""
    dockyard, certificates = tls_server
    refused, is_over = threading.Event(), threading.Event()

    def connect() -> None:
        while not is_over.wait(0.05):
            if not served_certificate(dockyard.port):
                refused.set()

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        for _ in range(2):
            certificates.renew()
            os.kill(dockyard.pid, signal.SIGHUP)
            eventually(
                lambda: {served_certificate(dockyard.port) for _ in range(8)} == {certificates.current()}, "renewed", 20
            )
    finally:
        is_over.set()
        thread.join()
    assert not refused.is_set(), "no connection is refused during a reload"
    assert dockyard.is_running


def test_a_worker_is_replaced_after_a_renewal_without_a_reload(tls_server: tuple[Dockyard, Certificates]) -> None:
    """A renewed Secret never hurts a server that nobody signals."""
    dockyard, certificates = tls_server
    certificates.renew()
    before = dockyard.worker_pids()
    os.kill(before[0], signal.SIGKILL)
    eventually(
        lambda: dockyard.is_running and len(dockyard.worker_pids()) == 2 and before[0] not in dockyard.worker_pids(),
        "the worker is replaced",
    )
    stays(lambda: dockyard.is_running, "the server runs", 1.5)
    eventually(lambda: served_certificate(dockyard.port), "it answers")


@pytest.mark.parametrize("damage", ["cut", "empty", "another key", "missing"])
def test_a_reload_with_a_pair_that_cannot_be_used_changes_nothing(
    tls_server: tuple[Dockyard, Certificates], damage: str
) -> None:
    """The old pair stays in use in the same workers, the log names setting and file; the next good pair works."""
    dockyard, certificates = tls_server
    good, workers = certificates.current(), dockyard.worker_pids()
    certificates.renew()
    certificate, key = certificates.directory / "tls.crt", certificates.directory / "tls.key"
    match damage:
        case "cut":
            certificate.write_text(certificate.read_text()[:300])
        case "empty":
            certificate.write_text("")
        case "another key":
            certificates.authority.issue_cert("other").private_key_pem.write_to_path(str(key))
        case "missing":
            certificate.unlink()
    os.kill(dockyard.pid, signal.SIGHUP)
    eventually(
        lambda: any("server.certfile" in line or "server.keyfile" in line for line in dockyard.read_log().splitlines()),
        "the log names the setting",
    )
    stays(lambda: dockyard.worker_pids() == workers, "the same workers", 2.0)
    assert served_certificate(dockyard.port) == good
    certificates.renew()
    os.kill(dockyard.pid, signal.SIGHUP)
    eventually(lambda: served_certificate(dockyard.port) == certificates.current(), "the next pair is used")


def test_sigterm_ends_a_reload(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """Long downloads on both workers: ended within drain_timeout, and not ready at once."""
    layer = fake_registry.add_blob(Random(1).randbytes(32 * MIB))
    deployment = make_deployment(workers=2, server={"drain_timeout": "4s"})
    path = f"/v2/up.test/org/app/blobs/{layer}"
    assert deployment.get(path).is_complete
    with contextlib.ExitStack() as clients:
        for _ in range(8):
            clients.enter_context(deployment.stream(path, receive_buffer=4096)).head()
        pid = deployment.dockyard.pid
        os.kill(pid, signal.SIGHUP)
        time.sleep(1.0)  # the reload waits for the downloads; there is no event for that
        began_at = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: is_not_ready(deployment), "not ready", within_s=0.5)
        eventually(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid), "ended")
        assert is_within(time.monotonic() - began_at, 4, slack_s=3)


def is_not_ready(deployment: Deployment) -> bool:
    """Whether `/readyz` is 503, or no connection is accepted any more."""
    try:
        return deployment.get("/readyz").status == 503
    except OSError:
        return True


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and its parent has not waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("what", ["run", "."], ids=["run", "the whole directory"])
def test_sigterm_ends_a_server_whose_directory_is_gone(make_deployment: Callable[..., Deployment], what: str) -> None:
    """With exit status 0, and without a traceback."""
    deployment = make_deployment(workers=2)
    delete_in_use(deployment.dockyard.storage / what)
    began_at = time.monotonic()
    deployment.dockyard.stop()
    assert is_within(time.monotonic() - began_at, 0, slack_s=8)
    assert "Traceback" not in deployment.dockyard.read_log()


@pytest.mark.parametrize("how", ["inodes", "blocks", "read-only"])
def test_a_server_starts_on_a_disk_that_takes_nothing(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path, how: str
) -> None:
    """It serves what is cached, also with the upstream away."""
    content = Random(2).randbytes(2 * MIB)
    image = fake_registry.add_image("org/app", "v1", [content])
    with mounted(tmp_path / "disk", "size=16m,nr_inodes=150") as disk:
        deployment = make_deployment(workers=2, storage={"directory": str(disk / "storage")})
        dockyard = deployment.dockyard
        dockyard.storage = disk / "storage"
        layer = f"/v2/up.test/org/app/blobs/{image.layers[0]}"
        assert deployment.get(TAG).status == deployment.get(layer).status == 200
        eventually(lambda: deployment.stored_files(image.layers[0]), "stored")
        dockyard.kill()
        match how:
            case "inodes":
                use_all_inodes(disk / "others")
            case "blocks":
                with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            case "read-only":
                make_read_only(disk)
        for _ in range(2):
            dockyard.start()
            assert digest_of(deployment.get(layer).body) == image.layers[0]
            assert deployment.get(TAG).body == image.body
            fake_registry.listener.close()
            assert digest_of(deployment.get(layer).body) == image.layers[0]
            assert deployment.get(TAG).body == image.body
            fake_registry.listener.open()
            dockyard.kill()
        assert "Traceback" not in dockyard.read_log()


@pytest.mark.parametrize("output", ["/dev/stdout", "/dev/stderr"])
def test_the_log_may_be_a_socket(fake_registry: FakeRegistry, tmp_path: Path, output: str) -> None:
    """Under systemd the standard streams are sockets, which cannot be opened by path."""
    config = Dockyard(tmp_path, [upstream("up.test", fake_registry.url)], settings={"logger": {"output": output}})
    config.config.write_text(yaml.safe_dump(config.settings))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "dockyard", "server", "-c", config.config],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
        try:
            theirs.close()
            eventually(config.is_answering, "answering")
            process.send_signal(signal.SIGTERM)
            assert process.wait(EVENT_TIMEOUT_S) == 0
        finally:
            process.kill()
            process.wait()
        received = b"".join(iter(lambda: ours.recv(65536), b""))
    assert b"Dockyard is starting" in received
    assert b"Traceback" not in received


def test_an_output_that_cannot_be_opened_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    """It is named by its key."""
    config = tmp_path / "config.yaml"
    config.write_text(f"logger: {{output: {tmp_path / 'socket'}}}\nstorage: {{directory: {tmp_path / 'storage'}}}\n")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        done = subprocess.run(
            [sys.executable, "-m", "dockyard", "server", "-c", config],
            capture_output=True,
            text=True,
            timeout=EVENT_TIMEOUT_S,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
    assert done.returncode != 0
    assert "logger.output" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
