"""Which worker owns a key: rendezvous hashing (highest random weight).

Every worker computes the same order of the shards for a key, without communication. When a shard is gone, each of its
keys goes to the next shard in the order of that key, and no other key moves.
"""

import functools
from hashlib import blake2b

MAX_CACHED_KEYS = 4096


@functools.lru_cache(MAX_CACHED_KEYS)
def owners(key: str, shards: int) -> tuple[int, ...]:
    """All shards from 0 to `shards` - 1, in the order in which they own the key."""
    text = key.encode()

    def weight(shard: int) -> bytes:
        # A keyed hash, because Python's own hash() differs between processes.
        return blake2b(text, digest_size=8, key=shard.to_bytes(4, "big")).digest()

    return tuple(sorted(range(shards), key=weight, reverse=True))
