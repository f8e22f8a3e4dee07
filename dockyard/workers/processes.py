"""What the kernel tells of a worker from outside: which process it is, and whether it runs."""

from pathlib import Path

from dockyard.workers.shard_lock import lock_path


def find_worker(run: Path, shard: int) -> int | None:
    """The process that claimed a shard; None when none has."""
    try:
        return int(lock_path(run, shard).read_text())
    except (OSError, ValueError):
        return None


def processor_ticks(pid: int) -> int:
    """How long the event loop's thread, which is the first of its process, has run; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
