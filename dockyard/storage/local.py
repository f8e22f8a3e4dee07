"""The local store: complete objects in a directory, named by their keys.

An object appears whole or not at all: it is written beside its place, flushed, and renamed. A file's access time is its
last use and is set by us, so that the size cap can drop the least recently used blobs whatever the mount options are.

After an unclean stop the blobs that were there are hashed once before their first use. A file's change time, which
nobody can set, tells which ones: verifying touches the file.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import structlog

from dockyard.errors import DigestInvalid
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage import keys
from dockyard.storage.atomic_write import lock_directory, sync_directory, write_atomically
from dockyard.storage.eviction import SizeCap
from dockyard.storage.items import BlobItem, Item, ManifestItem, TagItem
from dockyard.storage.partial_file import PartialFile
from dockyard.storage.touch_times import TouchTimes

PARTIAL = "partial"
RUN = "run"
USE_RECORDED_EVERY_S = 60.0
ABANDONED_S = 60.0
_HASH_CHUNK = 1024 * 1024
_EMPTY_IS_FINE = {str(Digest.of(b"")), str(Digest.of(b"", "sha512"))}
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}

log = structlog.get_logger()


@attrs.frozen
class StoredBlob:
    """A complete blob, open for reading. Whoever gets it closes `fd`."""

    fd: int
    size: int


@attrs.frozen
class Pointer:
    """What a tag pointed to, and when that was last checked (seconds since the epoch)."""

    digest: Digest
    checked_at: float


@attrs.frozen
class StoredList:
    """A list as it was written, and when it was last checked (seconds since the epoch)."""

    body: bytes
    checked_at: float


class LocalStore:
    """Blobs, manifests and tag pointers under one directory.

    `max_size` (bytes, 0 = none) caps the blobs; manifests and tags are small and stay.
    `unverified_before` (seconds since the epoch): blobs not changed since then are verified before their first use.
    `is_protected(digest)`: a blob that must not be evicted yet.

    Methods block. A fault of the disk is logged and looks like a miss, or like a write that did not happen.
    """

    def __init__(
        self,
        directory: Path,
        prefix: str,
        max_size: int,
        unverified_before: float = 0.0,
        is_protected: Callable[[Digest], bool] = lambda _: False,
    ) -> None:
        self.directory = directory
        self._prefix = prefix
        self._unverified_before = unverified_before
        partial, run = directory / PARTIAL, directory / RUN
        self.size_cap = SizeCap(self._path(keys.blob_root(prefix)), partial, run / "evict.lock", max_size, is_protected)
        self.touch_times = TouchTimes(lambda item: self._path(self.key(item)), run / "touched")

    # Blobs

    def open_blob(self, digest: Digest) -> StoredBlob | None:
        """Open a complete blob and record its use; None when it is not here, or not what its name says."""
        path = self._path(keys.blob_key(self._prefix, digest))
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            _log_unless_absent("cannot open a cached blob", digest, exc)
            return None
        try:
            found = os.fstat(fd)
            if found.st_ctime < self._unverified_before or (not found.st_size and str(digest) not in _EMPTY_IS_FINE):
                if not _has_digest(fd, digest):
                    log.warning("a cached blob was damaged and is fetched again", digest=str(digest))
                    path.unlink(missing_ok=True)
                    os.close(fd)
                    return None
                os.utime(fd, (time.time(), found.st_mtime))
            elif time.time() - found.st_atime > USE_RECORDED_EVERY_S:
                os.utime(fd, (time.time(), found.st_mtime))
        except OSError as exc:
            log.warning("cannot read a cached blob", digest=str(digest), error=exc.strerror)
            os.close(fd)
            return None
        return StoredBlob(fd, found.st_size)

    def claim_partial_file(self, digest: Digest) -> PartialFile | None:
        """The partial file of a blob, locked for us; None when another process is writing it.

        Where no file can be made, the partial file keeps to memory.
        """
        try:
            return PartialFile.claim(digest, self._partial_path(digest), self.size_cap.free_disk_space)
        except OSError as exc:
            log.warning("cannot make a partial file, serving without it", digest=str(digest), error=exc.strerror)
            return PartialFile.in_memory(digest)

    def open_partial_file(self, digest: Digest, inode: int) -> int | None:
        """Open the file that another worker writes, in its place or already kept; None when it is in neither."""
        for path in (self._partial_path(digest), self._path(keys.blob_key(self._prefix, digest))):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(fd).st_ino == inode:
                    return fd
                os.close(fd)
        return None

    def commit(self, partial_file: PartialFile, age_s: float = 0.0) -> bool:
        """Make a verified partial file a complete blob, and let go of it. False when the disk would not have it.

        `age_s` is how long ago the bucket got it, for one that came from there.
        """
        try:
            if not self._move_in(partial_file, age_s):
                partial_file.discard()
                return False
        finally:
            partial_file.close()
        self.size_cap.add(partial_file.received_bytes)
        return True

    def _move_in(self, partial_file: PartialFile, age_s: float) -> bool:
        path = self._path(keys.blob_key(self._prefix, partial_file.digest))
        if partial_file.path is None or partial_file.is_overflowing:
            return False
        try:
            os.utime(partial_file.fd, (time.time(), time.time() - age_s))
            os.fsync(partial_file.fd)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial_file.path.rename(path)
            sync_directory(path.parent)
        except OSError as exc:
            log.warning("cannot keep a blob", digest=str(partial_file.digest), error=exc.strerror)
            return False
        return True

    # Manifests and tags

    def read_manifest(self, name: Name, digest: Digest) -> bytes | None:
        """The bytes of a manifest, not verified; None when it is not here."""
        return self._read(keys.manifest_key(self._prefix, name, digest))

    def write_manifest(self, name: Name, digest: Digest, body: bytes) -> None:
        """Keep a verified manifest."""
        self._write(keys.manifest_key(self._prefix, name, digest), body)

    def read_pointer(self, name: Name, tag: Tag) -> Pointer | None:
        """What the tag pointed to when it was last written; None when unknown or unreadable."""
        path = self._path(keys.tag_key(self._prefix, name, tag))
        try:
            text = path.read_text("ascii")
            return Pointer(Digest.parse(text.strip()), path.stat().st_mtime)
        except OSError as exc:
            _log_unless_absent("cannot read a tag pointer", tag, exc)
        except (ValueError, DigestInvalid) as exc:
            log.warning("a tag pointer is not a digest and is ignored", tag=str(tag), error=str(exc))
        return None

    def move_pointer(self, name: Name, tag: Tag, old: Pointer | None, new: Pointer) -> bool:
        """Point the tag at a manifest that was kept before. False when it is no longer what was read before: `old`.

        So a process that was held up between asking the upstream and writing cannot undo what others wrote meanwhile.
        """
        key = keys.tag_key(self._prefix, name, tag)
        with lock_directory(self._path(key).parent):
            if self.read_pointer(name, tag) != old:
                return False
            self._write(key, str(new.digest).encode())
            with contextlib.suppress(OSError):
                os.utime(self._path(key), (new.checked_at, new.checked_at))
        return True

    def confirm_pointer(self, name: Name, tag: Tag) -> None:
        """Record that the pointer was checked now and still holds."""
        with contextlib.suppress(OSError):
            path = self._path(keys.tag_key(self._prefix, name, tag))
            os.utime(path, (path.stat().st_atime, time.time()))

    def key(self, item: Item) -> str:
        """The key of an item."""
        match item:
            case BlobItem(digest):
                return keys.blob_key(self._prefix, digest)
            case ManifestItem(name, digest):
                return keys.manifest_key(self._prefix, name, digest)
            case TagItem(name, tag):
                return keys.tag_key(self._prefix, name, tag)

    # Lists: tags of a name, or referrers of a subject

    def read_list(self, name: Name, subject: Digest | None) -> StoredList | None:
        """The last list that was written; None when there is none."""
        path = self._path(keys.list_key(self._prefix, name, subject))
        try:
            return StoredList(path.read_bytes(), path.stat().st_mtime)
        except OSError as exc:
            _log_unless_absent("cannot read a list", name, exc)
            return None

    def write_list(self, name: Name, subject: Digest | None, body: bytes) -> None:
        """Keep a list that was checked now."""
        self._write(keys.list_key(self._prefix, name, subject), body)

    # Housekeeping

    def create_directories(self) -> None:
        """Make the directories. Raises OSError."""
        for room in (PARTIAL, RUN):
            (self.directory / room).mkdir(parents=True, exist_ok=True)

    def sweep_partial_files(self) -> int:
        """Delete the partial files whose writer is dead; how many."""
        swept = 0
        for path in (self.directory / PARTIAL).iterdir():
            with contextlib.suppress(OSError, DigestInvalid):
                if path.suffix == ".tmp":
                    if time.time() - path.stat().st_mtime > ABANDONED_S:
                        path.unlink()
                        swept += 1
                elif self.discard_partial_file(Digest.parse(path.name.replace("-", ":", 1))):
                    swept += 1
        return swept

    def discard_partial_file(self, digest: Digest) -> bool:
        """Delete a partial file that nobody writes; whether there was one."""
        path = self._partial_path(digest)
        with contextlib.suppress(OSError):
            if path.exists() and (partial_file := PartialFile.claim(digest, path, lambda _: False)):
                partial_file.discard()
                return True
        return False

    def _path(self, key: str) -> Path:
        return self.directory / key

    def _partial_path(self, digest: Digest) -> Path:
        return self.directory / PARTIAL / str(digest).replace(":", "-")

    def _read(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except OSError as exc:
            _log_unless_absent("cannot read a cached object", key, exc)
            return None

    def _write(self, key: str, content: bytes) -> None:
        try:
            write_atomically(self._path(key), content, self.directory / PARTIAL)
        except OSError as exc:
            log.warning("cannot keep an object", key=key, error=exc.strerror)


def _has_digest(fd: int, digest: Digest) -> bool:
    hasher = digest.hasher()
    offset = 0
    while chunk := os.pread(fd, _HASH_CHUNK, offset):
        hasher.update(chunk)
        offset += len(chunk)
    return digest.matches(hasher)


def _log_unless_absent(event: str, thing: object, exc: OSError) -> None:
    if exc.errno not in _ABSENT:
        log.warning(event, object=str(thing), error=exc.strerror)
