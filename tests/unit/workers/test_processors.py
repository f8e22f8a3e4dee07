"""The number of workers follows the CPU quota and the memory limit of control groups."""

import os
from pathlib import Path

import pytest

from dockyard.workers.processors import count_processors, count_workers


@pytest.fixture(autouse=True)
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


def describe(tmp_path: Path, group: str, mount: str, files: dict[str, str]) -> Path:
    """Write the files of /proc/self and of the control groups. `{}` in `mount` is the mount point."""
    mountpoint = tmp_path / "cgroup"
    for name, content in files.items():
        path = mountpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "cgroup-of-process").write_text(group)
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(f"9:name=systemd:/\n{group}\n")
    (proc / "mountinfo").write_text(f"31 23 0:28 / / rw - ext4 /dev/sda rw\n{mount.format(mountpoint)}\n")
    return proc


V2 = "41 31 0:38 / {} rw,relatime shared:4 - cgroup2 cgroup2 rw"
V1_MEMORY = "33 31 0:30 / {} rw,relatime - cgroup cgroup rw,memory"
V1 = "32 31 0:29 / {} rw,relatime - cgroup cgroup rw,cpu,cpuacct"


@pytest.mark.parametrize(
    ("group", "mount", "files", "expected"),
    [
        ("0::/", V2, {"cpu.max": "50000 100000\n"}, 1),
        ("0::/", V2, {"cpu.max": "100000 100000\n"}, 1),
        ("0::/", V2, {"cpu.max": "250000 100000\n"}, 3),
        ("0::/", V2, {"cpu.max": "20000000 100000\n"}, 64),
        ("0::/", V2, {"cpu.max": "max 100000\n"}, 64),
        ("0::/", V2, {"cpu.max": ""}, 64),
        ("0::/", V2, {"other": ""}, 64),
        ("0::/pod/container", V2, {"pod/container/cpu.max": "max 100000\n", "pod/cpu.max": "150000 100000\n"}, 2),
        ("0::/pod/container", V2, {"pod/container/cpu.max": "50000 100000\n", "pod/cpu.max": "400000 100000"}, 1),
        ("0::/pod", V2.replace(" / {}", " /pod {}"), {"cpu.max": "300000 100000"}, 3),
        ("0::/../other", V2, {"cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/", V1, {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}, 1),
        (
            "4:cpu,cpuacct:/docker/1",
            V1,
            {"docker/1/cpu.cfs_quota_us": "450000", "docker/1/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("4:cpu,cpuacct:/docker/1", V1, {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/", V1, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 64),
        ("4:cpu,cpuacct:/", V1, {"cpu.cfs_quota_us": "1", "cpu.cfs_period_us": "0"}, 64),
        ("4:cpuacct:/", V1, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_quota_counts_rounded_up(
    tmp_path: Path, group: str, mount: str, files: dict[str, str], expected: int
) -> None:
    """The smallest of all groups that the process belongs to; in a container, its own group is the root."""
    assert count_processors(describe(tmp_path, group, mount, files)) == expected


@pytest.mark.parametrize(
    ("group", "mount", "files", "expected"),
    [
        ("0::/", V2, {"memory.max": "134217728\n"}, 1),
        ("0::/", V2, {"memory.max": "1000000\n"}, 1),
        ("0::/", V2, {"memory.max": "1073741824\n"}, 8),
        ("0::/", V2, {"memory.max": "max\n"}, 64),
        ("0::/", V2, {"memory.max": ""}, 64),
        ("0::/", V2, {"memory.max": "1099511627776\n"}, 64),
        ("0::/", V2, {"memory.max": "1073741824\n", "cpu.max": "250000 100000\n"}, 3),
        ("0::/pod/container", V2, {"pod/container/memory.max": "max\n", "pod/memory.max": "536870912\n"}, 4),
        ("4:memory:/", V1_MEMORY, {"memory.limit_in_bytes": "536870912\n"}, 4),
        ("4:memory:/", V1_MEMORY, {"memory.limit_in_bytes": "9223372036854771712\n"}, 64),
        ("4:memory:/docker/1", V1_MEMORY, {"docker/1/memory.limit_in_bytes": "268435456\n"}, 2),
    ],
)
def test_a_memory_limit_has_room_for_each_worker(
    tmp_path: Path, group: str, mount: str, files: dict[str, str], expected: int
) -> None:
    """On 64 processors, a container with 1 GiB starts eight workers: 64 would be killed by the kernel."""
    assert count_workers(describe(tmp_path, group, mount, files)) == expected


def test_the_affinity_mask_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is no /proc."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7})
    assert count_processors(tmp_path) == 2
    assert count_processors(describe(tmp_path, "0::/", V2, {"cpu.max": "300000 100000"})) == 2
