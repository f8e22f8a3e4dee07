"""The files of complete blobs: opening them, verifying their digests, deleting damaged ones. Blocking.

`storage.verify` says when a file is hashed. `start`: at its first use after the server has started, and at the first
use after it has changed. `always`: at every use. `never`: not at all. A file that could not be read is hashed at its
next use, whatever it says. A small file is hashed while it is opened; for a larger one, which takes longer, the caller
decides in which thread (`BlobFiles.verify`).
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import structlog

from dockyard import metrics
from dockyard.config.access import explain
from dockyard.config.types import Verify
from dockyard.oci.reference import Digest
from dockyard.storage.file_times import RECORD_INTERVAL_S, age_of, record_use
from dockyard.storage.verified_files import Fingerprint, VerifiedFiles, fingerprint, may_change_unseen

# A blob of up to this size is verified while it is opened.
MAX_SMALL_BYTES: Final = 1024 * 1024
# A file that changes while it is hashed is hashed again, this often.
MAX_ATTEMPTS = 3
CHUNK_BYTES = 1024 * 1024

ReadChunks = Callable[[int], Iterator[memoryview]]

log = structlog.get_logger()


@attrs.frozen
class StoredBlob:
    """A complete blob, open for reading. The caller closes `fd`.

    `fingerprint` is that of the file when it was opened. `is_verified`: it was hashed, and has not changed since.
    """

    digest: Digest
    fd: int
    fingerprint: Fingerprint
    is_verified: bool

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.fingerprint[1]


class BlobFiles:
    """The blobs below the directory `root`. `path_of(digest)` returns the path of a blob's file."""

    def __init__(
        self, root: Path, path_of: Callable[[Digest], Path], verify: Verify, verified_files: VerifiedFiles
    ) -> None:
        self.root = root
        self._path_of = path_of
        self._verify = verify
        self._verified_files = verified_files

    def open(self, digest: Digest) -> StoredBlob | None:
        """Open a complete blob and record its use; None when it is absent or known to be damaged.

        A small blob is verified. A larger one may be not (`is_verified`): then its use is not recorded either.
        """
        try:
            # O_NONBLOCK: opening a named pipe would wait for a writer.
            fd = os.open(self._path_of(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            log.warning("cannot open a cached blob", object=str(digest), error=explain(exc, self._path_of(digest)))
            return None
        try:
            blob = self._examine(digest, fd)
        except BaseException:
            os.close(fd)
            raise
        if blob is None:
            os.close(fd)
        return blob

    def open_verified(self, digest: Digest) -> StoredBlob | None:
        """Open a blob, verifying it now if it is not; None when it is absent or damaged."""
        blob = self.open(digest)
        if blob is None or blob.is_verified:
            return blob
        if verified := self.verify(blob):
            return self.record_use(verified)
        os.close(blob.fd)
        return None

    def exists(self, digest: Digest) -> bool:
        """Whether there is a file, which may be damaged."""
        return self._path_of(digest).exists()

    def verify(
        self, blob: StoredBlob, read_chunks: ReadChunks | None = None, *, reason: str = "use"
    ) -> StoredBlob | None:
        """Hash an open blob, and return it as verified; None when it has another digest: then its file is deleted.

        Does not close it. `read_chunks(fd)` yields the bytes of the file; what it raises ends the verification. The
        bytes are counted by `reason`. A file that cannot be read is not verified, and not deleted.
        """
        digest, fd = blob.digest, blob.fd
        try:
            for _ in range(MAX_ATTEMPTS):
                before = fingerprint(os.fstat(fd))
                if not self._has_digest(digest, fd, read_chunks or read_in_chunks, reason):
                    self._delete_damaged(digest, fd)
                    return None
                status = os.fstat(fd)
                found = fingerprint(status)
                # What another worker has verified meanwhile, or has set the times of, is unchanged.
                if found == before or self._verified_files.has(digest, found):
                    if not may_change_unseen(found):
                        self._verified_files.add(digest, found)
                    return StoredBlob(digest, fd, found, is_verified=True)
                if _was_deleted(status, before):
                    return StoredBlob(digest, fd, found, is_verified=True)
        except OSError as exc:
            self.report_unreadable(blob, exc)
            return None
        log.warning("a cached blob changes while it is verified: it is not used", digest=str(digest))
        return None

    def verify_again(self, blob: StoredBlob) -> StoredBlob | None:
        """Verify a blob whose file seems to have changed since it was verified; see `verify`."""
        found = fingerprint(os.fstat(blob.fd))
        if self._verified_files.has_open(blob.digest, blob.fd, found):
            return attrs.evolve(blob, fingerprint=found)
        return self.verify(blob)

    def report_unreadable(self, blob: StoredBlob, exc: OSError) -> None:
        """Log that a blob cannot be read, and have its file hashed before its next use. Does not block.

        The file is not deleted: an error of the disk may pass. If it does not, the blob is fetched again at that use,
        which replaces the file.
        """
        log.warning(
            "cannot read a cached blob: it is verified before its next use, and fetched again if that fails",
            digest=str(blob.digest),
            error=exc.strerror,
            cure="`dmesg` shows errors of the disk, or of the network for storage that is not local",
        )
        metrics.damaged_files.labels("blob").inc()
        self._verified_files.add_unreadable(blob.digest, blob.fingerprint)

    def record_use(self, blob: StoredBlob) -> StoredBlob:
        """Set the access time of a verified blob if that is due; return the blob with its fingerprint after that."""
        found = os.fstat(blob.fd)
        if age_of(found.st_atime) <= RECORD_INTERVAL_S:
            return blob
        with self._verified_files.keeps_verified(blob.digest, blob.fd):
            record_use(blob.fd, os.fstat(blob.fd))
        return attrs.evolve(blob, fingerprint=fingerprint(os.fstat(blob.fd)))

    def scrub(self, digest: Digest, read_chunks: ReadChunks) -> None:
        """Verify a blob if it is there. That is not a use of it: its access time stays."""
        path, flags = self._path_of(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            try:
                fd = os.open(path, flags | os.O_NOATIME)
            except PermissionError:  # a file of another user
                fd = os.open(path, flags)
        except OSError:
            return  # a use of it reports that
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode):
                self.verify(StoredBlob(digest, fd, fingerprint(found), is_verified=False), read_chunks, reason="scrub")
            else:
                self._delete_damaged(digest, fd)
        finally:
            os.close(fd)

    def is_current(self, blob: StoredBlob) -> bool:
        """Whether a verified blob that was opened a moment ago may be used again. Does not block."""
        is_same = self._verify != "always" and fingerprint(os.fstat(blob.fd)) == blob.fingerprint
        return is_same and not self.is_unreadable(blob)

    def is_unreadable(self, blob: StoredBlob) -> bool:
        """Whether the file of a blob could not be read when it was last used or hashed. Does not block."""
        return self._verified_files.is_unreadable(blob.digest, blob.fingerprint)

    def is_unchanged(self, blob: StoredBlob) -> bool:
        """Whether the file of a blob is as it was when it was opened, apart from times that were set here.

        Does not block. A blob that was deleted can still be read.
        """
        if self._verify == "never":
            return True
        status = os.fstat(blob.fd)
        found = fingerprint(status)
        if found == blob.fingerprint or _was_deleted(status, blob.fingerprint):
            return True
        return self._verified_files.has(blob.digest, found)

    def _examine(self, digest: Digest, fd: int) -> StoredBlob | None:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            self._delete_damaged(digest, fd)
            return None
        blob = StoredBlob(digest, fd, fingerprint(found), self._is_verified(digest, fd, found))
        if not blob.is_verified and found.st_size <= MAX_SMALL_BYTES:
            if (verified := self.verify(blob)) is None:
                return None
            blob = verified
        return self.record_use(blob) if blob.is_verified else blob

    def _is_verified(self, digest: Digest, fd: int, found: os.stat_result) -> bool:
        match self._verify:
            case "always":
                return False
            case "start":
                return self._verified_files.has_open(digest, fd, fingerprint(found))
            case "never":
                is_possible = bool(found.st_size) or digest == Digest.of(b"", digest.algorithm)
                return is_possible and not self._verified_files.is_unreadable(digest, fingerprint(found))

    @staticmethod
    def _has_digest(digest: Digest, fd: int, read_chunks: ReadChunks, reason: str) -> bool:
        hasher = digest.hasher()
        count = metrics.verified_bytes.labels(reason)
        for chunk in read_chunks(fd):
            hasher.update(chunk)
            count.inc(len(chunk))
        return digest.matches(hasher)

    def _delete_damaged(self, digest: Digest, fd: int) -> None:
        path = self._path_of(digest)
        log.warning(
            "a cached blob is damaged: it is deleted, and fetched again when needed",
            digest=str(digest),
            file=str(path),
            reason="its bytes have another digest than its name",
            cure="if this happens often: `dmesg` shows errors of the disk; let no other program write there",
        )
        metrics.damaged_files.labels("blob").inc()
        try:
            if not os.path.samestat(path.stat(), os.fstat(fd)):
                return  # replaced meanwhile
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            pass
        except OSError as exc:
            log.warning("cannot delete a damaged blob", digest=str(digest), error=exc.strerror)


def _was_deleted(found: os.stat_result, before: Fingerprint) -> bool:
    """Whether an open file was deleted, and not written before that as far as its modification time shows."""
    return not found.st_nlink and fingerprint(found)[:3] == before[:3]


def read_in_chunks(fd: int) -> Iterator[memoryview]:
    """Yield the bytes of a file. A chunk is valid until the next one is requested. Raises OSError."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        yield buffer[:count]
        offset += count
