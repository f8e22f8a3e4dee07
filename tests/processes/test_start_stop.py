"""Starting and stopping, second servers, restarts, TLS."""

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
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random

import pytest
import trustme
import yaml

from tests.support import faults
from tests.support.bodies import Bytes, Synthetic, digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.deployment import Deployment, eventually, set_at_exit, upstream
from tests.support.dockyard import Dockyard, delete_in_use
from tests.support.fake_registry import FakeRegistry
from tests.support.paths import ROOT
from tests.support.processes import free_port

MIB = 1024 * 1024
SLACK_S = 4.0
STARTS = 10
STOPS = 3
START_S = 0.15  # from the first worker's start to the last one's


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 32 MiB with 200 inodes."""
    directory = tmp_path / "tmpfs"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m,nr_inodes=200", "tmpfs", directory]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        reason = f"cannot mount a small tmpfs: {mounted.stderr.decode().strip()}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    yield directory
    while directory.is_mount():
        subprocess.run(["umount", "--lazy", directory], check=True)


def _terminate(deployment: Deployment) -> tuple[float, Callable[[], int | None]]:
    """Send SIGTERM; return when it was sent, and a function that returns the exit status."""
    process = deployment.dockyard._running  # Dockyard.stop() would wait for the end
    process.send(signal.SIGTERM)
    return time.monotonic(), process.popen.poll


def _is_refused(deployment: Deployment) -> bool:
    try:
        return deployment.get("/v2/").status == 503
    except OSError:
        return True


def test_a_running_download_finishes_after_sigterm(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """New connections are refused, the running download is finished, and the exit status is 0."""
    content = Bytes(Random(13).randbytes(20 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(workers=2, server={"drain_timeout": "20s"})
    with set_at_exit(threading.Event()) as go_on, deployment.crowd(path, content, 6) as crowd:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        crowd.run(until=lambda: all(member.received > MIB for member in crowd.members))
        sent_at, poll = _terminate(deployment)
        eventually(lambda: _is_refused(deployment), "no new connections")
        assert poll() is None
        go_on.set()
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    eventually(lambda: poll() is not None, "the end")
    assert poll() == 0, deployment.dockyard.read_log()[-2000:]
    assert is_within(time.monotonic() - sent_at, 20, slack_s=SLACK_S)
    assert deployment.stored_files(content.digest)


def test_a_stalled_client_is_cut_after_the_drain_timeout(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A client that reads nothing is cut when the drain timeout is over, and the server ends."""
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(Synthetic(50 * MIB))}"
    deployment = make_deployment(workers=2, server={"drain_timeout": "2s"})
    with deployment.stream(path, receive_buffer=4096) as stalled:
        assert stalled.head().status == 200
        sent_at, poll = _terminate(deployment)
        eventually(lambda: poll() is not None, "the end")
        assert is_within(time.monotonic() - sent_at, 2, slack_s=SLACK_S)
        assert poll() == 0, deployment.dockyard.read_log()[-2000:]
        body, ended = stalled.rest()
        assert ended in ("fin", "rst")
        assert len(body) < 50 * MIB


def _remove_run(storage: Path) -> None:
    delete_in_use(storage / "run")


def _replace_run(storage: Path) -> None:
    delete_in_use(storage / "run")
    (storage / "run").write_text("")


def _make_read_only(storage: Path) -> None:
    subprocess.run(["mount", "--bind", storage, storage], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", storage], check=True)


def _fill(storage: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (storage / f"in-the-way-{number}").write_bytes(bytes(65536))
    delete_in_use(storage / "run")
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (storage / f"also-in-the-way-{number}").touch()


@pytest.mark.parametrize("damage", [_remove_run, delete_in_use, _replace_run, _make_read_only, _fill])
def test_a_server_stops_whatever_state_its_directory_is_in(
    make_deployment: Callable[..., Deployment], tmpfs: Path, damage: Callable[[Path], None]
) -> None:
    """Within the drain timeout, with exit status 0 and without a traceback."""
    storage = tmpfs if damage in (_make_read_only, _fill) else tmpfs / "storage"
    deployment = make_deployment(workers=2, server={"drain_timeout": "2s"}, storage={"directory": str(storage)})
    eventually(lambda: len(list(storage.glob("run/shard-*.sock"))) == 2, "all workers serve")
    damage(storage)
    with deployment.stream("/v2/") as idle:
        idle.head().rest()
        sent_at, poll = _terminate(deployment)
        eventually(lambda: poll() is not None, "the end")
        assert is_within(time.monotonic() - sent_at, 2, slack_s=SLACK_S)
    assert poll() == 0, deployment.dockyard.read_log()[-2000:]
    assert "Traceback" not in deployment.dockyard.read_log()


def _use_up_inodes(storage: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (storage / f"in-the-way-{number}").touch()


def _use_up_inodes_without_run(storage: Path) -> None:
    shutil.rmtree(storage / "run")
    _use_up_inodes(storage)


def _use_up_blocks(storage: Path) -> None:
    with contextlib.suppress(OSError), (storage / "in-the-way").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))


def _make_read_only_without_run(storage: Path) -> None:
    shutil.rmtree(storage / "run")
    _make_read_only(storage)


@pytest.mark.parametrize(
    "damage",
    [
        _use_up_inodes,
        _use_up_inodes_without_run,
        _use_up_blocks,
        _make_read_only,
        _make_read_only_without_run,
    ],
)
def test_a_server_starts_on_a_directory_that_cannot_be_written(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmpfs: Path, damage: Callable[[Path], None]
) -> None:
    """After all processes were killed: cached content is served, without the upstream too; new content is not kept."""
    image = fake_registry.add_image("app", "v1", [Random(16).randbytes(2 * MIB)])
    new = fake_registry.add_blob(Random(17).randbytes(2 * MIB))
    paths = ["manifests/v1", f"manifests/{image.digest}", f"blobs/{image.layers[0]}"]
    deployment = make_deployment(workers=2, storage={"directory": str(tmpfs)})
    bodies = [deployment.get(f"/v2/up.test/app/{path}").body for path in paths]
    eventually(lambda: list(tmpfs.glob(f"cache/blobs/**/{image.layers[0][7:]}")), "the layer is stored")
    deployment.dockyard.kill()
    damage(tmpfs)
    deployment.dockyard.start()
    count_before = fake_registry.count("blob", "GET")
    fake_registry.on(None, faults.error_response(503))
    assert [deployment.get(f"/v2/up.test/app/{path}").body for path in reversed(paths)] == bodies[::-1]
    fake_registry.remove_rules()
    assert fake_registry.count("blob", "GET") == count_before
    assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{new}").body) == new
    assert deployment.get("/readyz").status == 200
    assert "Traceback" not in deployment.read_log()
    status, output = _second(deployment, tmpfs.parent, port=free_port(), storage=tmpfs)
    assert (status, "another Dockyard" in output) == (1, True), output
    deployment.dockyard.stop()


def test_a_read_only_directory_without_a_cache_is_rejected(
    make_deployment: Callable[..., Deployment], tmpfs: Path, tmp_path: Path
) -> None:
    """There is nothing to serve and nothing can be kept: this is not intended."""
    deployment = make_deployment()
    for storage in (tmpfs, tmpfs / "new"):
        if storage == tmpfs:
            _make_read_only(tmpfs)
        status, output = _second(deployment, tmp_path, port=free_port(), storage=storage)
        assert status == 1
        assert "cannot start" in output
        assert f"storage.directory: cannot write {storage}" in output
        assert "Traceback" not in output


def test_an_idle_server_stops_at_once(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """With an idle client connection the server ends well before the drain timeout."""
    deployment = make_deployment(workers=2, server={"drain_timeout": f"{2 * EVENT_TIMEOUT_S}s"})
    deployment.wait_for_workers(2)
    with deployment.stream("/v2/") as idle:
        idle.head().rest()
        _, poll = _terminate(deployment)
        eventually(lambda: poll() == 0, "the end")


def test_a_starting_server_stops_at_once(fake_registry: FakeRegistry, tmp_path: Path) -> None:
    """SIGTERM at any moment of the start: every worker gets it, and the server ends before the drain timeout."""
    for attempt in range(STARTS):
        dockyard = Dockyard(
            tmp_path / str(attempt),
            [upstream("up.test", fake_registry.url)],
            settings={"server": {"drain_timeout": f"{2 * EVENT_TIMEOUT_S}s"}},
        )
        dockyard.start(wait=False)
        eventually(lambda: "Dockyard is starting" in dockyard.read_log(), "it starts")  # noqa: B023
        time.sleep(attempt / STARTS * START_S)
        process = dockyard._running
        process.send(signal.SIGTERM)
        eventually(lambda: process.popen.poll() == 0, f"the end, attempt {attempt}")  # noqa: B023


SLOW_START = """
import time
from dockyard import supervisor
share_access = supervisor._share_access

def share_slowly(settings):
    time.sleep(1)
    return share_access(settings)

supervisor._share_access = share_slowly
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_signal_before_the_workers_are_started_waits(
    fake_registry: FakeRegistry, tmp_path: Path, number: signal.Signals
) -> None:
    """Just after the first line of the log: a stop is in order, and a reload does not end the server."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    dockyard = Dockyard(tmp_path, [upstream("up.test", fake_registry.url)], environ=environ)
    dockyard.start(wait=False)
    try:
        eventually(lambda: "Dockyard is starting" in dockyard.read_log(), "it starts")
        process = dockyard._running
        process.send(number)
        if number is signal.SIGHUP:
            eventually(lambda: "all workers have been replaced" in dockyard.read_log(), "the reload")
            process.send(signal.SIGTERM)
        eventually(lambda: process.popen.poll() is not None, "the end")
        assert process.popen.poll() == 0
        assert "Dockyard has stopped" in dockyard.read_log()
    finally:
        dockyard.kill()


LIFE = ["Dockyard is starting", "Dockyard is listening", "Dockyard is stopping", "Dockyard has stopped"]


def _lines(dockyard: Dockyard, *events: str) -> list[str]:
    """The lines of the log with one of these events."""
    return [line for line in dockyard.read_log().splitlines() if any(event in line for event in events)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_log_has_one_line_for_each_step_of_its_life(
    fake_registry: FakeRegistry, tmp_path: Path, number: signal.Signals
) -> None:
    """Again and again: nothing more at an ordinary stop, no worker is reported as killed, nothing is of Granian."""
    dockyard = Dockyard(tmp_path, [upstream("up.test", fake_registry.url)], workers=3)
    for _ in range(STOPS):
        dockyard.log.unlink(missing_ok=True)
        dockyard.start()
        eventually(lambda: _lines(dockyard, "Dockyard is listening"), "all workers listen")
        process = dockyard._running
        process.send(number)
        assert process.popen.wait(20) == 0
        dockyard.kill()
        steps = _lines(dockyard, "logger=dockyard.supervisor")
        assert [next((event for event in LIFE if event in step), step) for step in steps] == LIFE
        assert f" url=http://127.0.0.1:{dockyard.port} " in steps[1]
        assert f'try="docker pull 127.0.0.1:{dockyard.port}/up.test/NAME:TAG"' in steps[1]
        assert f" reason={number.name} drain_timeout=10s" in steps[2]
        assert not _lines(dockyard, " warn ", " error ", "killed", "granian")


def test_a_second_interrupt_stops_at_once(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Ctrl-C twice aborts the running responses; the log says before that it would."""
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(Synthetic(50 * MIB))}"
    deployment = make_deployment(workers=2, server={"drain_timeout": "60s"})
    with deployment.stream(path, receive_buffer=4096) as stalled:
        assert stalled.head().status == 200
        process = deployment.dockyard._running
        process.send(signal.SIGINT)
        deployment.wait_for_log("press Ctrl-C again to stop at once")
        process.send(signal.SIGINT)  # twice by one key: `timeout` does that
        time.sleep(1.2)  # the shortest time between two
        assert process.popen.poll() is None, "the first Ctrl-C, sent twice, does not abort"
        process.send(signal.SIGINT)
        assert process.popen.wait(10) == 0
    assert _lines(deployment.dockyard, "Ctrl-C was pressed twice: running responses were aborted")
    assert not _lines(deployment.dockyard, "worker did not stop within")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["SIGKILL", "SIGSEGV"])
def test_the_end_of_a_worker_is_reported(make_deployment: Callable[..., Deployment], number: signal.Signals) -> None:
    """With the signal, and the probable reason of SIGKILL; a worker of a reload that stops is not reported."""
    deployment = make_deployment(workers=2)
    deployment.wait_for_workers(2)
    pid = deployment.dockyard.worker_pids()[0]
    os.kill(pid, number)
    (line,) = eventually(lambda: _lines(deployment.dockyard, "a worker has ended: it is replaced"), "reported")
    assert f" pid={pid} " in line
    assert ('"SIGKILL, probably by the kernel, out of memory' if number == signal.SIGKILL else "=SIGSEGV ") in line
    deployment.wait_for_workers(2)
    os.kill(deployment.dockyard.pid, signal.SIGHUP)
    eventually(lambda: _lines(deployment.dockyard, "all workers have been replaced"), "reloaded")
    assert _lines(deployment.dockyard, "a worker has ended") == [line]


def test_a_limit_of_processes_is_explained(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """The workers that have been started are stopped, and there is no traceback."""
    one_fork = """
import errno, os

fork, forks = os.fork, []

def fork_once():
    if forks:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    forks.append(1)
    return fork()

os.fork = fork_once
"""
    (tmp_path / "sitecustomize.py").write_text(one_fork)
    deployment = make_deployment(workers=2)
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    status, output = _second(deployment, tmp_path, port=free_port(), environ=environ)
    assert status == 1, output
    assert "cannot start a worker process: Resource temporarily unavailable: raise the limit of processes" in output
    assert "Traceback" not in output


def _second(
    deployment: Deployment,
    directory: Path,
    *,
    port: int | None = None,
    storage: Path | None = None,
    environ: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Start another Dockyard that shares something with the first; return its exit status and its output."""
    settings = {section: values.copy() for section, values in deployment.dockyard.settings.items()}
    settings["server"]["port"] = str(port or 0)
    settings["storage"]["directory"] = str(storage or directory / "second")
    config = directory / "second.yaml"
    config.write_text(yaml.safe_dump(settings))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dockyard", "server", "-c", config],
            capture_output=True,
            timeout=EVENT_TIMEOUT_S,
            check=False,
            env={**os.environ, **(environ or {})},
        )
    except subprocess.TimeoutExpired as exc:
        return 0, f"still running: {exc.stderr!r}"
    return done.returncode, (done.stdout + done.stderr).decode()


def test_a_second_server_on_the_port_does_not_start(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """The second server on a port would share its connections: it does not start, and says why."""
    deployment = make_deployment(workers=2)
    status, output = _second(deployment, tmp_path, port=deployment.dockyard.port)
    assert status not in (0, None), output
    assert str(deployment.dockyard.port) in output
    assert "Traceback" not in output
    assert all(deployment.get("/v2/").status == 200 for _ in range(20))


def test_a_second_server_on_the_directory_does_not_start(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """Two servers in one directory would delete each other's files: the second does not start, and says why."""
    deployment = make_deployment(workers=2)
    status, output = _second(deployment, tmp_path, port=free_port(), storage=deployment.dockyard.storage)
    assert status not in (0, None), output
    assert str(deployment.dockyard.storage) in output
    assert "Traceback" not in output
    assert all(deployment.get("/v2/").status == 200 for _ in range(20))


def test_a_second_server_does_not_start_where_the_lock_file_was_deleted(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    """Somebody has emptied `run/`: the running server locks its directory again."""
    deployment = make_deployment(workers=1)
    lock = deployment.dockyard.storage / "run" / "server.lock"
    for emptied in (lock.parent, deployment.dockyard.storage):
        delete_in_use(emptied)
        eventually(lock.exists, "the lock file is there again")
        status, output = _second(deployment, tmp_path, port=free_port(), storage=deployment.dockyard.storage)
        assert (status, "another Dockyard" in output) == (1, True), output


def test_an_invalid_bucket_address_is_rejected(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """Settings with an invalid bucket address are reported before any worker is started."""
    deployment = make_deployment()
    deployment.dockyard.settings["storage"]["bucket"] = "b"
    status, output = _second(deployment, tmp_path, port=free_port())
    assert status == 2
    assert 'storage.bucket = "b": must be the name of a bucket' in output
    assert "Traceback" not in output


@pytest.mark.parametrize("is_killed", [False, True], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_restart_keeps_the_cache_and_continues_downloads(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, workers: int, *, is_killed: bool
) -> None:
    """Cached content is served without upstream requests; an interrupted download is continued where it stopped."""
    image = fake_registry.add_image("app", "v1", [b"a layer"])
    deployment = make_deployment(workers=workers, server={"drain_timeout": "1s"})
    paths = [f"/v2/up.test/app/manifests/{image.digest}", f"/v2/up.test/app/blobs/{image.layers[0]}"]
    bodies = [deployment.get(path).body for path in paths]
    layer = Random(14).randbytes(6 * MIB)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(layer)}"
    with set_at_exit(threading.Event()) as never:
        rule = fake_registry.on("blob", faults.stalled_at_offset(4 * MIB, never))
        with deployment.stream(path) as download:
            download.head().read(3 * MIB)
            eventually(lambda: max(file.stat().st_size for file in deployment.partial_files()) >= 4 * MIB, "4 MiB")
            if is_killed:
                deployment.dockyard.kill()
            else:
                deployment.dockyard.stop()
        fake_registry.remove_rules(rule)
    (left,) = eventually(deployment.interrupted_downloads, "the killed processes are gone")
    left_bytes = left.stat().st_size
    assert left_bytes >= 4 * MIB
    deployment.dockyard.start()
    count_before = fake_registry.count()
    assert [deployment.get(path).body for path in paths] == bodies
    assert fake_registry.count() == count_before
    assert deployment.get(path).body == layer
    last = fake_registry.received("blob", "GET")[-1]
    assert last.request.header("Range") == f"bytes={left_bytes}-"
    assert deployment.interrupted_downloads() == []


def test_the_server_speaks_tls(fake_registry: FakeRegistry, tmp_path: Path) -> None:
    """`server.tls` with a certificate and its key: HTTPS only, no plain HTTP, never HTTP/2."""
    image = fake_registry.add_image("app", "v1", [Random(15).randbytes(3 * MIB)])
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.set_alpn_protocols(["h2", "http/1.1"])
    server = {"tls": True, "certfile": str(tmp_path / "cert.pem"), "keyfile": str(tmp_path / "key.pem")}
    dockyard = Dockyard(tmp_path / "deployment", [upstream("up.test", fake_registry.url)], settings={"server": server})
    deployment = Deployment(fake_registry, dockyard, tls=client)
    try:
        dockyard.start(wait=False)
        eventually(lambda: not _is_refused(deployment), "HTTPS")
        assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
        assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{image.layers[0]}").body) == image.layers[0]
        with closing(HTTPConnection(*deployment.address, timeout=10)) as http:
            http.request("GET", "/v2/")
            with pytest.raises((OSError, HTTPException)):
                http.getresponse()
        plain = socket.create_connection(deployment.address, 10)
        with client.wrap_socket(plain, server_hostname="localhost") as secure:
            assert secure.selected_alpn_protocol() != "h2"
    finally:
        dockyard.kill()


def test_a_stop_while_the_upstream_hangs(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A download that waits for a silent upstream does not delay the end beyond the drain timeout."""
    deployment = make_deployment(
        server={"drain_timeout": "2s"}, upstream={"stall_timeout": "60s", "check_timeout": "60s"}
    )
    fake_registry.on(None, faults.silent())
    with contextlib.ExitStack() as clients:
        for path in ("blobs/sha256:" + "7" * 64, "manifests/v1"):
            clients.enter_context(deployment.stream(f"/v2/up.test/app/{path}"))
        fake_registry.wait_for(lambda: fake_registry.count() >= 2, "both requests have reached the upstream")
        sent_at, poll = _terminate(deployment)
        eventually(lambda: poll() is not None, "the end")
        assert is_within(time.monotonic() - sent_at, 2, slack_s=SLACK_S)


def test_a_storage_directory_that_cannot_be_written(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """When the storage directory is a file, the server says so and does not start."""
    deployment = make_deployment()
    in_the_way = tmp_path / "a-file"
    in_the_way.write_text("")
    status, output = _second(deployment, tmp_path, port=free_port(), storage=in_the_way)
    assert status not in (0, None), output
    assert str(in_the_way) in output
    assert "Traceback" not in output


@pytest.mark.parametrize("code", ["ENOLCK", "ENOTSUP", "EINVAL"])
def test_a_file_system_without_locks(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path, code: str
) -> None:
    """Without locks, workers would write the same file: the server says so and does not start."""
    no_locks = f"""
import errno, fcntl

def flock(fd, operation):
    raise OSError(errno.{code}, "no locks here")

fcntl.flock = flock
"""
    (tmp_path / "sitecustomize.py").write_text(no_locks)
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    status, output = _second(make_deployment(), tmp_path, port=free_port(), environ=environ)
    assert status == 1, output
    assert "cannot start" in output
    assert "no locks here" in output
    assert "Traceback" not in output
