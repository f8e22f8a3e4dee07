"""Hostile clients, upstreams and content: one test or more for each line of the checklist in `test_checklist.py`.

A real Dockyard in front of a fake registry (and, where the test needs it, a fake S3 endpoint, MinIO, HAProxy, nginx or
an isolated network namespace). Every secret in its settings is unique; after each test the log, the storage directory,
the responses and the requests upstream are searched for it.
"""
