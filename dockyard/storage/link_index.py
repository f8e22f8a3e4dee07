"""Which blobs the stored manifests of each repository name, found from their files. Blocking.

Each manifest is read once: a directory is listed again only when it has changed, and then only what is new in it is
read. All workers share the files, so a manifest that another worker has stored is found too.

The index of a repository is made when it is first asked for. When all take more than MAX_INDEX_BYTES, those that were
not used for longest are dropped; one repository may take half of that, which is about 100,000 images. What does not fit
is not found. A link to a blob stays for up to REBUILD_INTERVAL_S when its manifest was deleted, but not when all
manifests of the repository were.
"""

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import attrs

from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest, Name
from dockyard.storage.digest_set import RECORD_BYTES, DigestSet

MAX_INDEX_BYTES = 32 * 1024 * 1024
REBUILD_INTERVAL_S = 600.0
# A directory may change once more without a new modification time: its resolution is up to 2 s on some file systems.
TIME_RESOLUTION_S = 2.0
_OBJECTS_BYTES = 1024
_ALGORITHMS = ("sha256", "sha512")
_ENCODED = re.compile(r"(?:[a-f0-9]{64}){1,2}", re.ASCII)

# The modification time and inode of each directory with manifests; None for one that does not exist.
_Stamps = tuple[tuple[int, int] | None, ...]


@attrs.define
class _Repository:
    """The index of one repository. Times are on the monotonic clock."""

    built_at: float
    listed_at: float = float("-inf")
    stamps: _Stamps = ()
    is_one_deleted: bool = False
    counted_bytes: int = 0
    read: DigestSet = attrs.field(factory=DigestSet)
    blobs: DigestSet = attrs.field(factory=DigestSet)

    @property
    def size_bytes(self) -> int:
        return RECORD_BYTES * (len(self.read) + len(self.blobs)) + _OBJECTS_BYTES

    def must_be_rebuilt(self, now: float) -> bool:
        """Whether it has links of manifests that were deleted, and may be made anew."""
        return self.is_one_deleted and now - self.built_at >= REBUILD_INTERVAL_S


class LinkIndex:
    """The links from repositories to the blobs that their stored manifests name.

    `directory_of(name, algorithm)` is the directory with manifests; `read(name, digest)` reads one that is verified;
    None when it is absent or damaged. For many threads, but one `refresh` of a repository at a time.
    """

    def __init__(
        self,
        directory_of: Callable[[Name, str], Path],
        read: Callable[[Name, Digest], Manifest | None],
        max_bytes: int = MAX_INDEX_BYTES,
    ) -> None:
        self._directory_of = directory_of
        self._read = read
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()
        self._repositories: OrderedDict[Name, _Repository] = OrderedDict()
        self._size_bytes = 0

    def has(self, name: Name, digest: Digest) -> bool:
        """Whether a manifest that `refresh` has found names the blob. Does not block."""
        found = self._repositories.get(name)
        return found is not None and digest.encoded in found.blobs

    def listed_at(self, name: Name) -> float:
        """When the manifests of a repository were last listed, on the monotonic clock. Does not block."""
        found = self._repositories.get(name)
        return found.listed_at if found else float("-inf")

    def is_current(self, name: Name) -> bool:
        """Whether nothing has changed since the last `refresh`; also for a repository without manifests."""
        stamps = self._stamps(name)
        with self._mutex:
            if not any(stamps):
                self._drop(name)
                return True
            found = self._repositories.get(name)
            if found is None or found.stamps != stamps or found.must_be_rebuilt(time.monotonic()):
                return False
            self._repositories.move_to_end(name)
            return True

    def refresh(self, name: Name) -> None:
        """Find the manifests that were stored since the last time."""
        began_at, stamps = time.monotonic(), self._stamps(name)
        listed = {algorithm: _list(self._directory_of(name, algorithm)) for algorithm in _ALGORITHMS}
        with self._mutex:
            repository = self._repositories.get(name) or _Repository(began_at)
        new = [
            Digest(algorithm, encoded)
            for algorithm, files in listed.items()
            for encoded in files
            if encoded not in repository.read
        ]
        stored_files = sum(map(len, listed.values()))
        repository.is_one_deleted = stored_files - len(new) < len(repository.read)
        if repository.must_be_rebuilt(began_at):
            repository = _Repository(began_at)
            new = [Digest(algorithm, encoded) for algorithm, files in listed.items() for encoded in files]
        for digest in new:
            if repository.size_bytes > self._max_bytes // 2:
                break
            if manifest := self._read(name, digest):
                for blob in manifest.named_blobs:
                    repository.blobs.add(blob.encoded)
                repository.read.add(digest.encoded)
        repository.stamps = stamps if _are_old(stamps) else ()
        repository.listed_at = began_at
        self._keep(name, repository)

    def _keep(self, name: Name, repository: _Repository) -> None:
        """Keep the index of a repository as the one that was used last, and drop others if all are too large."""
        with self._mutex:
            self._drop(name)
            repository.counted_bytes = repository.size_bytes
            self._repositories[name] = repository
            self._size_bytes += repository.counted_bytes
            while len(self._repositories) > 1 and self._size_bytes > self._max_bytes:
                self._drop(next(iter(self._repositories)))

    def _drop(self, name: Name) -> None:
        if dropped := self._repositories.pop(name, None):
            self._size_bytes -= dropped.counted_bytes

    def _stamps(self, name: Name) -> _Stamps:
        return tuple(_stamp(self._directory_of(name, algorithm)) for algorithm in _ALGORITHMS)


def _stamp(directory: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(directory)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _are_old(stamps: _Stamps) -> bool:
    """Whether no directory has changed so shortly ago that its next change may not be seen."""
    latest_ns = time.time_ns() - int(TIME_RESOLUTION_S * 1e9)
    return all(stamp is None or stamp[0] < latest_ns for stamp in stamps)


def _list(directory: Path) -> list[str]:
    """List the names of the files that may be manifests."""
    try:
        return [name for name in os.listdir(directory) if _ENCODED.fullmatch(name)]
    except OSError:
        return []
