"""Where bytes rest: object keys, the local tier, and the spool of a running fill."""
