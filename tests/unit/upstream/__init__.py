"""The upstream client in this process, against a fake registry: requests, logins, TLS, circuit breaker."""
