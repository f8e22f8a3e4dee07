"""Which worker owns a key: rendezvous hashing.

Every worker weighs every shard for a key and comes to the same order without asking anybody. When a shard is gone its
keys go to the next of their order, each to another one, and no other key moves.
"""

from hashlib import blake2b


def owners(key: str, shards: int) -> tuple[int, ...]:
    """Return all shards from 0 to `shards` - 1 in the order in which they own the key: the owner is the first."""
    text = key.encode()

    def weight(shard: int) -> bytes:
        # A keyed hash, since Python's own hash() differs from process to process.
        return blake2b(text, digest_size=8, key=shard.to_bytes(4, "big")).digest()

    return tuple(sorted(range(shards), key=weight, reverse=True))
