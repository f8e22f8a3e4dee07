"""Object keys, as pure functions.

They are the original's, so that a bucket it filled serves as it is. `prefix` is put before them as it stands
(`cache/`); names are full names with the prefix of their upstream, normalised by `routing`.

No two things share a key: the last component but one is `tags` or an algorithm, and what stands before it is the whole
name. One key may lie below another though, so a file system can need a directory where it has a file: a repository
may be called `x/tags/latest`.
"""

from dockyard.oci.reference import Digest, Name, Tag


def manifest_key(prefix: str, name: Name, digest: Digest) -> str:
    """Return where the bytes of a manifest are."""
    return f"{prefix}manifests/{name}/{digest.algorithm}/{digest.encoded}"


def tag_key(prefix: str, name: Name, tag: Tag) -> str:
    """Return where the pointer of a tag is: a digest as text."""
    return f"{prefix}manifests/{name}/tags/{tag}"


def list_key(prefix: str, name: Name, subject: Digest | None) -> str:
    """Return where the last known list of a name is: its tags, or the referrers of a manifest.

    The original has no lists. No component of a name begins with an underscore, so no list lies below another.
    """
    which = "_tags" if subject is None else f"_referrers/{subject.algorithm}/{subject.encoded}"
    return f"{prefix}lists/{name}/{which}"


def blob_key(prefix: str, digest: Digest) -> str:
    """Return where a blob is, one for all repositories."""
    return f"{blob_root(prefix)}{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"


def blob_root(prefix: str) -> str:
    """Return what the keys of all blobs begin with."""
    return f"{prefix}blobs/"
