"""Rendezvous hashing: one order for all workers, an even load, and few keys that move."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.workers.rendezvous import owners

KEYS = [f"sha256:{number:064x}" for number in range(2000)]


@given(st.text(), st.integers(1, 64))
def test_every_shard_owns_a_key_in_its_turn(key: str, shards: int) -> None:
    """The order holds each shard once."""
    assert sorted(owners(key, shards)) == list(range(shards))


@pytest.mark.parametrize(
    ("key", "expected"), [("sha256:00", (2, 1, 0)), ("docker.io/library/nginx:latest", (2, 0, 1)), ("", (0, 1, 2))]
)
def test_the_order_is_the_same_in_every_process(key: str, expected: tuple[int, ...]) -> None:
    """Unlike hash(), it does not depend on the process."""
    assert owners(key, 3) == expected


@pytest.mark.parametrize("shards", [2, 4, 7])
def test_shards_own_about_as_many_keys_each(shards: int) -> None:
    """No worker has more than a quarter above its share."""
    counts = Counter(owners(key, shards)[0] for key in KEYS)
    assert max(counts.values()) < 1.25 * len(KEYS) / shards


def test_a_new_shard_takes_keys_and_moves_no_others() -> None:
    """Without the new one, the order is as it was."""
    for key in KEYS:
        assert tuple(shard for shard in owners(key, 5) if shard != 4) == owners(key, 4)


def test_the_keys_of_a_lost_shard_spread_over_all_others() -> None:
    """The second owners differ."""
    successors = Counter(owners(key, 4)[1] for key in KEYS if owners(key, 4)[0] == 0)
    assert len(successors) == 3
    assert min(successors.values()) > 100


def test_no_shards_own_nothing() -> None:
    """The order is empty."""
    assert owners("x", 0) == ()
