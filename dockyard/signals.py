"""Signals that wait: for a block, and for the threads and processes that are started in it, which inherit that."""

import contextlib
import signal
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def signals_blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Block signals in this thread until the end of the block (pthread_sigmask(3))."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
