"""Where a fill gets one blob from: the bucket if it holds it, else the upstream.

A bucket's body that breaks is opened once more where it broke, and then the upstream goes on. A bucket whose bytes had
the wrong digest is not asked again.
"""

from typing import Protocol

from dockyard.cache.fill import Source
from dockyard.errors import Outage, TooManyRequests
from dockyard.oci.reference import Digest
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket

BUCKET_ATTEMPTS = 2


class Opens(Protocol):
    """What a fill needs of a registry."""

    def open_blob(self, repository: str, digest: Digest, start: int = 0) -> Source:
        """Open a blob at a byte. Raises RegistryError."""


class Sources:
    """The sources of one fill, in order. `is_published` and `age_s` tell, afterwards, what the bucket has."""

    def __init__(self, target: Target, digest: Digest, registry: Opens, bucket: Bucket, *, trusts_bucket: bool) -> None:
        self._target = target
        self._digest = digest
        self._registry = registry
        self._bucket = bucket
        self._attempts = BUCKET_ATTEMPTS if trusts_bucket else 0
        self._etag = ""
        self.is_from_bucket = False
        self.is_from_upstream = False
        self.age_s = 0.0

    def open(self, start: int) -> Source:
        """Open the blob at a byte. Raises RegistryError."""
        if source := self._open_in_bucket(start, insist=False):
            return source
        try:
            source = self._registry.open_blob(self._target.repository, self._digest, start)
        except (Outage, TooManyRequests):
            if self._bucket.is_left_alone and (source := self._open_in_bucket(start, insist=True)):
                return source
            raise
        self.is_from_upstream = True
        return source

    def _open_in_bucket(self, start: int, *, insist: bool) -> Source | None:
        if not self._attempts:
            return None
        body = self._bucket.open_blob(self._digest, start, self._etag, insist=insist)
        if body is None:
            if not self._bucket.is_left_alone:
                self._attempts = 0  # it is not there
            return None
        self._attempts -= 1
        self._etag, self.age_s, self.is_from_bucket = body.etag, body.age_s, True
        return body
