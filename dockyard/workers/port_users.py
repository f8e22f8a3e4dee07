"""Which process listens on a TCP port of this machine, as far as the kernel tells this user. Blocking."""

import os
from pathlib import Path

from dockyard.config.access import describe_user

PROC = Path("/proc")

_LISTENING = "0A"
_LOCAL_ADDRESS, _STATE, _USER, _INODE = 1, 3, 7, 9


def describe_port_user(port: int, proc: Path = PROC) -> str:
    """`process 123 (nginx)`, else `a process of uid 0 (root)`, else `another program`.

    Only root may see which sockets a process of another user has.
    """
    sockets = _find_listening(port, proc)
    links = {f"socket:[{inode}]" for inode in sockets}
    for process in proc.glob("[0-9]*"):
        if links and not links.isdisjoint(_open_files(process)):
            return f"process {process.name} ({_name(process)})"
    for uid in sockets.values():
        return f"a process of {describe_user(uid)}"
    return "another program"  # perhaps in another container on the network of this machine


def is_listening(pid: int, port: int, proc: Path = PROC) -> bool | None:
    """Whether a process listens on a TCP port; None if this user may not see its sockets."""
    files = _open_files(proc / str(pid))
    return any(f"socket:[{inode}]" in files for inode in _find_listening(port, proc)) if files else None


def _find_listening(port: int, proc: Path) -> dict[str, int]:
    """The sockets that listen on a port: the user by inode (proc(5), /proc/net/tcp)."""
    found = {}
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "self" / "net" / table).read_text().splitlines()[1:]
        except OSError:  # without IPv6
            continue
        for fields in map(str.split, lines):
            if fields[_STATE] == _LISTENING and int(fields[_LOCAL_ADDRESS].rpartition(":")[2], 16) == port:
                found[fields[_INODE]] = int(fields[_USER])
    return found


def _open_files(process: Path) -> set[str]:
    found = set()
    try:
        for descriptor in (process / "fd").iterdir():
            found.add(os.readlink(descriptor))
    except OSError:  # of another user, or it has ended
        pass
    return found


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "ended meanwhile"
