"""Programs that tests start, and their ports."""

import socket
import subprocess
import sys

from tests.support.paths import ROOT
from tests.support.processes import PORTS_OF_A_PROCESS, _Ports, free_port

PRINT_PORTS = (
    "from tests.support.processes import free_port; print(*[free_port() for _ in range(500)], flush=True); input()"
)


def test_processes_are_given_different_ports() -> None:
    """Twice as many as each of them has reserved, while all run."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PRINT_PORTS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    given = [{free_port() for _ in range(500)}]
    for program in programs:
        assert program.stdout
        given.append({int(port) for port in program.stdout.readline().split()})
    for program in programs:
        program.communicate("\n")
    assert all(given)
    assert len(set.union(*given)) == sum(map(len, given))


def test_a_port_that_something_listens_on_is_not_given() -> None:
    """All others of a process are, each once."""
    ports = _Ports.reserve()
    given = [ports.find_free() for _ in range(PORTS_OF_A_PROCESS)]
    with socket.socket() as other:
        other.bind(("127.0.0.1", given[1]))
        again = [ports.find_free() for _ in range(len(set(given)) - 1)]
    ports.reservation.close()
    assert sorted(again) == sorted(set(given) - {given[1]})
