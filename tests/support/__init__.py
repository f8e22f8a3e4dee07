"""What the test packages share, and the tests of it.

fake_registry      an upstream with scripted responses: registry, token service and CDN, as threads of the test process
faults             what the fake registry can do wrong: cut bodies, wrong bytes, timeouts, error responses
fake_auth          a fake registry that requires a token or Basic credentials
fake_lists         tag lists and referrers of a fake registry
raw_http           the HTTP/1.1 server below the fake registry, over raw sockets
raw_server         a server whose responses are bytes, for what is not valid HTTP
bodies             response bodies: bytes in memory, or large bodies that are generated while they are sent
http_client        HTTP clients over raw sockets: one response, a streamed response, many clients at once
deployment         a Dockyard server in front of a fake registry (fixtures: deployment_fixtures)
dockyard           a Dockyard server as a process
worker_state       memory, open files and connections of its workers, from /proc
distribution       distribution's registry as a process; olareg: another real registry (fixture: olareg_fixtures)
loopback_server    what these servers have in common; certificates: TLS contexts of test servers
toxiproxy          network faults between Dockyard and a server
images             images that are pushed to a real registry; pull_image: pulls one and checks every digest
image_clients      docker, containerd, skopeo, podman, crane as processes; artifact_clients: oras, helm, cosign
programs           where the real servers and clients are; processes: start, wait for and end a program
upstreams          the upstream client of `dockyard/upstream` in front of a fake registry
"""
