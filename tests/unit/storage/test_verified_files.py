"""The table of verified files: its size is fixed, processes share it, and it never says yes for another file."""

import os
import random

from dockyard.oci.reference import Digest
from dockyard.storage.verified_files import Fingerprint, VerifiedFiles

DIGEST = Digest.of(b"blob")
FOUND: Fingerprint = (12, 34, 56, 78)


def test_a_file_is_verified_with_this_fingerprint_only() -> None:
    """Another inode, size or time is another file; a newer fingerprint replaces an older one."""
    table = VerifiedFiles()
    assert not table.has(DIGEST, FOUND)
    table.add(DIGEST, FOUND)
    assert table.has(DIGEST, FOUND)
    for index in range(4):
        other = list(FOUND)
        other[index] += 1
        assert not table.has(DIGEST, (other[0], other[1], other[2], other[3]))
    assert not table.has(Digest.of(b"other"), FOUND)
    newer = (12, 34, 56, 79)
    table.add(DIGEST, newer)
    assert table.has(DIGEST, newer)
    assert not table.has(DIGEST, FOUND)


def test_odd_times_and_sizes_are_recorded() -> None:
    """Times before 1970 and after 2262 are possible in a file system."""
    table = VerifiedFiles()
    for found in ((2**64 - 1, 0, -1, 2**70), (0, 0, 0, 0)):
        table.add(DIGEST, found)
        assert table.has(DIGEST, found)


def test_sha512_digests_have_records_too() -> None:
    """The algorithm does not matter."""
    table = VerifiedFiles()
    table.add(Digest.of(b"blob", "sha512"), FOUND)
    assert table.has(Digest.of(b"blob", "sha512"), FOUND)
    assert not table.has(DIGEST, FOUND)


def test_a_full_table_forgets_some_files() -> None:
    """Of 65,536 files none is forgotten but a few; with many more, the last ones are known."""
    table = VerifiedFiles()
    chance = random.Random(7)
    digests = [Digest("sha256", f"{chance.getrandbits(256):064x}") for _ in range(200_000)]
    for digest in digests[:65_536]:
        table.add(digest, FOUND)
    assert sum(table.has(digest, FOUND) for digest in digests[:65_536]) > 64_000
    for digest in digests[65_536:]:
        table.add(digest, FOUND)
        assert table.has(digest, FOUND)


def test_a_file_that_cannot_be_read_is_not_verified_until_it_is_hashed() -> None:
    """Whatever its times are then; other files of the digest, such as the one that replaces it, are not concerned."""
    table = VerifiedFiles()
    table.add(DIGEST, FOUND)
    assert not table.is_unreadable(DIGEST, FOUND)
    table.add_unreadable(DIGEST, FOUND)
    later = (FOUND[0], FOUND[1], 56, 80)
    assert not table.has(DIGEST, FOUND)
    assert table.is_unreadable(DIGEST, FOUND)
    assert table.is_unreadable(DIGEST, later)
    assert not table.is_unreadable(DIGEST, (13, *FOUND[1:]))
    assert not table.is_unreadable(Digest.of(b"other"), FOUND)
    table.add(DIGEST, later)
    assert table.has(DIGEST, later)
    assert not table.is_unreadable(DIGEST, later)


def test_processes_share_the_table() -> None:
    """What a worker has verified, the others know."""
    table = VerifiedFiles()
    if not (pid := os.fork()):
        table.add(DIGEST, FOUND)
        os._exit(0)
    os.waitpid(pid, 0)
    assert table.has(DIGEST, FOUND)
