"""The files under ops/, checked by the programs that read them, and run where that is possible.

HAProxy, nginx and Envoy, kubeconform and Helm, promtool, systemd-analyze, containerd and Docker; three Dockyards over
one MinIO behind HAProxy as the fleet that the files describe.
"""
