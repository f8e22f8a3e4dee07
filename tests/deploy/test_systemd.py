"""The steps of ops/SYSTEMD.md, as they are written, in a minimal system that systemd-nspawn has booted.

pytest tests/deploy/test_systemd.py                                           Debian 13
DOCKYARD_SYSTEMS=bookworm,noble,trixie pytest tests/deploy/test_systemd.py    all that the page names
"""

import os
import random
import re
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import yaml

from ops.test_servers import cache_directory
from tests.deploy.test_pages import read
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import send_request
from tests.support.processes import SetupError, free_port, wait_until
from tests.support.programs import Programs, cannot_run
from tests.systems.booted_system import BootedSystem, CannotBoot, booted, install_systemd
from tests.systems.minimal_system import RELEASES, copied, make_base

pytestmark = pytest.mark.timeout(1500)

SYSTEMS = os.environ.get("DOCKYARD_SYSTEMS", "trixie").split(",")
INSTALL_LIMIT_S = 900.0
START_LIMIT_S = 60.0
UNIT = "dockyard"


def steps(section: str) -> list[str]:
    """The shell scripts in a section of the page."""
    page = read("ops/SYSTEMD.md")
    text = page.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def step_with(section: str, words: str) -> str:
    """The only script of a section with these words."""
    (found,) = [script for script in steps(section) if words in script]
    return found


@attrs.frozen
class Service:
    """Dockyard, installed in a booted system as the page says."""

    machine: BootedSystem
    upstream: FakeRegistry

    @property
    def root(self) -> Path:
        return self.machine.system.root

    def configure(self, port: int, **server: object) -> None:
        """Write the configuration file, with the fake registry as the upstream."""
        settings = {
            "server": {"host": "127.0.0.1", "port": str(port), **server},
            "upstreams": [{"prefix": "up.test", "registry": self.upstream.url, "auth": {"type": "anonymous"}}],
        }
        (self.root / "etc" / "dockyard" / "config.yaml").write_text(yaml.safe_dump(settings))

    def restart(self) -> None:
        self.machine.run("systemctl restart dockyard", limit_s=START_LIMIT_S)

    def state(self) -> str:
        return self.machine.show(UNIT, "ActiveState")

    def wait_until_serving(self, port: int) -> None:
        try:
            wait_until(lambda: is_serving(port), f"serving at {port}", START_LIMIT_S)
        except SetupError as exc:
            raise AssertionError("\n".join([str(exc), *self.machine.journal(UNIT)])) from exc

    def pull_blob(self, port: int, repo: str, directory: str) -> Path:
        """Pull a blob through the service, and return its file below a directory of the system."""
        image = self.upstream.add_image(repo, "v1", [f"a layer of {repo}".encode()])
        assert send_request(("127.0.0.1", port), f"/v2/up.test/{repo}/blobs/{image.layers[0]}").status == 200
        blobs = self.root / directory / "cache" / "blobs"
        found: list[Path] = []

        def is_stored() -> bool:
            found[:] = blobs.rglob(image.layers[0].partition(":")[2])
            return bool(found)

        wait_until(is_stored, f"stored below {blobs}", START_LIMIT_S)
        return found[0]


def is_serving(port: int) -> bool:
    """Whether a Dockyard responds at this port of the loopback address."""
    try:
        return send_request(("127.0.0.1", port), "/v2/").status == 200
    except OSError:
        return False


@pytest.fixture(scope="module", params=SYSTEMS)
def machine(
    request: pytest.FixtureRequest, programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedSystem]:
    """A minimal system with systemd in which nothing else is installed."""
    debootstrap = programs.need("debootstrap", as_root=True)
    programs.need("systemd-nspawn", as_root=True)
    base = make_base(RELEASES[request.param], cache_directory() / "systems", debootstrap)
    log = tmp_path_factory.mktemp("systemd") / "boot.log"
    with copied(base, "root") as system:
        install_systemd(system)
        try:
            with booted(system, log) as machine:
                yield machine
        except CannotBoot as exc:
            cannot_run(f"systemd-nspawn cannot boot a system here: {exc}")


@pytest.fixture(scope="module")
def service(machine: BootedSystem) -> Iterator[Service]:
    """Installed by the first script of the page, without any settings."""
    machine.run(steps("Install")[0], limit_s=INSTALL_LIMIT_S)
    with FakeRegistry() as upstream:
        yield Service(machine, upstream)


@pytest.fixture
def serve(service: Service) -> Callable[..., int]:
    """A function that starts the service with settings of its own, and returns its port."""

    def start(port: int = 0, **server: object) -> int:
        port = port or free_port()
        service.configure(port, **server)
        service.restart()
        service.wait_until_serving(port)
        return port

    return start


def test_the_steps_install_a_service_that_serves(service: Service, serve: Callable[..., int]) -> None:
    """It runs as its own user, is started at the boot, and a pull through it is stored below /var/cache."""
    assert service.machine.show(UNIT, "UnitFileState") == "enabled"
    port = serve()
    stored = service.pull_blob(port, "org/app", "var/cache/dockyard")
    owner = service.machine.run("id -u dockyard", limit_s=30).strip()
    assert str(stored.stat().st_uid) == owner != "0"


def test_the_steps_can_be_repeated(service: Service, serve: Callable[..., int]) -> None:
    """As an update does: settings stay, and the service runs again."""
    port = serve()
    config = service.root / "etc" / "dockyard" / "config.yaml"
    before, started = config.read_bytes(), service.machine.show(UNIT, "MainPID")
    service.machine.run(steps("Install")[0], limit_s=INSTALL_LIMIT_S)
    service.wait_until_serving(port)
    assert config.read_bytes() == before
    assert service.machine.show(UNIT, "MainPID") != started


def test_systemd_accepts_the_installed_unit(service: Service) -> None:
    """Systemd of this release knows every key, and every program of the unit exists in a minimal system."""
    assert service.machine.run("systemd-analyze verify dockyard.service", limit_s=60) == ""


def test_a_reload_replaces_the_workers(service: Service, serve: Callable[..., int]) -> None:
    """`systemctl reload` succeeds, in a system without /bin/kill, and all workers are new."""
    serve(workers=1)
    service.machine.run("systemctl reload dockyard", limit_s=START_LIMIT_S)
    wait_until(
        lambda: any("all workers have been replaced" in line for line in service.machine.journal(UNIT)),
        "reloaded",
        START_LIMIT_S,
    )
    assert service.state() == "active"


def test_wrong_settings_do_not_start_it_again(service: Service) -> None:
    """The journal names the key; the service has failed and stays so, until a start with right settings."""
    service.configure(free_port(), prot="1")
    service.restart()
    wait_until(lambda: service.state() == "failed", "failed", START_LIMIT_S)  # not "activating": no restart is due
    assert service.machine.show(UNIT, "ExecMainStatus") == "2"
    assert any("server.prot: unknown key" in line for line in service.machine.journal(UNIT))


def test_a_port_in_use_is_tried_again(service: Service) -> None:
    """The service is started again until the port is free."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        service.configure(port)
        service.restart()
        wait_until(lambda: service.machine.show(UNIT, "NRestarts") != "0", "started again", START_LIMIT_S)
        assert service.machine.show(UNIT, "ExecMainStatus") in {"0", "1"}  # 0: the next attempt has begun
    service.wait_until_serving(port)
    assert any("cannot start" in line and str(port) in line for line in service.machine.journal(UNIT))


def test_secrets_are_read_from_the_environment_file(service: Service, serve: Callable[..., int]) -> None:
    """Only root can read the file, and ${NAME} in the configuration is replaced."""
    service.machine.run(step_with("Configure", "touch /etc/dockyard/environment"), limit_s=30)
    file = service.root / "etc" / "dockyard" / "environment"
    status = file.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)
    port = free_port()
    file.write_text(f"CANARY_PORT={port}\n")
    try:
        service.configure(port)
        config = service.root / "etc" / "dockyard" / "config.yaml"
        config.write_text(config.read_text().replace(f"'{port}'", "'${CANARY_PORT}'"))
        service.restart()
        service.wait_until_serving(port)
    finally:
        file.unlink()


def test_a_port_below_1024(service: Service, serve: Callable[..., int]) -> None:
    """Without the drop-in of the page the service cannot use it, with it it can."""
    ports = range(600, 1024)
    port = next(port for port in random.sample(ports, len(ports)) if _is_free(port))  # not that of another run
    service.configure(port)
    service.restart()
    wait_until(lambda: service.machine.show(UNIT, "NRestarts") != "0", "started again", START_LIMIT_S)
    assert not is_serving(port)
    service.machine.run(step_with("Configure", "CAP_NET_BIND_SERVICE"), limit_s=START_LIMIT_S)
    try:
        service.wait_until_serving(port)
    finally:
        _remove_drop_ins(service)


def test_another_disk_for_the_cache(service: Service, serve: Callable[..., int]) -> None:
    """With the drop-in of the page the cache is in the other directory; a stop announces itself there."""
    port = serve()
    service.machine.run(step_with("Configure", "BindPaths"), limit_s=START_LIMIT_S)
    try:
        service.wait_until_serving(port)
        service.pull_blob(port, "org/disk", "srv/dockyard")
        service.machine.run("systemctl stop dockyard", limit_s=START_LIMIT_S)
        assert (service.root / "srv" / "dockyard" / "run" / "draining").exists()
        assert service.machine.show(UNIT, "Result") == "success"
    finally:
        _remove_drop_ins(service)


def test_the_steps_remove_everything(service: Service) -> None:
    """The last test of this system: unit, program, settings, cache and user are gone."""
    service.machine.run(steps("Remove")[0], limit_s=START_LIMIT_S)
    for path in ("etc/systemd/system/dockyard.service", "opt/dockyard", "etc/dockyard", "var/cache/dockyard"):
        assert not (service.root / path).exists(), path
    assert "dockyard" not in (service.root / "etc" / "passwd").read_text()
    assert service.machine.show(UNIT, "LoadState") == "not-found"


def _remove_drop_ins(service: Service) -> None:
    service.machine.run(
        "rm -r /etc/systemd/system/dockyard.service.d && systemctl daemon-reload", limit_s=START_LIMIT_S
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
