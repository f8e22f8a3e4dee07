"""Network namespaces of this machine, with links of limited rate between them; needs root.

Each machine of a fleet is a namespace with one interface, which a link connects to a switch: another namespace with a
bridge. Switches are connected by links too. All machines are in one IPv4 network. The namespaces have no names: they
exist as long as this process has them open or a process runs in them, so that none is left when this process is killed.

A thread that has entered a namespace opens its sockets there, and starts its programs and threads there.
"""

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from tests.support.processes import SetupError

CLONE_NEWNET = 0x40000000  # sched.h
ADDRESSES = "10.77.{}.{}"  # of an IPv4 network with 16 bits for machines
COMMAND_TIMEOUT_S = 60.0
# Of a link, so that a packet of 64 KiB (segmentation offload) is not divided by the limit of the rate.
BURST_BYTES = 96 * 1024
MIN_QUEUE_BYTES = 1024 * 1024
QUEUE_S = 0.1
NETEM_PACKETS = 10_000

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace with its loopback interface."""

    def __init__(self) -> None:
        self._descriptor = -1
        problem: list[OSError] = []

        def make() -> None:  # in a thread that ends there
            try:
                _check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
                self._descriptor = _open_own()
            except OSError as exc:
                problem.append(exc)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if problem:
            raise SetupError(f"cannot make a network namespace, which needs root: {problem[0]}")
        with self.entered(), contextlib.suppress(OSError):  # it is optional, and may be read-only
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        with self.entered(), contextlib.suppress(OSError):
            # Every kernel has it, and its connections share a link about equally; those of BBR do not.
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text("reno")

    @property
    def path(self) -> str:
        """Its path for other processes, while this process has it open."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def enter(self) -> None:
        """Move this thread there for good: for threads of a pool."""
        _check(_libc.setns(self._descriptor, CLONE_NEWNET), "setns")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread there for the block."""
        before = _open_own()
        try:
            self.enter()
            try:
                yield
            finally:
                _check(_libc.setns(before, CLONE_NEWNET), "setns")
        finally:
            os.close(before)

    def run(self, program: str, commands: Sequence[str]) -> None:
        """Run commands of `ip` or `tc` there. Raises SetupError."""
        with self.entered():
            run_batch(program, commands)

    def counters(self) -> dict[str, tuple[int, int]]:
        """The bytes that each interface has received and sent."""
        with self.entered():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        rows = {name.strip(): values.split() for name, _, values in (line.partition(":") for line in lines)}
        return {name: (int(values[0]), int(values[8])) for name, values in rows.items()}

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@attrs.frozen
class Traffic:
    """Bytes on a link, seen from the machine (of a link between switches: from the lower one)."""

    sent: int
    received: int

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.sent - other.sent, self.received - other.received)

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.sent + other.sent, self.received + other.received)


@attrs.frozen
class Machine:
    """A namespace with an address."""

    name: str
    address: str
    namespace: Namespace


class Network:
    """Switches, machines and links. Rates are in bits per second in each direction, 0 is no limit.

    `delay_s` is added to each packet at each end of a link of a machine, which needs netem in the kernel.
    """

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        self._qdisc = ""  # found out when the first rate is limited
        self._switches: dict[str, Namespace] = {}
        self._machines: dict[str, Machine] = {}
        self._ports: dict[str, tuple[Namespace, str]] = {}  # of each link: the end at its upper switch

    def close(self) -> None:
        for namespace in (*self._switches.values(), *(each.namespace for each in self._machines.values())):
            namespace.close()

    def add_switch(self, name: str, *, above: str = "", rate: float = 0.0) -> None:
        """Add a switch; `above` is the one that it is connected to, by a link of this name and rate."""
        switch = self._switches[name] = Namespace()
        switch.run("ip", ["link set lo up", "link add bridge type bridge", "link set bridge up"])
        if above:
            port = self._add_link(name, self._switches[above], switch, rate)
            switch.run("ip", [f"link set {port} master bridge up"])

    def add_machine(self, name: str, switch: str, *, rate: float = 0.0) -> Machine:
        """Add a machine; the link to its switch has its name."""
        number = len(self._machines) + 1
        machine = Machine(name, ADDRESSES.format(number // 250, number % 250 + 1), Namespace())
        self._machines[name] = machine
        port = self._add_link(name, self._switches[switch], machine.namespace, rate)
        machine.namespace.run(
            "ip", ["link set lo up", f"addr add {machine.address}/16 dev {port}", f"link set {port} up"]
        )
        return machine

    def traffic(self) -> dict[str, Traffic]:
        """What each link has carried so far, with the headers of its packets."""
        counters = {id(switch): switch.counters() for switch in self._switches.values()}
        return {name: Traffic(*counters[id(switch)][port]) for name, (switch, port) in self._ports.items()}

    def _add_link(self, name: str, upper: Namespace, lower: Namespace, rate: float) -> str:
        """Connect two namespaces; return the name of the interfaces at both ends."""
        port = f"link{len(self._ports)}"
        upper.run(
            "ip",
            [
                f"link add {port} type veth peer name {port} netns {lower.path}",
                f"link set {port} master bridge up",
            ],
        )
        if commands := self._limit(port, rate):
            upper.run("tc", commands)
            lower.run("tc", commands)
        self._ports[name] = upper, port
        return port

    def _limit(self, port: str, rate: float) -> list[str]:
        """The commands of `tc` that limit what an interface sends."""
        if not rate and not self._delay_s:
            return []
        if not self._qdisc:
            self._qdisc = _find_qdisc(needs_delay=self._delay_s > 0)
        queue_bytes = max(MIN_QUEUE_BYTES, int(rate / 8 * QUEUE_S))
        match self._qdisc:
            case "netem":
                of_rate = f" rate {rate:.0f}bit" if rate else ""
                delay_us = self._delay_s * 1e6
                return [f"qdisc add dev {port} root netem limit {NETEM_PACKETS} delay {delay_us:.0f}us{of_rate}"]
            case "tbf":
                return [f"qdisc add dev {port} root tbf rate {rate:.0f}bit burst {BURST_BYTES} limit {queue_bytes}"]
        return [
            f"qdisc add dev {port} root handle 1: htb default 1",
            f"class add dev {port} parent 1: classid 1:1 htb rate {rate:.0f}bit burst {BURST_BYTES}",
            f"qdisc add dev {port} parent 1:1 bfifo limit {queue_bytes}",
        ]


def run_batch(program: str, commands: Sequence[str]) -> None:
    """Run commands of `ip` or `tc` in the namespace of this thread. Raises SetupError."""
    try:
        done = subprocess.run(
            [program, "-batch", "-"],
            input="\n".join(commands) + "\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as exc:
        raise SetupError(f"{program} is not on PATH (Debian package iproute2)") from exc
    if done.returncode:
        raise SetupError(f"{program} -batch failed: {done.stdout.strip()}; commands: {'; '.join(commands)}")


def _find_qdisc(*, needs_delay: bool) -> str:
    """The first queueing discipline of this kernel that limits rates, or that delays packets too."""
    tried = {
        "netem": "netem delay 1ms rate 1mbit",
        "tbf": "tbf rate 1mbit burst 100000 limit 100000",
        "htb": "htb default 1",
    }
    wanted = ["netem"] if needs_delay else ["tbf", "htb"]
    with contextlib.closing(Namespace()) as namespace:
        for name in wanted:
            with contextlib.suppress(SetupError):
                namespace.run("tc", [f"qdisc add dev lo root {tried[name]}"])
                return name
    if needs_delay:
        raise SetupError("this kernel has no netem (CONFIG_NET_SCH_NETEM), which delays packets: run without a delay")
    raise SetupError(
        "this kernel has neither tbf nor htb (CONFIG_NET_SCH_TBF, CONFIG_NET_SCH_HTB), which limit rates: "
        "run without limits"
    )


def _open_own() -> int:
    """Open the namespace of this thread."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
