"""The local store: complete objects in a directory, one file for each, named by the object's key. Blocking.

A file is either complete or absent: it is written elsewhere in the directory, synced, and renamed. The access time of a
blob's file is its last use; it is set here, so that the size cap can evict the least recently used blobs whatever the
mount options are.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import structlog

from dockyard.config.types import Verify
from dockyard.errors import DigestInvalid
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage import keys
from dockyard.storage.atomic_write import lock_directory, sync_directory, write_atomically
from dockyard.storage.blob_files import BlobFiles
from dockyard.storage.eviction import SizeCap
from dockyard.storage.file_times import age_of
from dockyard.storage.items import BlobItem, Item, ManifestItem, TagItem
from dockyard.storage.partial_file import PartialFile
from dockyard.storage.touch_times import TouchTimes
from dockyard.storage.verified_files import VerifiedFiles

PARTIAL = "partial"
RUN = "run"
# A temporary file that is older was left by a dead process.
MAX_TEMPORARY_FILE_AGE_S = 60.0
# Manifests and lists are smaller. A file that is larger is damaged, and must not fill the memory.
MAX_OBJECT_BYTES = 16 * 1024 * 1024
_ERRORS_OF_ABSENT_FILES = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}

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


class LocalStore:
    """Blobs, manifests, tag pointers and lists under one directory.

    `max_size` (bytes, 0 = none) caps the blobs; manifests, tags and lists are small and are not evicted.
    `verify` and `verified_files`: see `blob_files`; all workers share one table. `is_protected(digest)` returns whether
    a blob is still to be published, so that it must not be evicted.

    All methods block. A disk error is logged and treated as a miss, or as a write that did not happen.
    """

    def __init__(
        self,
        directory: Path,
        prefix: str,
        max_size: int,
        verify: Verify = "start",
        verified_files: VerifiedFiles | None = None,
        is_protected: Callable[[Digest], bool] = lambda _: False,
    ) -> None:
        self.directory = directory
        self._prefix = prefix
        self._is_protected = is_protected
        partial, run = directory / PARTIAL, directory / RUN
        self.size_cap = SizeCap(self._path(keys.blob_root(prefix)), partial, run / "evict.lock", max_size, is_protected)
        verified_files = verified_files or VerifiedFiles()
        self.blobs = BlobFiles(
            self._path(keys.blob_root(prefix)),
            lambda digest: self._path(keys.blob_key(prefix, digest)),
            verify,
            verified_files,
        )
        self.touch_times = TouchTimes(lambda item: self._path(self.key(item)), run / "touched", verified_files)

    # Blobs

    def claim_partial_file(self, digest: Digest) -> PartialFile | None:
        """Open and lock the partial file of a blob; None when another process is writing or verifying it.

        When no file can be created, the partial file is in memory.
        """
        try:
            return PartialFile.claim(digest, self._partial_path(digest), self.size_cap.free_disk_space)
        except OSError as exc:
            log.warning("cannot create a partial file, serving without it", digest=str(digest), error=exc.strerror)
            return PartialFile.in_memory(digest)

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

    def commit(self, partial_file: PartialFile, age_s: float = 0.0) -> bool:
        """Turn a verified partial file into a complete blob, and close it. False when it could not be stored.

        `age_s` is the age of the bucket's copy, for a blob that came from the bucket.
        """
        try:
            if not self._move_to_key(partial_file, age_s):
                partial_file.discard()
                return False
        finally:
            partial_file.close()
        self.size_cap.add(partial_file.received_bytes)
        return True

    def _move_to_key(self, partial_file: PartialFile, age_s: float) -> bool:
        path = self._path(keys.blob_key(self._prefix, partial_file.digest))
        if partial_file.path is None or partial_file.is_overflowing:
            return False
        try:
            with contextlib.suppress(OSError):  # the file system may not set times: that is no reason not to keep it
                os.utime(partial_file.fd, (time.time(), time.time() - age_s))
            os.fsync(partial_file.fd)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial_file.path.rename(path)
            self.blobs.add_verified(partial_file.digest, partial_file.fd, partial_file.received_bytes)
            sync_directory(path.parent)
        except OSError as exc:
            log.warning("cannot store a blob", digest=str(partial_file.digest), error=exc.strerror)
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

    def write_manifest(self, name: Name, digest: Digest, body: bytes, media_type: str | None = None) -> None:
        """Store a verified manifest, with its media type if the body does not have that.

        The type is stored first: a process that reads the manifest finds the type.
        """
        key = keys.media_type_key(self._prefix, name, digest)
        if media_type is not None:
            self._write(key, media_type.encode("latin-1"))
        else:
            with contextlib.suppress(OSError):
                self._path(key).unlink()
        self._write(keys.manifest_key(self._prefix, name, digest), body)

    def read_pointer(self, name: Name, tag: Tag) -> Pointer | None:
        """Read the pointer of a tag; None when it is absent or unreadable."""
        path = self._path(keys.tag_key(self._prefix, name, tag))
        try:
            text = _read_file(path).decode("ascii")
            return Pointer(Digest.parse(text.strip()), path.stat().st_mtime)
        except OSError as exc:
            _log_unless_absent("cannot read a tag pointer", tag, exc)
        except (ValueError, DigestInvalid) as exc:
            log.warning("a tag pointer is not a digest and is ignored", tag=str(tag), error=str(exc))
        return None

    def move_pointer(self, name: Name, tag: Tag, old: Pointer | None, new: Pointer) -> bool:
        """Point the tag at a manifest that is stored already; False when its pointer is no longer `old`.

        So a process that was delayed between its request to the upstream and this write cannot overwrite a pointer
        that another process has written meanwhile.
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
        """Read the last list that was written; None when it is absent."""
        path = self._path(keys.list_key(self._prefix, name, subject))
        try:
            return StoredList(_read_file(path), path.stat().st_mtime)
        except OSError as exc:
            _log_unless_absent("cannot read a list", name, exc)
            return None

    def write_list(self, name: Name, subject: Digest | None, body: bytes) -> None:
        """Store a list that was checked now."""
        self._write(keys.list_key(self._prefix, name, subject), body)

    # Maintenance

    def create_directories(self) -> None:
        """Create the directories for partial files and for run-time files. Raises OSError."""
        for name in (PARTIAL, RUN):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    def sweep_partial_files(self) -> int:
        """Delete the partial files that no process writes; return how many.

        One that is complete and still to be published is committed: its process was killed just before it would have
        done so, and a client may have received all of it.
        """
        deleted = 0
        for path in (self.directory / PARTIAL).iterdir():
            with contextlib.suppress(OSError, DigestInvalid):
                if path.suffix == ".tmp":
                    if age_of(path.stat().st_mtime) > MAX_TEMPORARY_FILE_AGE_S:
                        path.unlink()
                        deleted += 1
                    continue
                digest = Digest.parse(path.name.replace("-", ":", 1))
                if not self._commit_left_over(digest):
                    deleted += self.discard_partial_file(digest)
        return deleted

    def _commit_left_over(self, digest: Digest) -> bool:
        """Commit the partial file of a killed process if it is complete and protected; return whether it was."""
        path = self._partial_path(digest)
        if not self._is_protected(digest) or not (partial_file := PartialFile.claim(digest, path, lambda _: False)):
            return False
        partial_file.hash_existing_bytes()
        if partial_file.has_correct_digest():
            return self.commit(partial_file)
        partial_file.close()
        return False

    def discard_partial_file(self, digest: Digest) -> bool:
        """Delete a partial file that no process writes; return whether there was one."""
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
            return _read_file(self._path(key))
        except OSError as exc:
            _log_unless_absent("cannot read a cached object", key, exc)
            return None

    def _write(self, key: str, content: bytes) -> None:
        try:
            write_atomically(self._path(key), content, self.directory / PARTIAL)
        except OSError as exc:
            log.warning("cannot store an object", key=key, error=exc.strerror)


def _read_file(path: Path) -> bytes:
    """Read a file, at most MAX_OBJECT_BYTES of it. Does not wait for the writer of a named pipe. Raises OSError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read(MAX_OBJECT_BYTES)


def _log_unless_absent(event: str, name: object, exc: OSError) -> None:
    if exc.errno not in _ERRORS_OF_ABSENT_FILES:
        log.warning(event, object=str(name), error=exc.strerror)
