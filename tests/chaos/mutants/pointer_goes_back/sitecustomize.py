"""The pointer of a tag is set back a moment after it has moved, as by a worker that was stopped in the middle of it."""

import threading
from typing import Any

from dockyard.storage.local import LocalStore

LATE_S = 0.01
move_pointer = LocalStore.move_pointer


def _move_and_go_back(self: LocalStore, name: Any, tag: Any, old: Any, new: Any) -> bool:
    has_moved = move_pointer(self, name, tag, old, new)
    if has_moved and old is not None and old.digest != new.digest:
        threading.Timer(LATE_S, _go_back, (self, name, tag, old)).start()
    return has_moved


def _go_back(self: LocalStore, name: Any, tag: Any, before: Any) -> None:
    move_pointer(self, name, tag, self.read_pointer(name, tag), before)


LocalStore.move_pointer = _move_and_go_back  # type: ignore[method-assign]
