"""The hash ring of HAProxy with `balance hash` and `hash-type consistent sdbm avalanche`, as in `ops/haproxy`.

`bench/test_fleet.py` compares it with HAProxy itself.
"""

import bisect
from collections.abc import Collection

MASK = 0xFFFFFFFF
POINTS = 16  # of a server of weight 1
IDENTIFIERS = 16 * 256  # of the points of one server


class Ring:
    """The points of `servers` servers, numbered from 0, each with this weight.

    `is_of_3_0`: the points that HAProxy 3.0 to 3.2.6 give them. The tables of `ops/FLEETS.md` have those of the others.
    """

    def __init__(self, servers: int, weight: int = 1, *, is_of_3_0: bool = False) -> None:
        self._points = sorted(
            (_avalanche(first + point), number)
            for number, first in enumerate(_find_first_points(servers, is_of_3_0=is_of_3_0))
            for point in range(weight * POINTS)
        )

    def find_server(self, key: str, down: Collection[int] = ()) -> int | None:
        """The server for a key, which is a digest or the name of an image; None if all are down."""
        points = [point for point in self._points if point[1] not in down] if down else self._points
        if not points:
            return None
        hashed = _avalanche(_sdbm(key))
        after = bisect.bisect_left(points, (hashed, -1))
        following, before = points[after % len(points)], points[after - 1]
        is_before_nearer = (hashed - before[0]) & MASK <= (following[0] - hashed) & MASK
        return before[1] if is_before_nearer else following[1]


def _find_first_points(servers: int, *, is_of_3_0: bool) -> list[int]:
    """The first point of each server, not hashed yet."""
    identifiers = range(1, servers + 1)
    return [_avalanche(each) if is_of_3_0 else each * IDENTIFIERS for each in identifiers]


def _sdbm(key: str) -> int:
    hashed = 0
    for byte in key.encode():
        hashed = (byte + (hashed << 6) + (hashed << 16) - hashed) & MASK
    return hashed


def _avalanche(value: int) -> int:
    """The integer hash of Bob Jenkins with full avalanche, and the multiplication that HAProxy adds."""
    value = (value + 0x7ED55D16 + (value << 12)) & MASK
    value = value ^ 0xC761C23C ^ (value >> 19)
    value = (value + 0x165667B1 + (value << 5)) & MASK
    value = ((value + 0xD3A2646C) ^ (value << 9)) & MASK
    value = (value + 0xFD7046C5 + (value << 3)) & MASK
    value = value ^ 0xB55A4F09 ^ (value >> 16)
    return value * 3221225473 & MASK
