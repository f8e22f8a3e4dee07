"""Links from repositories to blobs, on real servers."""

import time

from dockyard.oci.reference import Digest, Name
from dockyard.s3.store import S3Store
from dockyard.storage import keys

NAME, OTHER = Name.parse("docker.io/library/app"), Name.parse("docker.io/library/app2")


def test_a_link_is_of_one_repository_and_one_blob(direct_s3: S3Store) -> None:
    """Neither another blob nor another repository has it."""
    direct_s3.write_link(NAME, Digest.of(b"x"))
    assert direct_s3.has_link(NAME, Digest.of(b"x"))
    assert not direct_s3.has_link(NAME, Digest.of(b"x", "sha512"))
    assert not direct_s3.has_link(NAME, Digest.of(b"y"))
    assert not direct_s3.has_link(OTHER, Digest.of(b"x"))


def test_a_link_that_is_written_again_is_new_for_lifecycle_rules(direct_s3: S3Store, prefix: str) -> None:
    """Its LastModified is renewed, on servers that do not do that for a copy too."""
    direct_s3.write_link(NAME, Digest.of(b"x"))
    key = keys.link_key(prefix, NAME, Digest.of(b"x"))
    before = direct_s3._head(key)
    assert before is not None
    time.sleep(1.1)  # the resolution of LastModified is a second
    direct_s3.write_link(NAME, Digest.of(b"x"))
    after = direct_s3._head(key)
    assert after is not None
    assert after.last_modified > before.last_modified
