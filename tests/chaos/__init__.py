"""The fault matrix: faults of upstreams, the bucket, disks and processes, and what clients must see meanwhile."""
