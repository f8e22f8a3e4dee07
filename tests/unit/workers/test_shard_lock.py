"""Shards are claimed by locks that end with their process."""

import subprocess
import sys
from pathlib import Path

import pytest

from dockyard.workers.shard_lock import AlreadyRunning, Lock, claim_shard

HOLD = """
import sys
from pathlib import Path
from dockyard.workers.shard_lock import Lock
Lock(Path(sys.argv[1]))
print("held", flush=True)
input()
"""


def test_each_claim_gets_another_shard(tmp_path: Path) -> None:
    """Two workers never own the same shard, and a third of two gets none."""
    claims = [claim_shard(tmp_path, 2) for _ in range(3)]
    assert [claim and claim[0] for claim in claims] == [0, 1, None]


def test_a_released_shard_is_free_again(tmp_path: Path) -> None:
    """The next worker can claim it."""
    claimed = claim_shard(tmp_path, 1)
    assert claimed is not None
    claimed[1].release()
    assert claim_shard(tmp_path, 1) is not None


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """A SIGKILL releases the lock; until then it contains the process id of the holder."""
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning) as caught:
            Lock(path)
        assert caught.value.pid == holder.pid
        holder.kill()
        holder.wait()
        Lock(path).release()
