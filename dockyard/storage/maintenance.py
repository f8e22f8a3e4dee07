"""The maintenance of the local store, in a thread of its own: the size cap, and partial files that are too old."""

import threading
import time

import structlog

from dockyard.storage.local import LocalStore

# How often the cap is enforced while downloads run: a download may be larger than what is left under the cap.
CAP_INTERVAL_S = 1.0
# How often it is looked for what other programs, or other workers, have added.
CHECK_INTERVAL_S = 5.0
SWEEP_INTERVAL_S = 3600.0

log = structlog.get_logger()


class Maintenance:
    """Maintains `store` from `start` until `stop`. Neither blocks."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="maintenance", daemon=True).start()

    def stop(self) -> None:
        """End the thread when it has finished what it is doing."""
        self._stop.set()

    def _run(self) -> None:
        checked_at = swept_at = float("-inf")
        while not self._stop.is_set():
            try:
                now = time.monotonic()
                if now - swept_at >= SWEEP_INTERVAL_S:
                    swept_at = now
                    self._store.sweep_partial_files()
                if now - checked_at >= CHECK_INTERVAL_S:
                    checked_at = now
                    self._store.size_cap.enforce_if_used_up()
                else:
                    self._store.size_cap.enforce_if_due()
            except Exception:
                log.exception("internal error: the maintenance of the local store failed")
            self._stop.wait(CAP_INTERVAL_S)
