"""HTTP/1.1 for all clients of this package: to upstreams, to the S3 service, and of `dockyard pull`.

http.client and urllib3 do the work. What they accept too easily is checked here, so that a response is never taken for
the response to another request.
"""
