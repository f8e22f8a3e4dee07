"""The engine of the fault matrix: cases, limits, upstreams, proxies, and the audit of what a fault leaves behind."""
