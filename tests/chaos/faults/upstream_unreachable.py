"""An upstream that cannot be reached: refused, name not found, SYN dropped, TLS fails: U01 to U04."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache

import attrs
import trustme

from tests.chaos.engine.case import State
from tests.chaos.engine.dns_server import DnsServer
from tests.chaos.engine.isolated_upstream import IsolatedUpstream
from tests.chaos.engine.outcomes import MAX_REFETCHED_BYTES, Observation, Outcome, cut, error, hit, resumed, stale
from tests.chaos.engine.patches import install_patch
from tests.chaos.engine.run import Environment
from tests.chaos.engine.upstream_case import UpstreamCaseRun
from tests.chaos.engine.variant import Fault, UpstreamVariant
from tests.chaos.faults.upstream_checks import L, direct_client_gets, expect_match
from tests.support.fake_auth import require_authorization
from tests.support.fake_registry import basic
from tests.support.http_client import send_request
from tests.support.programs import need_root
from tests.support.raw_http import TLS_HANDSHAKE

# U01

MAX_CONNECTS = 3
# An audit hook of Python logs each connect(2): those that are refused can be counted nowhere else.
_LOG_CONNECTS = """
import os, sys
log = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def log_connect(event, arguments):
    if event == "socket.connect":
        os.write(log, f"{{arguments[1]}}\\n".encode())
sys.addaudithook(log_connect)
"""


def _log_connects(environment: Environment) -> None:
    log = environment.directory / "connects"
    log.touch()
    environment.environ |= install_patch(environment.directory / "patch", _LOG_CONNECTS.format(path=str(log)))


def _use_connect_log(upstream: IsolatedUpstream, environment: Environment) -> None:
    upstream.connect_log = environment.directory / "connects"


def _refuse(upstream: IsolatedUpstream, _: State) -> None:
    assert upstream.proxy is not None
    upstream.proxy.refuse_connections()
    upstream.connects_before = upstream.count_connects()


def _check_connects(case: UpstreamCaseRun, _: Observation) -> None:
    made = case.upstream.count_connects() - case.upstream.connects_before
    case.check(1 <= made <= MAX_CONNECTS, f"connected {made} times, expected 1 to {MAX_CONNECTS}")


def _check_resumed(case: UpstreamCaseRun) -> None:
    """The partial file was kept for a while: the fetch for the next client was resumed there."""
    size, sent = case.upstream.layers["cold"].size, case.upstream.fake_registry.sent_bytes("blob")
    case.check(sent <= size + MAX_REFETCHED_BYTES, f"{sent} bytes were fetched of {size}")


REFUSED = Fault(
    "U01",
    "Connection refused",
    (
        UpstreamVariant(
            "refused",
            inject=_refuse,
            prepare_environment=_log_connects,
            prepare=_use_connect_log,
            verify=direct_client_gets("refused"),
            outcomes={
                State.TAG_CACHED: (stale(L.at_once()),),
                State.TAG_COLD: (error(503, L.no()),),
                State.MANIFEST: (hit(), error(503, L.no())),
                State.BLOB_CACHED: (hit(),),
                State.BLOB_COLD: (error(503, L.no()),),
                State.BLOB_DOWNLOAD: (cut(L.breaks()),),
            },
            checks={State.BLOB_COLD: _check_connects},
            checks_after_recovery={State.BLOB_DOWNLOAD: _check_resumed},
            workers=4,
        ),
    ),
)

# U02


def _name(upstream: IsolatedUpstream) -> str:
    return f"{upstream.prefix.removesuffix('.test')}.registry.test"


def _start_dns_server(environment: Environment) -> None:
    need_root("a DNS server on port 53, in a mount namespace of its own,")
    environment.dns = environment.stack.enter_context(DnsServer())
    environment.wrapper = environment.dns.wrapper(environment.directory)


def _use_name(upstream: IsolatedUpstream, environment: Environment) -> None:
    upstream.extra_settings["registry"] = f"http://{_name(upstream)}:{upstream.authority.rpartition(':')[2]}"
    upstream.dns = environment.dns


def _drop_idle(upstream: IsolatedUpstream, state: State) -> None:
    """Close idle connections: they would hide the fault. That of a running download is to stay."""
    if state is not State.BLOB_DOWNLOAD:
        upstream.fake_registry.listener.drop_connections()


def _break_lookup(failure: str) -> UpstreamVariant:
    def inject(upstream: IsolatedUpstream, state: State) -> None:
        assert upstream.dns is not None
        upstream.dns.failures[_name(upstream)] = failure
        _drop_idle(upstream, state)

    def verify(upstream: IsolatedUpstream, _: State) -> None:
        assert upstream.dns is not None
        expect_match(failure, upstream, upstream.dns.query(_name(upstream)))

    def end(upstream: IsolatedUpstream) -> None:
        assert upstream.dns is not None
        del upstream.dns.failures[_name(upstream)]

    return UpstreamVariant(
        failure,
        prepare_environment=_start_dns_server,
        prepare=_use_name,
        inject=inject,
        verify=verify,
        end=end,
        outcomes=_away(stale(L.lookup()), error(503, L.lookup_error())),
    )


def _away(tag: Outcome, no: Outcome) -> dict[State, tuple[Outcome, ...]]:
    """New connections fail; that of a running download stays."""
    return {
        State.TAG_CACHED: (tag,),
        State.TAG_COLD: (no,),
        State.MANIFEST: (hit(), no),
        State.BLOB_CACHED: (hit(),),
        State.BLOB_COLD: (no,),
        State.BLOB_DOWNLOAD: (resumed(0),),
    }


NO_NAME = Fault(
    "U02", "The name is not found", tuple(_break_lookup(failure) for failure in ("silent", "nxdomain", "servfail"))
)

# U03


def _drop_syns(upstream: IsolatedUpstream, state: State) -> None:
    _drop_idle(upstream, state)
    upstream.fake_registry.listener.drop_syns()


_NO_CONNECTION = UpstreamVariant(
    "SYN dropped",
    inject=_drop_syns,
    verify=direct_client_gets("no connection"),
    outcomes=_away(stale(L.connect()), error(504, L.connect_twice())),
    is_direct=True,  # toxiproxy would accept the connection
)

NO_CONNECTION = Fault(
    "U03",
    "Connections time out",
    (
        _NO_CONNECTION,
        attrs.evolve(
            _NO_CONNECTION,
            name="SYN dropped, and the connection broken",
            breaks_download=True,
            outcomes={**_NO_CONNECTION.outcomes, State.BLOB_DOWNLOAD: (cut(L.breaks_silently()),)},
        ),
    ),
)

# U04

SERVER_NAMES = ("127.0.0.1", "localhost")
USER, PASSWORD = "ann", "canary-password-of-the-tls-upstream"


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


def _context(authority: trustme.CA, *names: str, not_after: datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=not_after).configure_cert(context)
    return context


def create_authority(environment: Environment) -> None:
    """Write the certificate of an authority that Dockyard can be configured to trust."""
    _authority().cert_pem.write_to_path(environment.directory / "ca.pem")


def use_tls(upstream: IsolatedUpstream, environment: Environment) -> None:
    """Give the registry a certificate of that authority."""
    upstream.fake_registry.listener.use_tls(_context(_authority(), *SERVER_NAMES))
    upstream.extra_settings.update(
        registry=f"https://{upstream.authority}", ca_file=str(environment.directory / "ca.pem")
    )
    upstream.tls = ssl.create_default_context()
    _authority().configure_trust(upstream.tls)


def _use_tls_with_a_login(upstream: IsolatedUpstream, environment: Environment) -> None:
    use_tls(upstream, environment)
    require_authorization(upstream.fake_registry, basic(USER, PASSWORD))
    upstream.extra_settings["auth"] = {"type": "basic", "username": USER, "password": PASSWORD}


def _present(certify: Callable[[], ssl.SSLContext | None]) -> Callable[[IsolatedUpstream, State], None]:
    def inject(upstream: IsolatedUpstream, state: State) -> None:
        upstream.fake_registry.listener.use_tls(certify())
        upstream.fake_registry.listener.keep_first_bytes = True
        _drop_idle(upstream, state)

    return inject


def _reset_handshakes(upstream: IsolatedUpstream, state: State) -> None:
    assert upstream.proxy is not None
    upstream.proxy.reset_connections()
    upstream.fake_registry.listener.keep_first_bytes = True
    _drop_idle(upstream, state)


def _use_right_certificate(upstream: IsolatedUpstream) -> None:
    upstream.fake_registry.listener.use_tls(_context(_authority(), *SERVER_NAMES))


def _check_metric(case: UpstreamCaseRun, _: Observation) -> None:
    """There is a metric that an operator can alert on."""
    counted = f'dockyard_upstream_untrusted_total{{upstream="{case.upstream.prefix}",wrong="tls"}}'
    metrics = send_request(case.deployment.address, "/metrics").body.decode()
    case.check(counted in metrics, "not counted as untrusted")


def _untrusted(name: str, inject: Callable[[IsolatedUpstream, State], None], seen: str) -> UpstreamVariant:
    def verify(upstream: IsolatedUpstream, _: State) -> None:
        expect_match(seen, upstream, upstream.request_directly())
        sent = upstream.fake_registry.listener.first_bytes
        assert all(data[:1] == TLS_HANDSHAKE for data in sent if data), f"Dockyard sent without TLS: {sent}"
        assert all(PASSWORD.encode() not in data and b"Authorization" not in data for data in sent), "a secret was sent"

    no = attrs.evolve(error(502, L.untrusted()), requests=(0, 0))
    return UpstreamVariant(
        name,
        prepare_environment=create_authority,
        prepare=_use_tls_with_a_login,
        inject=inject,
        verify=verify,
        end=_use_right_certificate,
        checks={State.TAG_CACHED: _check_metric, State.BLOB_COLD: _check_metric},
        outcomes=_away(stale(L.untrusted()), no),
    )


def _yesterday() -> ssl.SSLContext:
    return _context(_authority(), *SERVER_NAMES, not_after=datetime.now(UTC) - timedelta(days=1))


def _broken(variant: UpstreamVariant) -> UpstreamVariant:
    """Toxiproxy closes open connections: a running download has to connect again, and cannot."""
    return attrs.evolve(variant, outcomes={**variant.outcomes, State.BLOB_DOWNLOAD: (cut(L.breaks()),)})


NO_TRUST = Fault(
    "U04",
    "TLS fails",
    (
        _untrusted("expired", _present(_yesterday), "tls CERTIFICATE_VERIFY_FAILED"),
        _untrusted(
            "wrong name", _present(lambda: _context(_authority(), "other.test")), "tls CERTIFICATE_VERIFY_FAILED"
        ),
        _untrusted(
            "unknown authority",
            _present(lambda: _context(trustme.CA(), *SERVER_NAMES)),
            "tls CERTIFICATE_VERIFY_FAILED",
        ),
        _broken(_untrusted("reset in the handshake", _reset_handshakes, "reset")),
        _untrusted("plain HTTP response", _present(lambda: None), "tls (WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE)"),
    ),
)

FAULTS = (REFUSED, NO_NAME, NO_CONNECTION, NO_TRUST)
