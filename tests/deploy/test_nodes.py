"""The systemd unit and the configuration files of nodes: read by the programs that they are for."""

import configparser
import re
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dockyard import exit_status
from dockyard.config.settings import ServerSettings
from tests.clients.conftest import containerd, docker, skopeo
from tests.deploy.commands import run
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import Containerd, DockerDaemon, Skopeo
from tests.support.images import push_index
from tests.support.processes import wait_until
from tests.support.programs import Programs

__all__ = ["containerd", "docker", "skopeo"]

EXAMPLE = "dockyard:5000"


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
    text = (ops / "nodes" / "containerd" / "certs.d" / host / "hosts.toml").read_text()
    assert text.count(EXAMPLE) == 1
    (certs / "hosts.toml").write_text(text.replace(EXAMPLE, dockyard.host))
    containerd.wipe()
    containerd.pull("docker.io/library/node:latest", "--hosts-dir", certs.parent)
    assert containerd.digest("docker.io/library/node:latest") == image.digest
    containerd.wipe()


def test_containerd_accepts_its_configuration(ops: Path, programs: Programs, tmp_path: Path) -> None:
    """`containerd config dump` reads the file; containerd 1 after the two changes that its comments describe."""
    text = (ops / "nodes" / "containerd" / "config.toml").read_text()
    program = programs.need("containerd")
    if re.search(r"\b1\.\d+\.\d+", run(program, "--version")):
        text = text.replace("version = 3", "version = 2").replace(
            "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"
        )
    file = tmp_path / "config.toml"
    file.write_text(text)
    output = tomllib.loads(run(program, "--config", file, "config", "dump"))
    (plugin,) = tomllib.loads(text)["plugins"]
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
        hosts = tomllib.loads((ops / "nodes" / "containerd" / "certs.d" / directory / "hosts.toml").read_text())
        assert document["mirrors"][host]["endpoint"] == list(hosts["host"])
    assert document.keys() == {"mirrors"}


@pytest.mark.clients
def test_docker_accepts_its_configuration(ops: Path, docker: DockerDaemon) -> None:
    """A running dockerd reloads it, and then has Dockyard as its mirror."""
    docker._config.write_text((ops / "nodes" / "docker" / "daemon.json").read_text())
    docker._process.send(signal.SIGHUP)
    wait_until(lambda: docker._mirrors() == [f"http://{EXAMPLE}/"], "configured with the mirror")
