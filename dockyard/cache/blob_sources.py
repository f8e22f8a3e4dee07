"""Where a download reads a blob from: the bucket if it has the blob, else the upstream.

A response of the bucket that breaks off is requested once more where it broke; after that the upstream continues. A
bucket whose copy of a blob had a wrong digest is not asked for that blob again, until a download of it has succeeded.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from dockyard.cache.client_logins import find_client, may_be_due_to_login
from dockyard.cache.stores import Stores
from dockyard.errors import FailureDetails, Outage, RegistryError, TooManyRequests
from dockyard.oci.manifest import find_blob_size
from dockyard.oci.reference import Digest
from dockyard.routing import Target

MAX_BUCKET_ATTEMPTS = 2


class BlobBody(Protocol):
    """The body of a blob that is being received.

    `start` is the offset of its first byte, `size` the size of the whole blob; None when the source does not say.
    `is_web_page`: it may be a login form.
    `encoding` is the Content-Encoding that the source declares, which is ignored; empty for none.
    """

    size: int | None
    is_web_page: bool
    start: int
    encoding: str

    @property
    def details(self) -> FailureDetails | None:
        """What the log says if its bytes are wrong; None if there is nothing to say."""

    def read(self, max_bytes: int, /) -> bytes:
        """Read up to `max_bytes`; empty only at the correct end. Raises Outage when it breaks off or stalls."""

    def close(self) -> None:
        """Release the connection."""

    def abort(self) -> None:
        """Make a `read` in another thread fail."""


class BlobOpener(Protocol):
    """The part of an upstream's client that opens blobs and finds their sizes."""

    def open_blob(self, repository: str, digest: Digest, start: int = 0) -> BlobBody:
        """Open a blob at a byte. Raises RegistryError."""

    def head_blob(self, repository: str, digest: Digest) -> int:
        """The size of a blob in bytes. Raises RegistryError."""


class BlobSources:
    """The sources of one blob, in their order, for one download.

    `targets` are those of the readers of the download, of which more may come. The first one is used until its upstream
    refuses it, then another one. `upstreams` are the clients of the upstreams, by prefix. `damaged` are the blobs, of
    all downloads of this worker, whose copy in the bucket had a wrong digest. `used_bucket` and `used_upstream` say
    afterwards what was read; `bucket_age_s` is the age of the bucket's copy. `encoding` is the Content-Encoding that
    the upstream declared, `details` what the log says of its response. `tried_targets`: how many targets there were
    when the upstream had refused the last one.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        digest: Digest,
        upstreams: Mapping[str, BlobOpener],
        stores: Stores,
        damaged: set[Digest],
    ) -> None:
        self.digest = digest
        self.used_bucket = False
        self.used_upstream = False
        self.bucket_age_s = 0.0
        self.encoding = ""
        self.details: FailureDetails | None = None
        self.tried_targets = 0
        self._targets = targets
        self._target_number = 0
        self._upstreams = upstreams
        self._bucket = stores.bucket
        self._local = stores.local
        self._damaged = damaged
        self._bucket_attempts = 0 if digest in damaged else MAX_BUCKET_ATTEMPTS
        self._etag = ""

    @property
    def target(self) -> Target:
        """The target with which the upstream is asked."""
        return self._targets[self._target_number]

    def open(self, start: int) -> BlobBody:
        """Open the blob at a byte. Raises RegistryError."""
        if body := self._open_in_bucket(start):
            return body
        try:
            body = self._open_upstream(start)
        except (Outage, TooManyRequests):
            if self._bucket.is_open and (body := self._open_in_bucket(start, even_if_open=True)):
                return body
            raise
        self.used_upstream = True
        self.encoding, self.details = body.encoding, body.details
        return body

    def _open_upstream(self, start: int) -> BlobBody:
        """Open the blob with the present target, else with the first other one that works. Raises RegistryError."""
        number, tried = self._target_number, set[int]()
        while True:
            target = self._targets[number]
            tried.add(number)
            try:
                body = find_client(self._upstreams, target).open_blob(target.repository, self.digest, start)
            except RegistryError as exc:
                self.tried_targets = len(self._targets)
                untried = [other for other in range(self.tried_targets) if other not in tried]
                if not untried or not may_be_due_to_login(exc):
                    raise
                number = untried[0]
            else:
                self._target_number = number
                return body

    def find_size(self) -> int | None:
        """The size of the blob, if its body does not tell: from a manifest in the local store, else by HEAD."""
        for body in self._local.manifests_of(self.target.name):
            if (size := find_blob_size(body, self.digest)) is not None:
                return size
        try:
            return find_client(self._upstreams, self.target).head_blob(self.target.repository, self.digest)
        except RegistryError:
            return None  # no manifest and no source tells it

    def exclude_bucket(self) -> None:
        """The bucket's copy is damaged: use the upstream only, from the first byte."""
        self._damaged.add(self.digest)
        self._bucket_attempts = 0
        self.used_bucket = False

    def mark_verified(self) -> None:
        """The bytes that were read have the right digest."""
        self._damaged.discard(self.digest)

    def _open_in_bucket(self, start: int, *, even_if_open: bool = False) -> BlobBody | None:
        if not self._bucket_attempts:
            return None
        body = self._bucket.read(lambda s3: s3.open_blob(self.digest, start, self._etag), even_if_open=even_if_open)
        if body is None:
            if not self._bucket.is_open:
                self._bucket_attempts = 0  # the bucket does not have it
            return None
        self._bucket_attempts -= 1
        self._etag, self.bucket_age_s, self.used_bucket = body.etag, body.age_s, True
        return body
