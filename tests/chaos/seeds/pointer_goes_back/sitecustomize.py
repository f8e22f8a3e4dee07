"""A late writer puts back what a tag meant before, as a worker would that was frozen in the middle of its write."""

import threading
from typing import Any

from dockyard.storage.local import LocalTier

LATE_S = 0.1
write_pointer = LocalTier.write_pointer


def _write_late(self: LocalTier, name: Any, tag: Any, pointer: Any) -> None:
    before = self.read_pointer(name, tag)
    write_pointer(self, name, tag, pointer)
    if before is not None and before.digest != pointer.digest:
        threading.Timer(LATE_S, write_pointer, (self, name, tag, before)).start()


LocalTier.write_pointer = _write_late  # type: ignore[method-assign]
