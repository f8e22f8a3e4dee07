"""What the kernel reports about a worker: which process it is, and how much processor time it has used."""

from pathlib import Path

from dockyard.workers.shard_lock import lock_path


def find_worker(run: Path, shard: int) -> int | None:
    """The id of the process that has claimed a shard; None when there is none."""
    try:
        return int(lock_path(run, shard).read_text())
    except (OSError, ValueError):
        return None


def processor_ticks(pid: int) -> int:
    """Processor time of the main thread, which runs the event loop, in clock ticks; 0 when the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
