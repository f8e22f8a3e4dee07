"""Which blobs the stored manifests of each repository name, found from their files. Blocking.

Each manifest is read once: a directory is listed again only when it has changed, and then only what is new in it is
read. All workers share the files, so a manifest that another worker has stored is found too. A large directory that
changes all the time is listed for at most a tenth of the time.

The index of a repository is made when it is first asked for. When all take more than MAX_INDEX_BYTES, those that were
not used for longest are dropped; one repository may take half of that, which is about 70,000 images. What does not fit
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

from dockyard.errors import BadUpstream
from dockyard.oci.manifest import MAX_MANIFEST_BYTES
from dockyard.oci.named_blobs import find_named_blobs
from dockyard.oci.reference import Digest, Name
from dockyard.oci.schema1 import find_payload
from dockyard.storage.digest_set import RECORD_BYTES, DigestSet

MAX_INDEX_BYTES = 48 * 1024 * 1024
REBUILD_INTERVAL_S = 600.0
# A directory may change once more without a new modification time: its resolution is up to 2 s on some file systems.
TIME_RESOLUTION_S = 2.0
MAX_LISTING_SHARE = 0.1
LARGE_DIRECTORY_FILES = 1000
# Reading manifests needs the interpreter, and so do the requests: it is left to them for half of the time. Without
# pauses they would wait for it 5 ms (sys.getswitchinterval) after each system call.
MAX_WORK_S = 0.0005
PAUSE_S = 0.0005
_FILE_NAME_BYTES = 160
_OBJECTS_BYTES = 1024
_ALGORITHMS = ("sha256", "sha512")
_ENCODED = re.compile(r"(?:[a-f0-9]{64}){1,2}", re.ASCII)

# The modification time and inode of each directory with manifests; None for one that does not exist.
_Stamps = tuple[tuple[int, int] | None, ...]


@attrs.define
class _Repository:
    """The index of one repository. `files` are the names of the manifests that were read. Times are monotonic."""

    built_at: float
    listed_at: float = float("-inf")
    current_until: float = float("-inf")
    stamps: _Stamps = ()
    is_one_deleted: bool = False
    files: set[str] = attrs.field(factory=set)
    blobs: DigestSet = attrs.field(factory=DigestSet)
    counted_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        return _FILE_NAME_BYTES * len(self.files) + RECORD_BYTES * len(self.blobs) + _OBJECTS_BYTES

    def must_be_rebuilt(self, now: float) -> bool:
        """Whether it has links of manifests that were deleted, and may be made anew."""
        return self.is_one_deleted and now - self.built_at >= REBUILD_INTERVAL_S


class LinkIndex:
    """The links from repositories to the blobs that their stored manifests name.

    `directory_of(name, algorithm)` is the directory with the manifests of a repository, one in each file. For many
    threads, but one `refresh` of a repository at a time.
    """

    def __init__(self, directory_of: Callable[[Name, str], Path], max_bytes: int = MAX_INDEX_BYTES) -> None:
        self._directory_of = directory_of
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()
        self._stop = threading.Event()
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
        now, stamps = time.monotonic(), self._stamps(name)
        with self._mutex:
            if not any(stamps):
                self._drop(name)
                return True
            found = self._repositories.get(name)
            if found is None or found.must_be_rebuilt(now):
                return False
            self._repositories.move_to_end(name)
            return found.stamps == stamps or now < found.current_until

    def refresh(self, name: Name) -> None:
        """Find the manifests that were stored since the last time.

        A file that cannot be read, or is damaged, names nothing. Whoever requests the manifest causes a warning.
        """
        began_at, stamps = time.monotonic(), self._stamps(name)
        directories = {algorithm: str(self._directory_of(name, algorithm)) for algorithm in _ALGORITHMS}
        listed = {algorithm: _list(directory) for algorithm, directory in directories.items()}
        with self._mutex:
            repository = self._repositories.get(name) or _Repository(began_at)
        repository.is_one_deleted = not repository.files <= set().union(*listed.values())
        if repository.must_be_rebuilt(began_at):
            repository = _Repository(began_at)
        new = [(algorithm, file) for algorithm, files in listed.items() for file in files - repository.files]
        listing_s = time.monotonic() - began_at
        worked_from = time.monotonic()
        for algorithm, file in new:
            if time.monotonic() - worked_from > MAX_WORK_S:
                time.sleep(PAUSE_S)
                worked_from = time.monotonic()
            if repository.size_bytes > self._max_bytes // 2 or self._stop.is_set():
                break
            if _ENCODED.fullmatch(file) and _read_links(directories[algorithm], algorithm, file, repository.blobs):
                repository.files.add(file)
        repository.stamps = stamps if _are_old(stamps) else ()
        repository.listed_at = began_at
        if len(repository.files) > LARGE_DIRECTORY_FILES:
            repository.current_until = time.monotonic() + listing_s / MAX_LISTING_SHARE
        self._keep(name, repository)

    def close(self) -> None:
        """End a `refresh` that is in progress soon. Does not block."""
        self._stop.set()

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


def _list(directory: str) -> set[str]:
    try:
        return set(os.listdir(directory))
    except OSError:
        return set()


def _read_links(directory: str, algorithm: str, file: str, blobs: DigestSet) -> bool:
    """Add the blobs that a manifest names; False if it cannot be read or is damaged."""
    body = _read(f"{directory}/{file}")
    if body is None:
        return False
    digest = Digest(algorithm, file)
    is_damaged = Digest.of(body, algorithm) != digest
    if is_damaged and (payload := find_payload(body)) is not None:  # a signed schema 1 manifest
        is_damaged = Digest.of(payload, algorithm) != digest
    if is_damaged:
        return False
    try:
        for blob in find_named_blobs(body):
            blobs.add(blob.encoded)
    except BadUpstream:
        return False
    return True


def _read(path: str) -> bytes | None:
    """Read a file, without recording that as a use. Does not wait for the writer of a named pipe."""
    try:
        with open(path, "rb", buffering=0, opener=_open) as file:
            return file.read(MAX_MANIFEST_BYTES + 1)
    except OSError:
        return None


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOATIME)
    except PermissionError:  # the file belongs to another user
        return os.open(path, flags | os.O_NONBLOCK)
