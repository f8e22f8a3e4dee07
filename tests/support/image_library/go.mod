module dockyard-test-servers

go 1.26

require (
	go.podman.io/image/v5 v5.42.1
	go.podman.io/storage v1.65.1
)
