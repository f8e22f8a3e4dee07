"""Worker processes: starting, draining and stopping, killed workers, full disks, upstream outages, shared work.

Each test starts a real Dockyard with as many workers as it names in front of a fake registry, and acts on its
processes, its storage directory or its upstream while clients are served. Faults one by one; the whole matrix is in
tests/chaos.
"""
