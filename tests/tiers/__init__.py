"""Dockyards as the upstreams of Dockyards: ops/TIERS.md, with real servers in both tiers and a real registry."""
