"""Each client, pointed at Dockyard in each way, in each state: nothing goes past Dockyard but where the page says so.

pytest tests/clients/test_matrix.py                         one of the fronts for each way
pytest tests/clients/test_matrix.py -m "long or not long"   all fronts for all ways
... --write-matrix                                          write what was seen into ops/CLIENT_MATRIX.md
"""

import contextlib
import http.client
import re
import secrets
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import attrs
import pytest

from tests.clients.matrix_page import FRONTS, VERSION, read_rows, record
from tests.clients.ways import ROWS, SLOTS, Front, Row, Way
from tests.deploy.fleet import EXAMPLES, Balancer, write_nginx_config
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.direct_registry import DirectRegistry
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import ClientError
from tests.support.images import PushedImage
from tests.support.paths import ROOT
from tests.support.processes import Process, free_port, wait_until
from tests.support.programs import Programs

pytestmark = pytest.mark.clients

OPS = ROOT / "ops"
NOWHERE = Front("nowhere", "http", "127.0.0.1:9")  # a Dockyard that is down: connections are refused


@attrs.define
class Fronts:
    """What clients connect to; each is started when it is first needed."""

    programs: Programs
    registry: DistributionRegistry
    direct: DirectRegistry
    directory: Path
    started: dict[str, Front] = attrs.field(factory=dict)
    _stops: list[Callable[[], object]] = attrs.field(factory=list)

    def get(self, name: str) -> Front:
        """Return a front that answers."""
        if name not in self.started:
            start = {"HTTP": self._http, "TLS": self._tls, "HAProxy": self._haproxy, "nginx": self._nginx}[name]
            self.started[name] = start()
        return self.started[name]

    def close(self) -> None:
        for stop in reversed(self._stops):
            stop()

    def _http(self) -> Front:
        return Front("HTTP", "http", self._start_dockyard("http", {}).host)

    def _tls(self) -> Front:
        certificate, key = self.direct.write_certificate(self.directory)
        tls = {"server": {"tls": True, "certfile": str(certificate), "keyfile": str(key)}}
        return Front("TLS", "https", self._start_dockyard("tls", tls).host)

    def _haproxy(self) -> Front:
        haproxy = self.programs.need("haproxy")
        (directory := self.directory / "haproxy").mkdir()
        replica = self._start_dockyard("behind-haproxy", {})
        balancer = Balancer(haproxy, OPS / "haproxy" / "haproxy.cfg", directory, [replica.host] * len(EXAMPLES))
        self._stops.append(balancer.close)
        balancer.start()
        return Front("HAProxy", "http", f"127.0.0.1:{balancer.port}")

    def _nginx(self) -> Front:
        program = self.programs.need("nginx")
        (directory := self.directory / "nginx").mkdir()
        replica, port = self._start_dockyard("behind-nginx", {}), free_port()
        config = write_nginx_config(OPS, directory, port)
        text = config.read_text()
        for example in EXAMPLES:
            text = text.replace(example, replica.host)
        config.write_text(text)
        front = Dockyard(directory, [])  # only to ask whether it answers
        front.port = port
        nginx = Process.start(
            [program, "-p", directory, "-c", config, "-g", "daemon off;"],
            log=directory / "nginx.log",
        )
        self._stops.append(nginx.end_all)
        nginx.wait_until(front.is_answering, "answering")
        return Front("nginx", "http", front.host)

    def _start_dockyard(self, name: str, settings: dict[str, object]) -> Dockyard:
        dockyard = Dockyard(self.directory / name, [docker_hub(self.registry)], settings=settings)
        block = running(dockyard)
        block.__enter__()
        self._stops.append(lambda: block.__exit__(None, None, None))
        return dockyard


@pytest.fixture(scope="module")
def fronts(
    programs: Programs,
    registry: DistributionRegistry,
    direct: DirectRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fronts]:
    """Dockyards, with the registry as Docker Hub, and balancers."""
    fronts = Fronts(programs, registry, direct, tmp_path_factory.mktemp("fronts"))
    try:
        yield fronts
    finally:
        fronts.close()


def cases() -> Iterator[object]:
    """Each row with each front; by default one front of each row, and all fronts over the rows.

    Skopeo has the library of Podman, and `ctr --local` the code of CRI: they are long tests.
    """
    for number, row in enumerate(ROWS):
        for position, front in enumerate(FRONTS):
            is_short = position == number % len(FRONTS) and row.client not in {"Skopeo", "containerd 2, ctr --local"}
            marks = () if is_short else (pytest.mark.long,)
            yield pytest.param(row, front, id=re.sub(r"[^\w.]+", "-", f"{row.key} {front}"), marks=marks)


@attrs.frozen
class Counts:
    """What reaches the registry: through Dockyard, and past it."""

    registry: DistributionRegistry
    direct: DirectRegistry

    def clear(self) -> None:
        self.registry.clear_requests()
        self.direct.clear()

    def past(self) -> list[str]:
        """The requests that did not go through Dockyard."""
        return [str(request) for request in self.direct.requests()]

    def fetched(self) -> Counter[str]:
        """The blobs, by their digests, that were read from the registry through Dockyard, and how often."""
        requests = [each for each in self.registry.requests() if each.method == "GET" and "/blobs/" in each.path]
        return Counter(each.path.rpartition("/")[2] for each in requests)

    def read(self) -> list[str]:
        """The blobs and manifests that were read from the registry through Dockyard by their digests."""
        requests = [each for each in self.registry.requests() if each.method == "GET" and each.status == 200]
        return [str(each) for each in requests if each.path.rpartition("/")[2].startswith("sha256:")]


@pytest.mark.parametrize(("row", "front_name"), [*cases()])
def test_a_client_pulls_through_dockyard(
    row: Row,
    front_name: str,
    fronts: Fronts,
    programs: Programs,
    registry: DistributionRegistry,
    direct: DirectRegistry,
    request: pytest.FixtureRequest,
) -> None:
    """Cold, warm, four at once, a wrong tag, the registry down, and Dockyard down."""
    counts = Counts(registry, direct)
    front = fronts.get(front_name)
    wait_until(lambda: status_of_unknown_image(front) == 404, "asking the registry again after the last test")
    way = row.make(request, front)
    way.wipe()
    seen = {}
    try:
        image = way.push(registry, 0, secrets.token_hex(4))
        seen["cold"] = pull_cold(way, [image], counts)
        way.wipe()
        seen["warm"] = pull_warm(way, image, counts)
        way.wipe()
        common = secrets.token_hex(4)
        seen["four at once"] = pull_cold(way, [way.push(registry, number, common) for number in range(SLOTS)], counts)
        way.wipe()
        seen["wrong tag"] = pull_wrong_tag(way, image, counts)
        with registry.stopped():
            seen["registry down"] = pull_warm(way, image, counts)
        way.wipe()
        way = row.make(request, NOWHERE)
        way.wipe()
        with direct.answering(registry):
            seen["Dockyard down"] = pull_without_dockyard(way, image, counts)
    finally:
        way.wipe()
    if row.form != "open":
        assert "registry" not in " ".join(seen.values())
    seen[front_name] = "right"
    if request.config.getoption("--write-matrix"):
        record(row.key, seen | {VERSION: ", ".join(programs.version(program) for program in row.programs)})
    expected = read_rows().get(row.key, {})
    assert {cell: expected.get(cell) for cell in seen} == seen, "pytest --write-matrix updates the page"


ONLY_BY_NAME = [row for row in ROWS if all(each.form == "by name" for each in ROWS if each.client == row.client)]


@pytest.mark.parametrize("row", ONLY_BY_NAME, ids=lambda row: row.client.replace(" ", "-"))
def test_what_goes_past_dockyard_is_counted(row: Row, direct: DirectRegistry, request: pytest.FixtureRequest) -> None:
    """Of clients that are only pointed at Dockyard by name; the open ways of others show it in two columns."""
    way = row.make(request, Front("another", "https", "registry.example.test"))
    direct.clear()
    with pytest.raises(ClientError):
        way.pull("library/unknown:latest", 0)
    assert {each.host for each in direct.requests()} == {"registry.example.test"}


def status_of_unknown_image(front: Front) -> int:
    """The status for an image that the registry does not have: not 404 while Dockyard does not ask the registry."""
    context = ssl._create_unverified_context()  # noqa: S323  it is a server of the test
    kind = partial(http.client.HTTPSConnection, context=context) if front.has_tls else http.client.HTTPConnection
    with contextlib.closing(kind(front.host, timeout=EVENT_TIMEOUT_S)) as connection:
        connection.request("HEAD", f"/v2/docker.io/library/unknown-{secrets.token_hex(4)}/manifests/latest")
        return int(connection.getresponse().status)


def pull_cold(way: Way, images: list[PushedImage], counts: Counts) -> str:
    """Pull images at once that nobody has pulled: all are right, each blob is fetched once, and nothing goes past."""
    counts.clear()
    with ThreadPoolExecutor(len(images)) as threads:
        pulls = [threads.submit(way.pull, f"{image.repository}:{image.tag}", slot) for slot, image in enumerate(images)]
    for image, pulled in zip(images, pulls, strict=True):
        assert way.expected(image) <= pulled.result()
    fetched = counts.fetched()
    needed = {digest for image in images for digest in way.expected(image) & image.blobs}
    assert needed <= fetched.keys()
    assert {digest: times for digest, times in fetched.items() if times > 1} == {}
    assert counts.past() == []
    return "right"


def pull_warm(way: Way, image: PushedImage, counts: Counts) -> str:
    """Pull an image that another client has pulled: none of it is read from the registry."""
    counts.clear()
    assert way.expected(image) <= way.pull(f"{image.repository}:{image.tag}", 0)
    assert counts.read() == []
    assert counts.past() == []
    return "right"


def pull_wrong_tag(way: Way, image: PushedImage, counts: Counts) -> str:
    """Pull a tag that does not exist, while the registry itself cannot be reached."""
    counts.clear()
    with pytest.raises(ClientError):
        way.pull(f"{image.repository}:nosuch", 0)
    return "asks the registry" if counts.past() else "fails"


def pull_without_dockyard(way: Way, image: PushedImage, counts: Counts) -> str:
    """Pull an image while Dockyard does not answer."""
    counts.clear()
    try:
        pulled = way.pull(f"{image.repository}:{image.tag}", 0)
    except ClientError:
        assert counts.past() == []
        return "fails"
    assert way.expected(image) <= pulled
    assert counts.past() != []
    return "asks the registry"
