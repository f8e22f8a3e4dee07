"""The local store: complete objects in a directory, one file for each, named by the object's key. Blocking.

A file is either complete or absent: it is written elsewhere in the directory, synced, and renamed. The access time of a
file is its last use, by which files are evicted (`file_times`).
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import attrs
import structlog

from dockyard import metrics
from dockyard.config.types import Verify
from dockyard.errors import DigestInvalid
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage import keys
from dockyard.storage.atomic_write import (
    TEMPORARY_SUFFIX,
    is_being_written,
    lock_directory,
    move_synced,
    sync_file,
    write_atomically,
)
from dockyard.storage.blob_files import BlobFiles
from dockyard.storage.directories import Directories
from dockyard.storage.disk_errors import describe_disk_error
from dockyard.storage.eviction import SizeCap
from dockyard.storage.file_times import age_of, record_use
from dockyard.storage.items import BlobItem, Item, ManifestItem, TagItem
from dockyard.storage.link_index import LinkIndex
from dockyard.storage.memory_budget import MemoryBudget
from dockyard.storage.partial_file import PartialFile
from dockyard.storage.stored_files import delete_if_unlocked
from dockyard.storage.touch_times import TouchTimes
from dockyard.storage.verified_files import VerifiedFiles, fingerprint

# A partial file that was not continued for so long is deleted.
MAX_PARTIAL_FILE_AGE_S = 86400.0
MAX_WRITE_ATTEMPTS = 3
MAX_MANIFESTS_READ = 100
# Manifests and lists are smaller. A file that is larger is damaged, and must not fill the memory.
MAX_OBJECT_BYTES = 16 * 1024 * 1024
_ERRORS_OF_ABSENT_FILES = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}

T = TypeVar("T")

log = structlog.get_logger()


@attrs.frozen
class Pointer:
    """The manifest that a tag points to, and when that was last checked (seconds since the epoch)."""

    digest: Digest
    checked_at: float


@attrs.frozen
class StoredList:
    """The bytes of a list, and when it was last checked (seconds since the epoch)."""

    body: bytes
    checked_at: float


class UnpublishedItems(Protocol):
    """The items that are still to be uploaded to the bucket."""

    def __contains__(self, item: Item, /) -> bool:
        """Whether the item is one of them."""

    def add(self, item: Item, /) -> None:
        """Add an item. Raises nothing."""

    def remove(self, item: Item, /) -> None:
        """Remove an item: it is evicted. Raises nothing."""


class LocalStore:
    """Blobs, manifests, tag pointers and lists under one directory.

    `max_size` (bytes, 0 = none) caps the disk space of everything. `verify` and `verified_files`: see `blob_files`; all
    workers share one table.

    All methods block. A disk error is logged and treated as a miss, or as a write that did not happen.
    """

    def __init__(
        self,
        directory: Path,
        prefix: str,
        max_size: int,
        verify: Verify = "start",
        verified_files: VerifiedFiles | None = None,
        unpublished: UnpublishedItems | None = None,
    ) -> None:
        self.directories = Directories(directory, prefix)
        self.size_cap = SizeCap(self.directories, max_size, self._forget)
        self.memory = MemoryBudget()
        self._prefix = prefix
        self._unpublished = unpublished
        self._verified_files = verified_files or VerifiedFiles()
        self.blobs = BlobFiles(
            self.directories.blobs,
            lambda digest: self._path(keys.blob_key(prefix, digest)),
            verify,
            self._verified_files,
        )
        self.links = LinkIndex(self._manifest_directory)
        self.touch_times = TouchTimes(
            lambda item: self._path(self.key(item)), self.directories.stamps, self._verified_files
        )

    # Blobs

    def claim_partial_file(self, digest: Digest) -> PartialFile | None:
        """Open and lock the partial file of a blob; None when another process is writing or verifying it.

        When no file can be created, the partial file is in memory.
        """
        try:
            if self._path(keys.blob_key(self._prefix, digest)).exists():  # to be verified, not to be evicted for that
                return self._claim(digest)
            return self._with_room(lambda: self._claim(digest))
        except OSError as exc:
            file = self._partial_path(digest)
            error = describe_disk_error(exc, file)
            log.warning("cannot create a partial file, serving without it", file=str(file), error=error)
            return PartialFile.in_memory(digest, self.memory)

    def open_partial_file(self, digest: Digest, inode: int) -> int | None:
        """Open the file that another worker writes, partial or already complete; None when it is neither.

        The caller closes the file descriptor.
        """
        for path in (self._partial_path(digest), self._path(keys.blob_key(self._prefix, digest))):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(fd).st_ino == inode:
                    return fd
                os.close(fd)
        return None

    def commit(self, partial_file: PartialFile, bucket_age_s: float = 0.0) -> bool:
        """Turn a verified partial file into a complete blob, and close it. False when it could not be stored.

        `bucket_age_s` is the age of the bucket's copy, for a blob that came from the bucket.
        """
        try:
            if not self._move_to_key(partial_file, bucket_age_s):
                partial_file.discard()
                return False
        finally:
            partial_file.close()
        return True

    def _move_to_key(self, partial_file: PartialFile, bucket_age_s: float) -> bool:
        path = self._path(keys.blob_key(self._prefix, partial_file.digest))
        source = partial_file.path
        if source is None or partial_file.is_overflowing:
            return False
        try:
            partial_file.remove_map()
            sync_file(partial_file.fd)
            with contextlib.suppress(OSError):  # the file system may not set times: that is no reason not to keep it
                os.utime(partial_file.fd, (time.time(), time.time() - bucket_age_s))
            before = fingerprint(os.fstat(partial_file.fd))

            def on_renamed(began_ns: int) -> None:
                if before[1] == partial_file.received_bytes:
                    self._verified_files.add_renamed(partial_file.digest, partial_file.fd, before, began_ns)

            self._with_room(lambda: move_synced(source, path, on_renamed), partial_file.received_bytes)
        except OSError as exc:
            error = describe_disk_error(exc, path)
            log.warning("cannot store a blob", file=str(path), error=error)
            return False
        return True

    # Manifests and tags

    def read_manifest(self, name: Name, digest: Digest) -> bytes | None:
        """Read the bytes of a manifest, not verified; None when it is absent."""
        return self._read(keys.manifest_key(self._prefix, name, digest))

    def read_media_type(self, name: Name, digest: Digest) -> str | None:
        """Read the media type that was stored with a manifest; None when it is absent."""
        found = self._read(keys.media_type_key(self._prefix, name, digest))
        return None if found is None else found.decode("latin-1")

    def write_manifest(
        self, name: Name, digest: Digest, body: bytes, media_type: str | None = None, *, bucket_age_s: float = 0.0
    ) -> None:
        """Store a verified manifest, with its media type if the body does not have that.

        The type is stored first: a process that reads the manifest finds the type. `bucket_age_s` is the age of the
        bucket's copy, for a manifest that came from the bucket.
        """
        key = keys.media_type_key(self._prefix, name, digest)
        if media_type is not None:
            self._write(key, media_type.encode("latin-1"))
        else:
            with contextlib.suppress(OSError):
                self._path(key).unlink()
        self._write(keys.manifest_key(self._prefix, name, digest), body, time.time() - bucket_age_s)

    def manifests_of(self, name: Name) -> Iterator[bytes]:
        """Read the manifests of a repository, the newest first, at most MAX_MANIFESTS_READ; they are not verified."""
        found = []
        for algorithm in ("sha256", "sha512"):
            directory = self._manifest_directory(name, algorithm)
            with contextlib.suppress(OSError):
                found += [(path.stat().st_mtime, path) for path in directory.iterdir()]
        for _, path in sorted(found, reverse=True)[:MAX_MANIFESTS_READ]:
            with contextlib.suppress(OSError):
                yield path.read_bytes()

    def read_pointer(self, name: Name, tag: Tag) -> Pointer | None:
        """Read the pointer of a tag; None when it is absent or unreadable."""
        path = self._path(keys.tag_key(self._prefix, name, tag))
        try:
            body, found = _read_file(path)
            return Pointer(Digest.parse(body.decode("ascii").strip()), found.st_mtime)
        except OSError as exc:
            _log_unless_absent("cannot read a tag pointer", tag, exc)
        except (ValueError, DigestInvalid) as exc:
            metrics.damaged_files.labels("pointer").inc()
            log.warning("a tag pointer is not a digest and is ignored", tag=str(tag), error=str(exc))
        return None

    def move_pointer(self, name: Name, tag: Tag, old: Pointer | None, new: Pointer) -> bool:
        """Point the tag at a manifest that is stored already; False when it has a pointer here that is not `old`.

        So a process that was delayed between its request to the upstream and this write cannot overwrite a pointer
        that another process has written meanwhile. `old` may be absent: it was evicted, or came from the bucket and
        could not be written.
        """
        key = keys.tag_key(self._prefix, name, tag)
        with lock_directory(self._path(key).parent):
            if self.read_pointer(name, tag) not in (None, old):
                return False
            self._write(key, str(new.digest).encode(), new.checked_at)
        return True

    def confirm_pointer(self, name: Name, tag: Tag) -> None:
        """Record that the pointer was checked now and is unchanged."""
        with contextlib.suppress(OSError):
            path = self._path(keys.tag_key(self._prefix, name, tag))
            os.utime(path, (path.stat().st_atime, time.time()))

    def key(self, item: Item) -> str:
        """Return the key of an item."""
        match item:
            case BlobItem(digest):
                return keys.blob_key(self._prefix, digest)
            case ManifestItem(name, digest):
                return keys.manifest_key(self._prefix, name, digest)
            case TagItem(name, tag):
                return keys.tag_key(self._prefix, name, tag)

    # Lists: the tags of a repository, or the referrers of a manifest

    def read_list(self, name: Name, subject: Digest | None) -> StoredList | None:
        """Read the last list that was written; None when it is absent or damaged."""
        key = keys.list_key(self._prefix, name, subject)
        try:
            content, found = _read_file(self._path(key))
        except OSError as exc:
            _log_unless_absent("cannot read a list", name, exc)
            return None
        checksum, _, body = content.partition(b"\n")
        if checksum == _list_checksum(key, body):
            return StoredList(body, found.st_mtime)
        if not content.startswith(b"["):  # former versions wrote no checksum
            metrics.damaged_files.labels("list").inc()
            log.warning("damaged list in the local store: it is ignored", list=key)
        return None

    def write_list(self, name: Name, subject: Digest | None, body: bytes) -> None:
        """Store a list that was checked now. Unlike a manifest, it has no digest: a checksum is stored with it."""
        key = keys.list_key(self._prefix, name, subject)
        self._write(key, _list_checksum(key, body) + b"\n" + body)

    # Maintenance

    def create_directories(self) -> None:
        """Create the directories that are missing: at the start, and when somebody has deleted them. Raises nothing.

        What cannot be created is reported by the writes that need it.
        """
        with contextlib.suppress(OSError):
            if self.directories.are_missing:
                self.directories.create()

    def sweep_partial_files(self) -> int:
        """Delete temporary files of dead processes, and partial files that will not be continued; return how many.

        A partial file that no process writes is continued when the blob is next requested, for MAX_PARTIAL_FILE_AGE_S.
        One that is complete and still to be published is committed: its process was killed just before it would have
        done so, and a client may have received all of it.
        """
        deleted = 0
        for path in _list_directory(self.directories.partial):
            with contextlib.suppress(OSError):
                if path.suffix == TEMPORARY_SUFFIX:
                    is_left = not is_being_written(path)
                elif digest := _find_digest(path.name):
                    is_left = not self._commit_left_over(digest) and _is_abandoned(path)
                else:
                    continue  # of another program
                deleted += is_left and delete_if_unlocked(path)
        return deleted

    def _commit_left_over(self, digest: Digest) -> bool:
        """Commit the partial file of a killed process if it is complete and unpublished; return whether it was."""
        if self._unpublished is None or BlobItem(digest) not in self._unpublished:
            return False
        partial_file = self._claim(digest)
        if partial_file is None:
            return False
        try:
            partial_file.hash_existing_bytes()
            return partial_file.has_correct_digest() and self.commit(partial_file)
        except OSError:
            return False  # it cannot be read
        finally:
            partial_file.close()

    @contextlib.contextmanager
    def _forget(self, path: Path) -> Iterator[bool]:
        """Forget that a file is to be published, while it is evicted; yield whether it was. If that fails, it still is.

        Before it is evicted: who downloads it again after that records that it is to be published.
        """
        key = path.relative_to(self.directories.root).as_posix()
        item = keys.find_item(self._prefix, key)
        if self._unpublished is None or item is None or item not in self._unpublished:
            yield False
            return
        self._unpublished.remove(item)
        try:
            yield True
        except OSError:
            self._unpublished.add(item)
            raise

    def _manifest_directory(self, name: Name, algorithm: str) -> Path:
        return self._path(keys.manifest_key(self._prefix, name, Digest.of(b"", algorithm))).parent

    def _path(self, key: str) -> Path:
        return self.directories.root / key

    def _partial_path(self, digest: Digest) -> Path:
        return self.directories.partial / str(digest).replace(":", "-")

    def _claim(self, digest: Digest) -> PartialFile | None:
        return PartialFile.claim(digest, self._partial_path(digest), self.size_cap, self.memory)

    def _read(self, key: str) -> bytes | None:
        try:
            return _read_file(self._path(key))[0]
        except OSError as exc:
            _log_unless_absent("cannot read a cached object", key, exc)
            return None

    def _write(self, key: str, content: bytes, modified_at: float | None = None) -> None:
        if len(content) > self.size_cap.max_kept_bytes:
            log.warning("an object is too large for storage.max_size: it is not kept", key=key, size=len(content))
            return
        try:
            path, temporary = self._path(key), self.directories.partial
            self._with_room(lambda: write_atomically(path, content, temporary, modified_at), len(content))
            self.size_cap.count(len(content))
        except OSError as exc:
            log.warning("cannot store an object", key=key, error=describe_disk_error(exc, self._path(key)))

    def _with_room(self, write: Callable[[], T], size: int = 0) -> T:
        """Call a function that writes. If space lacks, make room and call it again. Raises OSError.

        If a directory was deleted, it is created again.
        """
        for _ in range(MAX_WRITE_ATTEMPTS - 1):
            try:
                if self.directories.are_missing:
                    self.directories.create()
                return write()
            except OSError as exc:
                is_deleted = isinstance(exc, FileNotFoundError) and self.directories.are_missing
                if not is_deleted and not self.size_cap.make_room(exc, size):
                    raise
        return write()


def _read_file(path: Path) -> tuple[bytes, os.stat_result]:
    """Read a file, at most MAX_OBJECT_BYTES of it, and record its use. Raises OSError.

    Does not wait for the writer of a named pipe.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        body = file.read(MAX_OBJECT_BYTES)
        record_use(file.fileno(), found)
    return body, found


def _list_checksum(key: str, body: bytes) -> bytes:
    """Return the checksum of a list; the list of another key has another one."""
    return str(Digest.of(key.encode() + b"\n" + body)).encode()


def _list_directory(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _find_digest(file_name: str) -> Digest | None:
    try:
        return Digest.parse(file_name.replace("-", ":", 1))
    except DigestInvalid:
        return None


def _is_abandoned(path: Path) -> bool:
    """Whether a partial file is too old to be continued, or has no byte to continue at. Raises OSError."""
    found = path.stat()
    return not found.st_size or age_of(found.st_mtime) > MAX_PARTIAL_FILE_AGE_S


def _log_unless_absent(event: str, name: object, exc: OSError) -> None:
    if exc.errno not in _ERRORS_OF_ABSENT_FILES:
        log.warning(event, object=str(name), error=exc.strerror)
