"""What the operator may change when a TLS connection fails: the ends of messages, by what the connection was to."""

from dockyard.http1.tls import TLSProblem

_OF_ALL_SERVERS = {
    TLSProblem.UNKNOWN_CA: "set `ca_file` of {upstream} to a PEM file with the certificate of that authority",
    TLSProblem.SELF_SIGNED: (
        "set `ca_file` of {upstream} to a PEM file with this certificate, or, only for tests, "
        "`insecure_skip_verify: true`"
    ),
    TLSProblem.EXPIRED: "renew it there; until then only `insecure_skip_verify: true` of {upstream} accepts it",
    TLSProblem.NOT_YET_VALID: "check the clocks of this machine and of the server",
}
_OF_REGISTRIES = _OF_ALL_SERVERS | {
    TLSProblem.OTHER_NAME: "use a name of the certificate in `registry` of {upstream}",
    TLSProblem.NO_TLS: "write `registry: http://...` for {upstream}, or the port that speaks TLS",
    TLSProblem.CLOSED: "if this server does not speak TLS, write `registry: http://...` for {upstream}",
}
_ADD_TO_SYSTEM = "add it to the certificate authorities of the system, or set SSL_CERT_FILE"
_OF_PROXIES = {
    TLSProblem.UNKNOWN_CA: _ADD_TO_SYSTEM,
    TLSProblem.SELF_SIGNED: _ADD_TO_SYSTEM,
    TLSProblem.NO_TLS: "write `proxy: http://...` for {upstream}",
    TLSProblem.CLOSED: "if the proxy does not speak TLS, write `proxy: http://...` for {upstream}",
}


def tls_cure(problem: TLSProblem, prefix: str, *, is_proxy: bool, is_registry: bool) -> str:
    """What to change, for an upstream with this prefix; empty when there is nothing.

    The connection was to its proxy, to its registry, or to another host that the registry named.
    """
    cures = _OF_PROXIES if is_proxy else _OF_REGISTRIES if is_registry else _OF_ALL_SERVERS
    return cures.get(problem, "").format(upstream=f"the upstream {prefix}")
