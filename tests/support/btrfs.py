"""A disk that loses bytes: Btrfs in a file, whose checksums turn a changed byte into an error of each read of it."""

import contextlib
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.deployment import eventually
from tests.support.programs import Programs, cannot_run

SIZE_BYTES = 256 * 1024 * 1024
PAGE_BYTES = 4096


class BtrfsDisk:
    """A file system that is mounted at `directory`. Only for files whose bytes are random: they are found by them."""

    def __init__(self, image: Path, directory: Path) -> None:
        self.directory = directory
        self._image = image

    def break_page(self, file: Path, position: int) -> None:
        """Change the byte at `position` on the disk, and drop the file from the page cache: it cannot be read there."""
        start = position - position % PAGE_BYTES
        with file.open("rb") as opened:
            page = os.pread(opened.fileno(), PAGE_BYTES, start)

            def is_broken() -> bool:
                os.sync()
                with self._image.open("r+b") as image, mmap.mmap(image.fileno(), 0) as disk:
                    if (place := disk.find(page)) >= 0:
                        disk[place + position - start] ^= 1
                        disk.flush()
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not of a page that is in use
                try:
                    os.pread(opened.fileno(), 1, position)
                except OSError:
                    return True
                return False

            eventually(is_broken, f"{file} cannot be read at {position}")


@contextlib.contextmanager
def mounted(programs: Programs, mountpoint: Path) -> Iterator[BtrfsDisk]:
    """Make a disk and mount it. Without what that needs, the running test is skipped; on CI it fails."""
    mkfs = programs.need("mkfs.btrfs", as_root=True)
    mountpoint.mkdir(parents=True)
    image = mountpoint.with_suffix(".btrfs")
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    subprocess.run([mkfs, "--quiet", "--mixed", image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, mountpoint], capture_output=True, text=True, check=False)
    if mounted.returncode:
        cannot_run(f"cannot mount Btrfs: {mounted.stderr.strip()}")
    try:
        yield BtrfsDisk(image, mountpoint)
    finally:
        subprocess.run(["umount", "--lazy", mountpoint], check=True)
        image.unlink()
