"""What a client sees over HTTP: names, manifests, blobs, ranges, lists, redirects, logins, errors, stale responses.

Each test sends requests over raw sockets to a real Dockyard process (one worker, or as many as it names) in front of a
fake registry, and checks the responses and what reached the upstream. No bucket, and no fault of processes or disks.
"""
