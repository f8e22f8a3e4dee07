r"""A fleet of one or two tiers in network namespaces of this machine, with links of limited rate.

    registry   bucket (MinIO)
        \      /
         region: HAProxy, replicas          one switch
        /      \
    zone-a     zone-b: HAProxy, replicas, nodes      a switch each, with a link to that of the region

The replicas of the region share the bucket and ask the registry. Those of a zone have their disks only, and ask the
balancer of the region. Without zones the nodes are in the region. Nodes ask the balancers of their zone, and those of
the region if these fail. All programs are real; HAProxy has the configuration of `ops/haproxy`.
"""

import contextlib
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.deploy.fleet import Balancer
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.servers import Minio
from tests.scenario.nodes import PARALLEL, Host, Node
from tests.support.deployment import upstream
from tests.support.distribution import DistributionRegistry, LoggedRequest
from tests.support.dockyard import Dockyard
from tests.support.images import PushedImage, push_layers
from tests.support.networks import Machine, Network, Traffic
from tests.support.paths import ROOT
from tests.support.processes import SetupError, wait_until
from tests.support.programs import find_program

PREFIX = "registry.test"  # of the upstream, in both tiers
REPOSITORY = "team/app"
PORT = 5000  # of balancers and replicas
REGION = "region"
HAPROXY_EXAMPLE = ROOT / "ops" / "haproxy" / "haproxy.cfg"
MAX_ZONES = len(string.ascii_lowercase)


@attrs.frozen
class Rates:
    """Bits per second of links, in each direction; 0 is no limit. `zone` is the link from a zone to the region."""

    registry: float = 0.0
    bucket: float = 0.0
    replica: float = 0.0
    balancer: float = 0.0
    zone: float = 0.0
    zone_replica: float = 0.0
    zone_balancer: float = 0.0
    node: float = 0.0


@attrs.frozen
class Shape:
    """The size of a fleet. Without zones it is flat: one tier. Numbers with `zone_` are those of each zone."""

    nodes: int = 12  # of all zones together
    replicas: int = 3
    balancers: int = 1
    zones: int = 0
    zone_replicas: int = 3
    zone_balancers: int = 1
    workers: int = 2  # of each replica
    parallel: int = PARALLEL  # blobs that a node downloads at the same time
    rates: Rates = Rates()
    delay_s: float = 0.0  # of each packet at each end of the link of a machine

    @property
    def zone_names(self) -> list[str]:
        return [f"zone-{letter}" for letter in string.ascii_lowercase[: self.zones]]


@attrs.define(eq=False)
class Replica:
    """A Dockyard on a machine of its own."""

    machine: Machine
    dockyard: Dockyard

    @property
    def name(self) -> str:
        return self.machine.name

    def start(self, *, wait: bool = True) -> None:
        with self.machine.namespace.entered():
            self.dockyard.start(wait=wait)

    def is_answering(self) -> bool:
        with self.machine.namespace.entered():
            return self.dockyard.is_answering()


@attrs.define(eq=False)
class RunningBalancer:
    """HAProxy on a machine of its own."""

    machine: Machine
    balancer: Balancer

    def start(self) -> None:
        with self.machine.namespace.entered():
            self.balancer.start()

    def wait_for(self, states: dict[str, str]) -> None:
        with self.machine.namespace.entered():
            self.balancer.wait_for(states)


@attrs.define(eq=False)
class Group:
    """The replicas and balancers of the region or of a zone."""

    name: str
    replicas: list[Replica] = attrs.Factory(list)
    balancers: list[RunningBalancer] = attrs.Factory(list)

    @property
    def hosts(self) -> list[Host]:
        """The addresses of the balancers."""
        return [(each.machine.address, PORT) for each in self.balancers]

    def start(self) -> None:
        """Start the replicas and the balancers, and wait until these use all replicas."""
        self.start_replicas()
        for balancer in self.balancers:
            balancer.start()

    def start_replicas(self) -> None:
        """Start the replicas that do not run, and wait until all answer."""
        for replica in self.replicas:
            if not replica.dockyard.is_running:
                replica.start(wait=False)
        for replica in self.replicas:
            wait_until(replica.is_answering, f"answering: {replica.name}")

    def wait_until_used(self) -> None:
        """Wait until the balancers use all replicas."""
        for balancer in self.balancers:
            balancer.wait_for({f"dockyard-{number + 1}": "UP" for number in range(len(self.replicas))})

    def kill_replicas(self) -> None:
        for replica in self.replicas:
            replica.dockyard.kill()

    def kill(self) -> None:
        """Kill the balancers and the replicas."""
        for balancer in self.balancers:
            balancer.balancer.close()
        self.kill_replicas()

    def restart(self, replica: Replica) -> None:
        """Restart a replica as preStop and ExecStop do: it becomes not ready, is drained, stopped, and started."""
        name = f"dockyard-{self.replicas.index(replica) + 1}"
        (replica.dockyard.storage / "run" / "draining").touch()
        for balancer in self.balancers:
            balancer.wait_for({name: "DOWN"})
        replica.dockyard.stop()
        replica.start()
        for balancer in self.balancers:
            balancer.wait_for({name: "UP"})


@attrs.frozen
class UpstreamRequests:
    """What the registry has answered: GETs of each layer or configuration and their bytes, and other requests.

    A response that was cut because the registry was killed is not counted.
    """

    blob_gets: dict[str, int]
    blob_bytes: dict[str, int]
    manifest_gets: int
    heads: int
    sent: int

    @property
    def max_blob_gets(self) -> int:
        return max(self.blob_gets.values(), default=0)


class Layout:
    """The running fleet. Make it with `open_layout`."""

    def __init__(self, shape: Shape, directory: Path, find: Callable[[str], Path]) -> None:
        self.shape = shape
        self._directory = directory
        self._find = find
        self._stack = contextlib.ExitStack()
        self._network = Network(delay_s=shape.delay_s)
        self._stack.callback(self._network.close)
        self._stack.callback(self._close_nodes)  # after the processes, whose end they notice
        self.groups: list[Group] = []
        self.nodes: list[Node] = []

    @property
    def region(self) -> Group:
        return self.groups[0]

    @property
    def zones(self) -> list[Group]:
        return self.groups[1:]

    def nodes_of(self, group: Group) -> list[Node]:
        """The nodes whose first host is a balancer of this group."""
        return [node for node in self.nodes if node.hosts[0] in group.hosts]

    def start(self) -> None:
        """Lay out the network and start all programs, with the settings of ops/TIERS.md. Raises SetupError."""
        rates = self.shape.rates
        self._network.add_switch(REGION)
        self._add_registry(self._network.add_machine("registry", REGION, rate=rates.registry))
        self._add_bucket(self._network.add_machine("bucket", REGION, rate=rates.bucket))
        self._add_group(
            REGION, f"http://{self.registry_address}", {"storage": self._storage, "upstream": {"check_timeout": "5s"}}
        )
        for number, name in enumerate(self.shape.zone_names):
            self._network.add_switch(name, above=REGION, rate=rates.zone)
            host, port = _rotated(self.region.hosts, number)[0]
            self._add_group(name, f"http://{host}:{port}/{PREFIX}", {"upstream": {"check_timeout": "7s"}})
        for group in self.groups:  # all at once
            for replica in group.replicas:
                replica.start(wait=False)
        for group in self.groups:
            group.start()
        for number in range(self.shape.nodes):
            self._add_node(number)

    def close(self) -> None:
        """End all processes and delete their data."""
        for node in self.nodes:
            node.stop()
        self._stack.close()

    def push(self, tag: str, sizes: Sequence[int], *, repository: str = REPOSITORY) -> PushedImage:
        """Push a new image to the registry, with layers of these sizes in bytes."""
        with self._registry_machine.namespace.entered():
            return push_layers(self.registry, repository, f"{repository}:{tag}", sizes, tag=tag)

    def traffic(self) -> dict[str, Traffic]:
        """What each link has carried so far: those of machines, and those of zones."""
        return self._network.traffic()

    def clear_requests(self) -> None:
        """Count the requests to the registry from here."""
        with self._registry_machine.namespace.entered():
            self.registry.clear_requests()

    def requests(self) -> UpstreamRequests:
        """The requests that the registry has answered since `clear_requests`."""
        with self._registry_machine.namespace.entered():
            requests = [each for each in self.registry.requests() if each.status in {200, 206}]
        gets: Counter[str] = Counter()
        sent: Counter[str] = Counter()
        for each in requests:
            if _is_get_of(each, "/blobs/"):
                digest = each.path.rpartition("/")[2]
                gets[digest] += 1
                sent[digest] += each.sent
        return UpstreamRequests(
            blob_gets=dict(gets),
            blob_bytes=dict(sent),
            manifest_gets=sum(_is_get_of(each, "/manifests/") for each in requests),
            heads=sum(each.method == "HEAD" for each in requests),
            sent=sum(each.sent for each in requests if each.method == "GET"),
        )

    def start_registry(self) -> None:
        """Start the registry, after `registry.stop()`."""
        with self._registry_machine.namespace.entered():
            self.registry.start()

    @contextlib.contextmanager
    def stopped_registry(self) -> Iterator[None]:
        """Kill the registry, and start it again at the end of the block."""
        self.registry.stop()
        try:
            yield
        finally:
            self.start_registry()

    def audit_bucket(self) -> list[str]:
        """Read all objects of the bucket; return a line for each that does not match its key."""
        with self._bucket_machine.namespace.entered():
            return self._bucket_view.audit()

    def _add_registry(self, machine: Machine) -> None:
        directory = self._directory / "registry"
        directory.mkdir(parents=True)
        self._registry_machine = machine
        self.registry = DistributionRegistry(self._find("registry"), directory, listen="0.0.0.0")  # noqa: S104
        self.registry_address = f"{machine.address}:{self.registry.port}"
        self._stack.callback(self.registry.close)
        self.start_registry()

    def _add_bucket(self, machine: Machine) -> None:
        self._bucket_machine = machine
        minio = Minio(self._find("minio"), self._directory / "bucket", listen="0.0.0.0")  # noqa: S104
        self._stack.callback(minio.close)
        with machine.namespace.entered():
            minio.start()
            self._bucket_view = self._stack.enter_context(contextlib.closing(BucketView(minio)))
            self._bucket_view.make()
        self._storage = self._bucket_view.storage(f"{machine.address}:{minio.port}")

    def _add_group(self, name: str, registry: str, settings: Mapping[str, Any]) -> None:
        """Add the machines of a group with its programs, which are not started. `registry` is what its replicas ask."""
        shape, rates = self.shape, self.shape.rates
        is_region = name == REGION
        group = Group(name)
        self.groups.append(group)
        for number in range(shape.replicas if is_region else shape.zone_replicas):
            rate = rates.replica if is_region else rates.zone_replica
            machine = self._network.add_machine(f"{name}-replica-{number + 1}", name, rate=rate)
            dockyard = Dockyard(
                self._directory / machine.name,
                [upstream(PREFIX, registry)],
                workers=shape.workers,
                settings={"server": {"host": "0.0.0.0", "port": str(PORT)}, **settings},  # noqa: S104
            )
            dockyard.port = PORT
            self._stack.callback(dockyard.kill)
            group.replicas.append(Replica(machine, dockyard))
        servers = [f"{each.machine.address}:{PORT}" for each in group.replicas]
        for number in range(shape.balancers if is_region else shape.zone_balancers):
            rate = rates.balancer if is_region else rates.zone_balancer
            machine = self._network.add_machine(f"{name}-balancer-{number + 1}", name, rate=rate)
            directory = self._directory / machine.name
            directory.mkdir()
            bind = f"{machine.address}:{PORT}"
            balancer = Balancer(self._find("haproxy"), HAPROXY_EXAMPLE, directory, servers, bind)
            self._stack.callback(balancer.close)
            group.balancers.append(RunningBalancer(machine, balancer))

    def _add_node(self, number: int) -> None:
        """Add a node: the zones get one in turn, and each begins with another balancer."""
        places = self.zones or self.groups
        group = places[number % len(places)]
        turn = number // len(places)
        hosts = _rotated(group.hosts, turn)
        if group is not self.region:
            hosts += _rotated(self.region.hosts, turn)
        machine = self._network.add_machine(f"{group.name}-node-{turn + 1}", group.name, rate=self.shape.rates.node)
        self.nodes.append(Node(machine, hosts, parallel=self.shape.parallel))

    def _close_nodes(self) -> None:
        for node in self.nodes:
            node.close()


@contextlib.contextmanager
def open_layout(shape: Shape, directory: Path, find: Callable[[str], Path]) -> Iterator[Layout]:
    """Start a fleet; end all its processes and delete its data when the block ends. Raises SetupError.

    `find` returns the path of a program, as `require_program` does.
    """
    layout = Layout(shape, directory, find)
    try:
        layout.start()
        yield layout
    finally:
        layout.close()


def require_program(name: str) -> Path:
    """Find or build a program. Raises SetupError."""
    found = find_program(name)
    if "missing" in found:
        raise SetupError(found["missing"])
    return Path(found["path"])


def sizes_of(*images: PushedImage) -> dict[str, int]:
    """The sizes of the configurations and layers of images."""
    parts = [image.this_platform for image in images]
    return {blob.digest: blob.size for part in parts for blob in (part.config, *part.layers)}


def _is_get_of(request: LoggedRequest, part: str) -> bool:
    return request.method == "GET" and part in request.path


def _rotated(hosts: Sequence[Host], turn: int) -> list[Host]:
    first = turn % len(hosts)
    return [*hosts[first:], *hosts[:first]]
