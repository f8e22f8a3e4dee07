"""Real clients pull through a real Dockyard from distribution's registry or olareg: all shapes of URLs that they send.

docker, containerd, skopeo, podman and crane for images, oras, helm and cosign for artifacts, and `dockyard pull`. A
client that this machine lacks is a skipped test, on CI a failed one.
"""
