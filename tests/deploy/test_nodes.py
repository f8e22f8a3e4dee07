"""The systemd unit and the configuration files of nodes: read by the programs that they are for."""

import base64
import configparser
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dockyard import exit_status
from dockyard.config.settings import ServerSettings
from tests.clients.conftest import containerd, direct, docker, skopeo
from tests.deploy.commands import run
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import ClientError, Containerd, DockerDaemon, Skopeo
from tests.support.images import push_index
from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tests.support.programs import Programs

__all__ = ["containerd", "direct", "docker", "skopeo"]

EXAMPLE = "dockyard:5000"
CLOSED_EXAMPLE = "dockyard.example:5000"
LOGIN = "bm9kZTpQQVNTV09SRA=="  # node:PASSWORD


def test_systemd_accepts_the_unit(ops: Path, tmp_path: Path) -> None:
    """systemd-analyze finds no error, with a program that exists on this machine."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not on PATH (Debian package systemd)")
    text = (ops / "systemd" / "dockyard.service").read_text()
    assert text.count("/opt/dockyard/bin/dockyard server") == 1
    unit = tmp_path / "dockyard.service"
    unit.write_text(text.replace("/opt/dockyard/bin/dockyard server", f"{sys.executable} -m dockyard server"))
    output = run(analyze, "verify", "--man=no", unit)
    assert "dockyard.service" not in output, output


def read_unit(text: str) -> configparser.ConfigParser:
    """The sections of a unit; of a key that is there more than once, the last value."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    return unit


def test_the_unit_starts_again_but_not_with_wrong_settings(ops: Path) -> None:
    """Status 2 (settings) ends it; anything else is tried again for ever, not more often than every few seconds."""
    unit = read_unit((ops / "systemd" / "dockyard.service").read_text())
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["RestartPreventExitStatus"] == str(exit_status.USAGE)
    assert 5 <= int(unit["Service"]["RestartSec"]) <= 30
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_the_unit_gives_time_to_drain(ops: Path) -> None:
    """A stop makes the server not ready, waits, and has a timeout longer than the drain."""
    text = (ops / "systemd" / "dockyard.service").read_text()
    unit = read_unit(text)
    caches = re.search(r"^Environment=XDG_CACHE_HOME=(\S+)$", text, re.MULTILINE)
    stops = re.findall(r"^ExecStop=(.*)$", text, re.MULTILINE)
    assert caches is not None
    assert stops[0] == f"-/bin/touch {caches[1]}/{unit['Service']['CacheDirectory']}/run/draining"
    slept = int(stops[1].removeprefix("/bin/sleep "))
    assert slept + ServerSettings().drain_timeout < int(unit["Service"]["TimeoutStopSec"])


@pytest.fixture(scope="module")
def dockyard(registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockyard]:
    """A Dockyard; the registry is its upstream as Docker Hub."""
    with running(Dockyard(tmp_path_factory.mktemp("dockyard"), [docker_hub(registry)], workers=1)) as dockyard:
        yield dockyard


@pytest.mark.clients
@pytest.mark.parametrize("host", ["_default", "docker.io"])
def test_containerd_pulls_with_its_file(
    ops: Path, registry: DistributionRegistry, containerd: Containerd, dockyard: Dockyard, tmp_path: Path, host: str
) -> None:
    """With hosts.toml in certs.d, containerd pulls an image of Docker Hub through Dockyard."""
    image = push_index(registry, "library/node", seed="containerd's node")
    certs = tmp_path / "certs.d" / host
    certs.mkdir(parents=True)
    text = (ops / "nodes" / "containerd-1.6" / "certs.d" / host / "hosts.toml").read_text()
    assert text.count(EXAMPLE) == 1
    (certs / "hosts.toml").write_text(text.replace(EXAMPLE, dockyard.host))
    containerd.wipe()
    containerd.pull("docker.io/library/node:latest", "--hosts-dir", certs.parent)
    assert containerd.digest("docker.io/library/node:latest") == image.digest
    containerd.wipe()


@pytest.mark.parametrize(
    ("directory", "name", "plugin"),
    [
        ("containerd-1.6", "containerd", "io.containerd.grpc.v1.cri"),
        ("containerd-1.6", "containerd-2", "io.containerd.cri.v1.images"),
        ("containerd-2.2", "containerd-2", "io.containerd.cri.v1.images"),
    ],
)
def test_containerd_accepts_its_configuration(
    ops: Path, programs: Programs, directory: str, name: str, plugin: str
) -> None:
    """`containerd config dump` reads the file; containerd 2 also that for older versions."""
    program = programs.need(name)
    if not run(program, "--version").split()[2].lstrip("v").startswith("1."):
        plugin = "io.containerd.cri.v1.images"
    dumped = run(program, "--config", ops / "nodes" / directory / "config.toml", "config", "dump")
    output = tomllib.loads(dumped[dumped.index("version = ") :])  # without what it logs before
    assert output["plugins"][plugin]["registry"]["config_path"] == "/etc/containerd/certs.d"


@pytest.mark.clients
def test_skopeo_pulls_with_the_file_for_cri_o(
    ops: Path, registry: DistributionRegistry, skopeo: Skopeo, dockyard: Dockyard
) -> None:
    """The library that CRI-O and podman use reads registries.conf in skopeo, and pulls through the mirror."""
    image = push_index(registry, "library/node", seed="cri-o's node")
    text = (ops / "nodes" / "crio" / "registries.conf.d" / "dockyard.conf").read_text()
    tree = skopeo.pull("docker.io/library/node:latest", registries=text.replace(EXAMPLE, dockyard.host))
    assert tree.top == image.this_platform.digest


def test_the_file_for_k3s_has_the_mirrors_of_containerd(ops: Path) -> None:
    """k3s makes hosts.toml from it, and is not available here: its mirrors are the URLs of containerd's files."""
    document = yaml.safe_load((ops / "nodes" / "k3s" / "registries.yaml").read_text())
    for host, directory in {"docker.io": "docker.io", "*": "_default"}.items():
        hosts = tomllib.loads((ops / "nodes" / "containerd-1.6" / "certs.d" / directory / "hosts.toml").read_text())
        assert document["mirrors"][host]["endpoint"] == list(hosts["host"])
    assert document.keys() == {"mirrors"}


@pytest.mark.clients
def test_docker_accepts_its_configuration(ops: Path, docker: DockerDaemon) -> None:
    """A running dockerd reloads it, and then has Dockyard as its mirror."""
    docker._config.write_text((ops / "nodes" / "docker-classic" / "daemon.json").read_text())
    docker._process.send(signal.SIGHUP)
    wait_until(lambda: docker._mirrors() == [f"http://{EXAMPLE}/"], "configured with the mirror")


def by_another_name(registry: DistributionRegistry) -> str:
    """The address of the registry by a name that no upstream of the Dockyard has."""
    return f"localhost:{registry.port}"


def containerd_files(ops: Path, directory: Path, file: str, dockyard: Dockyard) -> Path:
    """A copy of certs.d with a file of ops/nodes in `_default`, for the Dockyard of the test, which has no TLS."""
    text = (ops / "nodes" / file / "certs.d" / "_default" / "hosts.toml").read_text()
    for example in (f"https://{CLOSED_EXAMPLE}", f"http://{EXAMPLE}"):
        text = text.replace(example, dockyard.url)
    assert dockyard.url in text
    certs = directory / "certs.d"
    (certs / "_default").mkdir(parents=True)
    (certs / "_default" / "hosts.toml").write_text(text)
    return certs


@pytest.mark.clients
@pytest.mark.parametrize(
    ("file", "is_closed"),
    [
        ("containerd-1.6", False),
        ("closed/containerd", True),
        ("closed/containerd-login", True),
        ("closed/docker-29", True),
        ("closed/docker-29-login", True),
    ],
)
def test_containerd_cannot_pull_past_dockyard_when_closed(
    ops: Path,
    registry: DistributionRegistry,
    containerd: Containerd,
    dockyard: Dockyard,
    tmp_path: Path,
    file: str,
    is_closed: bool,  # noqa: FBT001
) -> None:
    """Of an image that Dockyard does not have: open, containerd asks the registry itself; closed, the pull fails."""
    image = push_index(registry, "library/closed", seed="closed node")
    certs = containerd_files(ops, tmp_path, file, dockyard)
    containerd.wipe()
    containerd.pull("docker.io/library/closed:latest", "--hosts-dir", certs)
    assert containerd.digest("docker.io/library/closed:latest") == image.digest
    containerd.wipe()
    registry.clear_requests()
    past = f"{by_another_name(registry)}/library/closed:latest"
    if is_closed:
        with pytest.raises(ClientError, match="not found"):
            containerd.pull(past, "--hosts-dir", certs)
        assert registry.requests() == []
    else:
        containerd.pull(past, "--hosts-dir", certs)
        assert registry.requests() != []
    containerd.wipe()


@pytest.mark.clients
@pytest.mark.parametrize(("file", "status"), [("containerd-1.6", 1), ("closed/containerd", 0)])
def test_the_check_of_a_closed_node(
    ops: Path,
    registry: DistributionRegistry,
    containerd: Containerd,
    dockyard: Dockyard,
    tmp_path: Path,
    file: str,
    status: int,
) -> None:
    """It passes with the closed file and fails with the open one; without Dockyard nothing is known."""
    push_index(registry, "library/checked", seed="checked node")
    certs = containerd_files(ops, tmp_path, file, dockyard)
    pull = containerd.pull_command("--hosts-dir", certs)

    def check(allowed: str, denied: str) -> subprocess.CompletedProcess[str]:
        containerd.wipe()
        program = ops / "nodes" / "closed" / "check-closed"
        return subprocess.run(
            [program, allowed, denied, *pull], capture_output=True, text=True, timeout=EVENT_TIMEOUT_S, check=False
        )

    done = check("docker.io/library/checked:latest", f"{by_another_name(registry)}/library/checked:latest")
    assert done.returncode == status, done.stderr
    assert ("NOT CLOSED: " in done.stderr) == (status == 1)
    unknown = check("docker.io/library/nosuch:latest", f"{by_another_name(registry)}/library/checked:latest")
    assert unknown.returncode == 2
    assert "not known: docker.io/library/nosuch:latest could not be pulled" in unknown.stderr
    containerd.wipe()


def test_logins_in_the_files_are_the_example() -> None:
    """The text after `Basic` in the files is the user and the password that k3s has in clear."""
    nodes = ROOT / "ops" / "nodes" / "closed"
    login = yaml.safe_load((nodes / "k3s" / "registries.yaml").read_text())["configs"][CLOSED_EXAMPLE]["auth"]
    assert base64.b64decode(LOGIN).decode() == f"{login['username']}:{login['password']}"
    for runtime in ("containerd-login", "docker-29-login"):
        hosts = tomllib.loads((nodes / runtime / "certs.d" / "_default" / "hosts.toml").read_text())
        assert hosts == {
            "server": f"https://{CLOSED_EXAMPLE}",
            "header": {"Authorization": f"Basic {LOGIN}"},
            "host": {},
        }
    auths = json.loads((nodes / "crio" / "auth.json").read_text())
    assert auths == {"auths": {CLOSED_EXAMPLE: {"auth": LOGIN}}}


@pytest.mark.clients
def test_skopeo_cannot_pull_past_dockyard_when_closed(
    ops: Path, registry: DistributionRegistry, skopeo: Skopeo, dockyard: Dockyard
) -> None:
    """What Dockyard does not have is not pulled from the registry, and registries that are not listed are blocked.

    The control is the open file: its mirror is skipped.
    """
    image = push_index(registry, "library/closed", seed="closed skopeo")
    nodes = ops / "nodes"
    text = (nodes / "closed" / "crio" / "registries.conf.d" / "dockyard.conf").read_text()
    location = f'location = "{CLOSED_EXAMPLE}/'
    assert text.count(location) == 2
    closed = text.replace(location, f'insecure = true\nlocation = "{dockyard.host}/')
    assert skopeo.pull("docker.io/library/closed:latest", registries=closed).top == image.this_platform.digest
    for blocked in ("quay.io/library/closed", "registry.example.com/app"):
        with pytest.raises(ClientError, match="is blocked in"):
            skopeo.pull(f"{blocked}:latest", registries=closed)
    # ghcr.io is no upstream of this Dockyard; here its name is that of the registry
    registry.clear_requests()
    past = f"{by_another_name(registry)}/library/closed:latest"
    with pytest.raises(ClientError, match=r"not found|unknown"):
        skopeo.pull(past, registries=closed.replace('prefix = "ghcr.io"', f'prefix = "{by_another_name(registry)}"'))
    assert registry.requests() == []
    opened = (nodes / "crio" / "registries.conf.d" / "dockyard.conf").read_text().replace(EXAMPLE, dockyard.host)
    name = by_another_name(registry)
    names = f'prefix = "{name}"\ninsecure = true\nlocation = "{name}"'
    skopeo.pull(past, registries=opened.replace('prefix = "ghcr.io"\nlocation = "ghcr.io"', names))
    assert registry.requests() != []


def test_the_closed_files_for_k3s_name_the_server_of_containerd(ops: Path) -> None:
    """k3s makes hosts.toml from them, and is not available here: its only endpoint is the server of containerd."""
    closed = ops / "nodes" / "closed"
    hosts = tomllib.loads((closed / "containerd" / "certs.d" / "_default" / "hosts.toml").read_text())
    document = yaml.safe_load((closed / "k3s" / "registries.yaml").read_text())
    assert document["mirrors"] == {name: {"endpoint": [hosts["server"]]} for name in ("docker.io", "*")}
    assert yaml.safe_load((closed / "k3s" / "config.yaml").read_text()) == {"disable-default-registry-endpoint": True}
