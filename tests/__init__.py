"""The tests of Dockyard, one package per kind; each package says what it exercises and with which real parts.

unit/         one module at a time, without processes or network beyond loopback sockets
protocol/     what a client sees over HTTP from one Dockyard in front of a fake registry
processes/    several worker processes: starting, stopping, being killed, full disks, upstream outages
s3/           the bucket: against MinIO, and against a fake S3 endpoint that misbehaves
security/     hostile requests, upstreams and content; credentials that must not leak
fuzz/         random input for parsers, for the HTTP endpoints, and as responses of the upstream and the bucket
chaos/        the fault matrix and the load tests
clients/      docker, containerd, skopeo, podman, crane, oras, helm and cosign pull through Dockyard
conformance/  the conformance suite of the OCI distribution specification
deploy/       the files under ops/: image, Helm chart, systemd unit, load balancers, dashboards
support/      what the others share: fake registry, HTTP clients, and processes of real servers and clients
"""
