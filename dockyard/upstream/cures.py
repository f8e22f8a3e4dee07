"""What the operator may change or look at when a request to an upstream fails, by what the connection was to."""

from http import HTTPStatus

from dockyard.http1.tls import TLSProblem
from dockyard.oci.origin import Origin
from dockyard.upstream.dialer import Stage

_OF_ALL_SERVERS = {
    TLSProblem.UNKNOWN_CA: "set `ca_file` of {upstream} to a PEM file with the certificate of that authority",
    TLSProblem.SELF_SIGNED: (
        "set `ca_file` of {upstream} to a PEM file with this certificate, or, only for tests, "
        "`insecure_skip_verify: true`"
    ),
    TLSProblem.EXPIRED: "renew it there; until then only `insecure_skip_verify: true` of {upstream} accepts it",
    TLSProblem.NOT_YET_VALID: "check the clocks of this machine and of the server with `date`",
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
    """What to change, for an upstream with this prefix; empty when there is nothing. Clients may see it.

    The connection was to its proxy, to its registry, or to another host that the registry named.
    """
    cures = _OF_PROXIES if is_proxy else _OF_REGISTRIES if is_registry else _OF_ALL_SERVERS
    return cures.get(problem, "").format(upstream=f"the upstream {prefix}")


def connection_cure(stage: Stage, origin: Origin, prefix: str, *, is_proxy: bool, is_registry: bool) -> str:
    """What to do when there is no connection. `origin` is where the request goes, through the proxy if there is one."""
    key = "proxy" if is_proxy else "registry"
    is_named = is_proxy or is_registry
    if stage is Stage.LOOKUP:
        settings = f"correct the host name in `{key}` of the upstream {prefix}" if is_named else "the registry names it"
        return f"{settings}, or check the name servers in /etc/resolv.conf: `getent hosts` with this name"
    if stage is Stage.TUNNEL:
        return f"let the proxy allow connections to {origin.host_and_port}, or correct `proxy` of the upstream {prefix}"
    if is_named:
        return f"check that it runs and can be reached, and the port in `{key}` of the upstream {prefix}"
    return f"the registry names this server: check with `curl -v {origin}/` that this machine can reach it"


def timeout_cure(setting: str, origin: Origin) -> str:
    """What to do when a server does not respond in time."""
    return f"if `curl -v {origin}/v2/` on this machine responds, but late, raise `{setting}`"


def closed_cure(origin: Origin) -> str:
    """What to do when a server closes the connection."""
    return f"try `curl -v {origin}/v2/` on this machine: a firewall in between may close connections"


def status_cure(status: int, origin: Origin, prefix: str, *, is_registry: bool) -> str:
    """What to do after a response with this status."""
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return f"check `auth` of the upstream {prefix}, and whether that login may read the repository"
        case HTTPStatus.NOT_FOUND | HTTPStatus.GONE:
            return f"check the name; a login without permission may see the same: `auth` of the upstream {prefix}"
        case HTTPStatus.TOO_MANY_REQUESTS:
            return f"set `auth` of the upstream {prefix}, since limits are higher with a login, or wait"
    if is_registry:
        return f"see what responds there with `curl -i {origin}/v2/`; if it is another server, correct `registry`"
    return f"the registry names this server: see what responds there with `curl -i {origin}/`"
