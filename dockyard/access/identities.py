"""A verified login, and how long it may be remembered."""

from collections.abc import Callable

import attrs

from dockyard.access.principals import Source

MAX_REMEMBERED_S = 60.0


@attrs.frozen
class Identity:
    """The name and the groups of a verified login, as a principal has them, without those of `access.groups`.

    It may be remembered for `remember_s`, as long as `is_current`, which does not block.
    """

    name: str
    groups: frozenset[str]
    source: Source
    is_current: Callable[[], bool] = attrs.field(eq=False, repr=False)
    remember_s: float = MAX_REMEMBERED_S
