"""Resources: logs never block serving, memory is bounded, workers are judged by what they do, HEADs are joined."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest
import yaml

from tests.cases.file_systems import mounted
from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually, stays, upstream
from tests.support.dockyard import Dockyard
from tests.support.fake_registry import FakeRegistry
from tests.support.processes import descendants, kill_leftovers, memory_bytes

MIB = 1024 * 1024


@contextmanager
def started(dockyard: Dockyard, output: int, wrapper: list[str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server whose standard output and error are one file descriptor."""
    dockyard.config.write_text(yaml.safe_dump(dockyard.settings))
    process = subprocess.Popen(
        [*(wrapper or []), sys.executable, "-m", "dockyard", "server", "-c", dockyard.config],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={"PATH": os.environ["PATH"], "HOME": str(dockyard.directory)},
    )
    try:
        yield process
    finally:
        left = descendants(process.pid)
        process.kill()
        process.wait()
        kill_leftovers(left)
        shutil.rmtree(dockyard.storage, ignore_errors=True)


def worker_pids(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes below the supervisor."""
    return sorted(each.pid for each in descendants(process.pid) if b"resource_tracker" not in each.command_line())


@pytest.mark.parametrize("reader", ["hangs", "is gone"])
def test_a_log_that_nobody_reads_stops_nothing(fake_registry: FakeRegistry, tmp_path: Path, reader: str) -> None:
    """All requests are answered by the same workers, and SIGTERM ends the server while nobody reads."""
    image = fake_registry.add_image("org/app", "v1")
    dockyard = Dockyard(tmp_path, [upstream("up.test", fake_registry.url)], workers=2)
    deployment = Deployment(fake_registry, dockyard)
    reading, writing = os.pipe()
    with open(reading, "rb") as read_end, started(dockyard, writing) as process:
        os.close(writing)
        eventually(dockyard.is_answering, "answering")
        deployment.wait_for_workers(2)
        workers = worker_pids(process)
        if reader == "is gone":
            read_end.close()
        path = f"/v2/up.test/org/app/manifests/{image.digest}"
        for _ in range(700):
            assert deployment.get(path).body == image.body
        assert deployment.get("/healthz").status == 200
        assert worker_pids(process) == workers
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def test_memory_is_bounded_with_a_full_disk(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """Layers are passed on through memory, which is given back at the end of each: 40 in turn, then 30 at once."""
    layers = [fake_registry.add_blob(Random(number).randbytes(9 * MIB)) for number in range(40)]
    with mounted(tmp_path / "disk", "size=6m") as disk:
        deployment = make_deployment(storage={"directory": str(disk / "storage")})
        [worker] = deployment.dockyard.worker_pids()
        before = memory_bytes(worker)
        for layer in layers:
            assert digest_of(deployment.get(f"/v2/up.test/org/app/blobs/{layer}").body) == layer
        assert memory_bytes(worker) - before < 150 * MIB
        peak = 0
        paths = [f"/v2/up.test/org/app/blobs/{layer}" for layer in layers[:30]]
        is_over = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not is_over.wait(0.05):
                peak = max(peak, memory_bytes(worker))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            bodies = [response.body for response in deployment.get_concurrently(paths)]
        finally:
            is_over.set()
            thread.join()
        assert [digest_of(body) for body in bodies] == layers[:30]
        assert 0 < peak < 400 * MIB
        deployment.dockyard.kill()


def test_workers_without_their_sockets_are_not_killed(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A cleaner deleted them: no download is cut, the sockets come back, and the workers find each other."""
    content = Random(1).randbytes(4 * MIB)
    layer = fake_registry.add_blob(content)
    go_on = threading.Event()
    fake_registry.on("blob", faults.stalled(0.5, go_on), times=1)
    deployment = make_deployment(workers=2, upstream={"stall_timeout": "120s"})
    deployment.wait_for_workers(2)
    workers = deployment.dockyard.worker_pids()
    with ExitStack() as clients:
        downloads = [
            clients.enter_context(deployment.stream(f"/v2/up.test/org/app/blobs/{layer}")).head() for _ in range(8)
        ]
        for file in deployment.dockyard.storage.glob("run/*.sock"):
            file.unlink()
        eventually(lambda: len(list(deployment.dockyard.storage.glob("run/shard-*.sock"))) == 2, "made again")
        assert deployment.dockyard.worker_pids() == workers
        go_on.set()
        for download in downloads:
            body, ended = download.rest()
            assert (body == content, ended) == (True, "length")
    cold = fake_registry.add_blob(Random(2).randbytes(MIB))
    bodies = deployment.get_concurrently([f"/v2/up.test/org/app/blobs/{cold}"] * 20)
    assert {digest_of(response.body) for response in bodies} == {cold}
    assert fake_registry.count("blob", "GET", reference=cold) == 1
    assert deployment.dockyard.worker_pids() == workers
    assert "killed" not in deployment.read_log()


def test_an_empty_host_is_all_addresses(fake_registry: FakeRegistry, tmp_path: Path) -> None:
    """Also where sockets for IPv6 do not take IPv4 by default, in a network namespace of its own."""
    dockyard = Dockyard(tmp_path, [upstream("up.test", fake_registry.url)], settings={"server": {"host": ""}})
    namespace = ["unshare", "--net", "--", "sh", "-c"]
    setup = "ip link set lo up && sysctl -qw net.ipv6.bindv6only=1"
    checked = subprocess.run([*namespace, setup], capture_output=True, check=False)
    if checked.returncode:
        reason = f"cannot make a network namespace: {checked.stderr.decode().strip()}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with (
        (tmp_path / "log").open("wb") as log,
        started(dockyard, log.fileno(), [*namespace, f'{setup} && exec "$@"', "sh"]) as process,
    ):
        for address in ("127.0.0.1", "::1"):
            probe = f"import socket; socket.create_connection(({address!r}, {dockyard.port}), 2).close()"
            command = ["nsenter", f"--net=/proc/{process.pid}/ns/net", sys.executable, "-c", probe]
            eventually(
                lambda command=command: not subprocess.run(command, capture_output=True, check=False).returncode,
                f"{address} is listened on",
                20,
            )


HALF_A_PROCESSOR = """
import builtins, io, os, pathlib
os.sched_getaffinity = lambda _: set(range(64))
os.cpu_count = lambda: 64
"""


def test_a_cpu_quota_limits_the_number_of_workers(fake_registry: FakeRegistry, tmp_path: Path) -> None:
    """A container with half a processor on a machine of 64 has one worker (or the pages say why not)."""
    (tmp_path / "sitecustomize.py").write_text(HALF_A_PROCESSOR)
    root = Path("/sys/fs/cgroup")
    is_unified = (root / "cgroup.controllers").is_file()
    group = (root if is_unified else root / "cpu") / f"dockyard-test-{os.getpid()}"
    try:
        group.mkdir()
        if is_unified:
            (group / "cpu.max").write_text("50000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as exc:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"cannot make a control group with a quota: {exc}")
    dockyard = Dockyard(
        tmp_path / "server",
        [upstream("up.test", fake_registry.url)],
        workers=0,
        environ={"PYTHONPATH": str(tmp_path)},
        wrapper=["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"],
    )
    try:
        dockyard.start(wait=False)
        eventually(dockyard.is_answering, "answering")
        stays(lambda: len(dockyard.worker_pids()) == 1, "one worker", 1.0)
    finally:
        dockyard.kill()
        eventually(lambda: not (group / "cgroup.procs").read_text().strip(), "the group is empty")
        group.rmdir()


def test_heads_of_one_cold_blob_are_joined(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A fleet asks for the size first: one request per worker at most, and none while the size is known."""
    layer = fake_registry.add_blob(Random(1).randbytes(12_345))
    go_on = threading.Event()
    fake_registry.on("blob", faults.silent(go_on), method="HEAD")
    deployment = make_deployment(workers=2)
    path = f"/v2/up.test/org/app/blobs/{layer}"
    threading.Timer(0.7, go_on.set).start()
    with ThreadPoolExecutor(100) as pool:
        responses = list(pool.map(lambda _: deployment.head(path), range(100)))
    assert {(each.status, each.header("Content-Length")) for each in responses} == {(200, "12345")}
    assert 1 <= fake_registry.count("blob", "HEAD") <= 2
    before = fake_registry.count("blob")
    began_at = time.monotonic()
    assert deployment.head(path).header("Content-Length") == "12345"
    if time.monotonic() - began_at < 0.5:
        assert fake_registry.count("blob") <= before + 1
