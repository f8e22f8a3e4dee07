"""There is no circuit breaker, of the registry or of a repository: every request is sent upstream."""

from dockyard.upstream.circuit_breaker import CircuitBreaker
from dockyard.upstream.repository_failures import RepositoryFailures

CircuitBreaker.check = lambda self, probe=None, *, may_wait=True: None  # type: ignore[method-assign]
CircuitBreaker.record_failure = lambda self, fault, probe: None  # type: ignore[method-assign]
CircuitBreaker.suspect = lambda self, fault, probe, check: None  # type: ignore[method-assign]
RepositoryFailures.check = lambda self, repository, operation, *, may_wait: None  # type: ignore[method-assign]
