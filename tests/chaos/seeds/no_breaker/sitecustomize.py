"""An upstream that is down is asked again each time."""

from dockyard.upstream.circuit_breaker import Breaker

Breaker.check = lambda self, probe=None: None  # type: ignore[method-assign]
Breaker.failed = lambda self, fault, probe: None  # type: ignore[method-assign]
